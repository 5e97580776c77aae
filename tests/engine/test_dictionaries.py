"""What the core asks of Python's dictionaries."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfuse import _core


def make_watch(**facts: Any) -> _core.StateWatch:
    names = ("held", "absent", "contents", "types", "cells", "empty", "usual")
    return _core.StateWatch(*(facts.get(name, []) for name in names))


def test_watch_of_usual_items() -> None:
    values = {"training": False}
    watch = make_watch(usual=[(values, "training", False)])
    assert watch.check() == 2
    values["training"] = True
    assert watch.check() == 1
    del values["training"]
    assert watch.check() == 1


def test_watch_of_contents() -> None:
    items, ordered = [1, "a"], {"x": 1, "y": 2}
    watch = make_watch(contents=[(items, list(items)), (ordered, dict(ordered))])
    assert watch.check()
    for change, undo in [
        (lambda: items.append(3), items.pop),
        (items.reverse, items.reverse),
        (lambda: ordered.update(z=3), lambda: ordered.pop("z")),
        (lambda: ordered.update(x=3), lambda: ordered.update(x=1)),
    ]:
        change()
        assert not watch.check()
        undo()
        assert watch.check()
    ordered["x"] = ordered.pop("x")  # the same items in another order
    assert not watch.check()
    with pytest.raises(TypeError, match="contents"):
        make_watch(contents=[((1,), (1,))])


def test_watch_of_classes_and_closures() -> None:
    class Base:
        attribute = 1

    class Child(Base):
        pass

    value = 1

    def function() -> int:
        return value

    child = Child()
    (cell,) = function.__closure__
    facts = {"types": [(child, vars(child))], "cells": [(cell, value)]}
    watch = make_watch(**facts)
    assert watch.check()
    Base.attribute = 2
    assert not watch.check()
    watch = make_watch(**facts)
    assert watch.check()
    value = 2
    assert not watch.check()
    value = 1
    assert watch.check()
    child.__dict__ = {}
    assert not watch.check()
    watch = make_watch(types=[(child, vars(child))])
    child.__class__ = Base
    assert not watch.check()
    with pytest.raises(TypeError, match="cells"):
        make_watch(cells=[(1, 2)])


def test_watch_holds_while_items_are_the_same_objects() -> None:
    a, b, empty = object(), [1], {}
    first, second = {"a": a, "flag": False}, {"b": b}
    held = [(first, "a", a), (first, "flag", False), (second, "b", b)]
    watch = make_watch(held=held, absent=[(first, "absent")], empty=[empty])
    assert watch.check()
    second["b"] = [1]  # equal, but another
    assert not watch.check()
    second["b"] = b
    assert watch.check()
    for key, value in (("a", b), ("flag", True), ("absent", a), ("absent", None)):
        before = dict(first)
        first[key] = value
        assert not watch.check(), key
        first.clear()
        assert not watch.check()
        first.update(before)
        assert watch.check()
    empty["more"] = 1
    assert not watch.check()
    del empty["more"]
    assert watch.check()


def test_watch_of_nothing_holds() -> None:
    assert make_watch().check() == 2


def test_watch_sees_dictionaries_that_grow() -> None:
    """A dictionary that grows moves its items."""
    values = {"0": 0}
    watch = make_watch(held=[(values, "0", values["0"])])
    for i in range(1000):
        values[str(i + 1)] = i
        assert watch.check()
    values["0"] = "other"
    assert not watch.check()


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
        make_watch(held=[([], "a", 1)])
    with pytest.raises(TypeError, match="unhashable"):
        _core.DictReader([(values, [])]).values()


KEYS = ("a", "b", "c", "d")
values = st.sampled_from([None, 1, "x", (), 2.5])
items = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)


@given(st.lists(items, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KEYS), st.one_of(st.just("del"), values)), max_size=12))  # fmt: skip
def test_every_change_is_seen(dictionaries: list[dict[str, Any]], changes: list[tuple[int, str, Any]]) -> None:
    before = [dict(d) for d in dictionaries]
    held = [(d, k, v) for d in dictionaries for k, v in d.items()]
    absent = [(d, k) for d in dictionaries for k in KEYS if k not in d]
    watch = make_watch(held=held, absent=absent)
    usual = make_watch(usual=held)
    assert watch.check() == 2
    for place, key, value in changes:
        dictionary = dictionaries[place % len(dictionaries)]
        if value == "del":
            dictionary.pop(key, None)
        else:
            dictionary[key] = value
        same = all(
            d.keys() == b.keys() and all(d[k] is b[k] for k in b) for d, b in zip(dictionaries, before, strict=True)
        )
        kept = all(k in d and d[k] is v for d, k, v in held)
        assert watch.check() == (2 if same else 0)
        assert usual.check() == (2 if kept else 1)


def test_attributes_of_instances() -> None:
    class Holder:
        def __init__(self) -> None:
            self.flag = True

    holder = Holder()
    watch = make_watch(held=[(vars(holder), "flag", True)], absent=[(vars(holder), "forward")])
    for _ in range(3):  # by specialised bytecode, too
        for _ in range(20):
            assert watch.check() == 2
            holder.flag = True
        holder.flag = False
        assert watch.check() == 0
        holder.flag = True
        holder.forward = 1  # type: ignore[attr-defined]
        assert watch.check() == 0
        del holder.forward  # type: ignore[attr-defined]
        assert watch.check() == 2
