"""What the core asks of Python's dictionaries."""

from __future__ import annotations

import pytest

from resfuse import _core


def test_watch_holds_while_items_are_the_same_objects() -> None:
    a, b, empty = object(), [1], {}
    first, second = {"a": a, "flag": False}, {"b": b}
    held = [(first, "a", a), (first, "flag", False), (first, "absent", None), (second, "b", b)]
    watch = _core.DictWatch(held, [empty])
    assert watch.holds()
    second["b"] = [1]  # equal, but another
    assert not watch.holds()
    second["b"] = b
    assert watch.holds()
    for key, value in (("a", b), ("flag", True), ("absent", a), ("absent", None)):
        before = dict(first)
        first[key] = value
        assert not watch.holds(), key
        first.clear()
        assert not watch.holds()
        first.update(before)
        assert watch.holds()
    empty["more"] = 1
    assert not watch.holds()
    del empty["more"]
    assert watch.holds()


def test_watch_of_nothing_holds() -> None:
    assert _core.DictWatch([], []).holds()


def test_watch_sees_dictionaries_that_grow() -> None:
    """A dictionary that grows moves its items."""
    values = {"0": 0}
    watch = _core.DictWatch([(values, "0", values["0"])], [])
    for i in range(1000):
        values[str(i + 1)] = i
        assert watch.holds()
    values["0"] = "other"
    assert not watch.holds()


def test_reader_gives_present_values_or_raises() -> None:
    first, second = {"a": 1}, {"b": object()}
    reader = _core.DictReader([(first, "a"), (second, "b"), (first, "a")])
    assert reader.values() == [1, second["b"], 1]
    first["a"] = 2
    assert reader.values() == [2, second["b"], 2]
    del second["b"]
    with pytest.raises(KeyError, match="b"):
        reader.values()


def test_keys_of_other_types_and_what_is_no_dictionary() -> None:
    values = {3: "three", (1, 2): "pair"}
    assert _core.DictReader([(values, 3), (values, (1, 2))]).values() == ["three", "pair"]
    with pytest.raises(TypeError):
        _core.DictWatch([([], "a", 1)], [])
    with pytest.raises(TypeError, match="unhashable"):
        _core.DictReader([(values, [])]).values()
