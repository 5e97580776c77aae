"""What a graph assumed of the Python state that was read while it was made, and whether that still holds."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import types
from typing import Any

import torch
from torch import nn

from resfuse import _core
from resfuse.capture.arguments import PLAIN_TYPES

ABSENT = object()
FAILS, HOLDS, USUAL = 0, 1, 2

_MOST_CONTAINERS = 1000
_DEEPEST = 4


@dataclasses.dataclass(frozen=True)
class Difference:
    """Something that is not as it was; ``structural`` where a module was replaced, removed or is of another class."""

    what: str
    structural: bool


def same_value(a: Any, b: Any) -> bool:
    """Whether code that read one value would have done the same with the other."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return bool(a.hex() == b.hex())
    if type(a) in PLAIN_TYPES:
        return bool(a == b)
    if type(a) in (tuple, torch.Size):
        return len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is types.MethodType:
        return a.__func__ is b.__func__ and a.__self__ is b.__self__
    return False


def same_contents(a: Any, b: Any) -> bool:
    """Whether two containers of one kind hold the same values in the same order."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(same_value(k, m) and same_value(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True))
    return all(same_value(x, y) for x, y in zip(a, b, strict=True))


class Assumptions:
    """Facts about Python objects, written down while a graph is made (`resfuse.capture.recorder`).

    Each fact is one that reading decided on: an attribute's value, an attribute that was not there, what a list or
    dictionary contained, a class, a global name. Tensors are no facts: graphs read them at each call.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[tuple[int, Any], tuple[dict[Any, Any], Any, Any]] = {}
        self._absent: dict[tuple[int, Any], tuple[dict[Any, Any], Any]] = {}
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._sets: dict[int, tuple[Any, Any]] = {}
        self._objects: dict[int, tuple[Any, type, dict[str, Any]]] = {}
        self._class_items: dict[tuple[type, str], Any] = {}
        self._cells: dict[int, tuple[Any, Any]] = {}
        self._empty: dict[int, dict[Any, Any]] = {}
        self._usual: list[tuple[dict[Any, Any], Any, Any]] = []
        self._names: dict[int, str] = {}
        for path, module in model.named_modules():
            state = vars(module)
            for name, holder in [("", state), *((n, state.get(n)) for n in ("_modules", "_parameters", "_buffers"))]:
                if isinstance(holder, dict):
                    self._names[id(holder)] = path if name in ("", "_modules", "_parameters", "_buffers") else name
        self._watch: _core.StateWatch | None = None
        self._plain: tuple[list[Any], list[Any], list[Any]] = ([], [], [])

    # Writing facts down.

    def holds_item(self, holder: dict[Any, Any], key: Any, value: Any, name: str = "") -> None:
        """``holder[key]`` is this value."""
        self._held.setdefault((id(holder), key), (holder, key, value))
        if name:
            self._names.setdefault(id(holder), name)
        self.watch_value(value)

    def lacks_item(self, holder: dict[Any, Any], key: Any) -> None:
        """``holder`` has no such key."""
        self._absent.setdefault((id(holder), key), (holder, key))

    def knows_item(self, holder: dict[Any, Any], key: Any) -> bool:
        """Whether the value of an item was written down."""
        return (id(holder), key) in self._held

    def is_empty(self, holder: dict[Any, Any]) -> None:
        """A dictionary has no items."""
        self._empty[id(holder)] = holder

    def is_class(self, module: Any) -> None:
        """An object is of its class, whose attributes are what they are, and keeps its dictionary."""
        self._objects.setdefault(id(module), (module, type(module), vars(module)))

    def class_has(self, kind: type, name: str) -> None:
        """A class has this very attribute."""
        if (kind, name) not in self._class_items:
            self._class_items[kind, name] = inspect.getattr_static(kind, name, ABSENT)

    def cell_holds(self, cell: Any, value: Any) -> None:
        """A closure's variable is this value."""
        self._cells.setdefault(id(cell), (cell, value))
        self.watch_value(value)

    def usually(self, holder: dict[Any, Any], key: Any, value: Any) -> None:
        """An item that has this value in most calls."""
        self._usual.append((holder, key, value))

    def watch_value(self, value: Any, depth: int = 0) -> None:
        """What a container or an object of other libraries holds, as far as code may look into it."""
        if type(value) in PLAIN_TYPES or isinstance(value, (torch.Tensor, nn.Module, type, types.ModuleType)):
            return
        if callable(value) or depth > _DEEPEST or id(value) in self._contents:
            return
        if isinstance(value, tuple):
            for item in value:
                self.watch_value(item, depth + 1)
            return
        if isinstance(value, (set, frozenset)):
            self._sets.setdefault(id(value), (value, value.copy()))
            return
        container = value if isinstance(value, (list, dict)) else getattr(value, "__dict__", None)
        if not isinstance(container, (list, dict)) or type(value).__module__.split(".")[0] in ("torch", "logging"):
            return
        if id(container) in self._contents or id(container) in self._empty or len(self._contents) >= _MOST_CONTAINERS:
            return
        copy = list(container) if isinstance(container, list) else dict(container)
        self._contents[id(container)] = container, copy
        for item in copy.values() if isinstance(copy, dict) else copy:
            self.watch_value(item, depth + 1)

    # Asking.

    def undo_changes(self) -> bool:
        """Gives containers their former contents back; whether any had changed."""
        changed = False
        for container, copy in (*self._contents.values(), *self._sets.values()):
            if isinstance(copy, (set, frozenset)):
                if container == copy:
                    continue
            elif len(copy) == len(container) and all(map(operator.is_, _items(copy), _items(container))):
                continue
            changed = True
            container.clear()
            container.extend(copy) if isinstance(container, list) else container.update(copy)
        return changed

    def watch(self) -> None:
        """Begins to watch, when all facts are there."""
        plain = [item for item in self._held.values() if type(item[2]) in (*PLAIN_TYPES, tuple, torch.Size)]
        others = [item for item in self._held.values() if type(item[2]) not in (*PLAIN_TYPES, tuple, torch.Size)]
        self._plain = plain, others, [item for item in self._absent.values() if item[1] == "forward"]
        self._watch = _core.StateWatch(
            list(self._held.values()),
            list(self._absent.values()),
            list(self._contents.values()),
            [(module, state) for module, _, state in self._objects.values()],
            list(self._cells.values()),
            list(self._empty.values()),
            self._usual,
        )

    def check(self) -> int:
        """FAILS, HOLDS, or USUAL where the usual items have their usual values as well."""
        assert self._watch is not None
        state = self._watch.check()
        if state and self._sets and any(container != copy for container, copy in self._sets.values()):
            return FAILS
        if state or self.differences():
            return state
        self._renew()
        return self._watch.check()

    def _renew(self) -> None:
        """Other objects have come with the same values, or classes with the same attributes: watches these."""
        self._held = {place: (holder, key, holder[key]) for place, (holder, key, _) in self._held.items()}
        contents = {}
        for place, (container, _) in self._contents.items():
            contents[place] = container, list(container) if isinstance(container, list) else dict(container)
        self._contents = contents
        self._cells = {place: (cell, cell.cell_contents) for place, (cell, _) in self._cells.items()}
        self.watch()

    def differences(self) -> list[Difference]:
        """What is no longer as it was, compared by value."""
        found: list[Difference] = []
        for holder, key, value in self._held.values():
            now = holder.get(key, ABSENT)
            if not same_value(value, now):
                structural = isinstance(value, nn.Module) or isinstance(now, nn.Module)
                found.append(Difference(f"{self._name(holder, key)} {_change(value, now)}", structural))
        for holder, key in self._absent.values():
            if key in holder:
                found.append(Difference(f"{self._name(holder, key)} is set", key == "forward"))
        for container, copy in (*self._contents.values(), *self._sets.values()):
            same = container == copy if isinstance(copy, (set, frozenset)) else same_contents(copy, container)
            if not same:
                structural = any(isinstance(item, nn.Module) for item in _items(copy))
                found.append(Difference(f"the contents of {self._container_name(container)} changed", structural))
        for module, kind, state in self._objects.values():
            if type(module) is not kind or vars(module) is not state:
                found.append(Difference(f"{self._names.get(id(state)) or 'the model'} is of another class", True))
        for (kind, name), value in self._class_items.items():
            if inspect.getattr_static(kind, name, ABSENT) is not value:
                found.append(Difference(f"{kind.__name__}.{name} was replaced", True))
        for cell, value in self._cells.values():
            if not same_value(value, cell.cell_contents):
                found.append(Difference(f"a variable of a closure {_change(value, cell.cell_contents)}", False))
        for holder in self._empty.values():
            if holder:
                found.append(Difference("there are hooks", False))
        return found

    def for_dynamo(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Items with numbers and the like, items with other values, and instances whose forward nobody patched: to be
        read in plain Python. Hooks are not in it, which Dynamo does not guard in plain models either.
        """
        return self._plain

    def _name(self, holder: dict[Any, Any], key: Any) -> str:
        return f"{self._names.get(id(holder), '')}.{key}".lstrip(".")

    def _container_name(self, container: Any) -> str:
        for holder, key, value in self._held.values():
            if value is container or getattr(value, "__dict__", None) is container:
                return self._name(holder, key)
        return "a container"


def _items(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [item for pair in container.items() for item in pair]
    return list(container)


def _change(before: Any, now: Any) -> str:
    if now is ABSENT:
        return "is gone"
    if type(now) in PLAIN_TYPES or type(now) is tuple:
        return f"is {now!r}, was {before!r}" if type(before) in (*PLAIN_TYPES, tuple) else f"is {now!r}"
    return f"is another {type(now).__name__}"
