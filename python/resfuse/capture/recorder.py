"""Watches what code does with a model's Python state while the code is traced.

Reads of attributes become facts (`resfuse.capture.assumptions`), or graph nodes where the value is a tensor. Writes are
kept away from the model and handed to the tracer. Both by replacing `torch.nn.Module`'s attribute access meanwhile, as
torch.fx does with ``__getattr__``; other threads see what they always saw.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from resfuse.capture.assumptions import Assumptions
from resfuse.capture.code import globals_read

_REGISTRIES = ("_modules", "_parameters", "_buffers")
# Of a module: what is called around its forward.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)
_patching = threading.RLock()


class ViolationError(Exception):
    """Code did what a graph cannot repeat: the path of the module that has to run as it is, and why.

    ``once``: it may do so in its first call alone, as code that keeps what it computed.
    """

    def __init__(self, path: str, reason: str, once: bool = False) -> None:
        super().__init__(reason)
        self.path, self.reason, self.once = path, reason, once


class Recorder:
    """Records one tracing of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.assumptions = Assumptions(model)
        self.running: list[str] = [""]  # paths of the modules whose code runs, the innermost last
        self.parameter: Callable[[str, str], Any] | None = None  # makes a graph node of a tensor attribute
        self.written: Callable[[str, str, Any], None] | None = None
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._modules = dict(model.named_modules())
        self._thread: int | None = threading.get_ident()
        self._overlay: dict[tuple[int, str], Any] = {}
        self._readers: dict[tuple[int, Any], str] = {}
        self._code: set[int] = set()
        self._library: set[int] = set()

    def mine(self) -> bool:
        """Whether the thread that asks is the one that traces."""
        return threading.get_ident() == self._thread

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """What the tracing thread does meanwhile is no part of the graph."""
        thread, self._thread = self._thread, None
        try:
            yield
        finally:
            self._thread = thread

    def path_of(self, module: nn.Module) -> str | None:
        """The path of a module of the model."""
        return self._paths.get(id(module))

    # Modules.

    def enter(self, module: nn.Module) -> None:
        """A module is called: its class and its forward matter, and that it has no hooks."""
        self.assumptions.is_class(module)
        self._attribute_of_class(module, "forward")
        self._library_code(inspect.unwrap(type(module).forward))
        for name in HOOKS:
            hooks = vars(module).get(name)
            if isinstance(hooks, dict) and not hooks:
                self.assumptions.is_empty(hooks)
            else:
                self.assumptions.watch_value(hooks)
        self._place(module)

    def _place(self, module: nn.Module) -> None:
        """A module is where its path says."""
        path = self._paths.get(id(module), "")
        while path:
            parent, _, name = path.rpartition(".")
            children = vars(self._modules[parent])["_modules"]
            if self.assumptions.knows_item(children, name):
                return
            self.assumptions.holds_item(children, name, self._modules[path])
            path = parent

    def _attribute_of_class(self, module: nn.Module, name: str) -> None:
        state = vars(module)
        if name in state:
            self.assumptions.holds_item(state, name, state[name])
        else:
            self.assumptions.lacks_item(state, name)
            self.assumptions.class_has(type(module), name)

    # Attributes.

    def saw(self, module: nn.Module, name: str, value: Any) -> Any:
        """An attribute was found the usual way: in a module's dictionary or its class."""
        if name.startswith("__"):
            return value
        if (id(module), name) in self._overlay:
            return self._overlay[id(module), name]
        state = object.__getattribute__(module, "__dict__")
        if state.get(name, self) is not value:
            self._attribute_of_class(module, name)
            self.saw_code(value)
            return value
        path = self._paths.get(id(module))
        if isinstance(value, torch.Tensor):
            return value if self.parameter is None or path is None else self.parameter(path, name)
        self._reads(state, name)
        self.assumptions.holds_item(state, name, value)
        if name in _REGISTRIES:
            self.assumptions.watch_value(value)
        elif callable(value):
            self.saw_code(value)
        return value

    def look_up(self, module: nn.Module, name: str, usual: Callable[[nn.Module, str], Any]) -> Any:
        """An attribute that is in none of these places: a child, a parameter, a buffer, or nothing."""
        if (id(module), name) in self._overlay:
            return self._overlay[id(module), name]
        state = object.__getattribute__(module, "__dict__")
        self.assumptions.lacks_item(state, name)
        for registry_name in ("_parameters", "_buffers", "_modules"):
            registry = state.get(registry_name)
            if registry is None:
                continue
            if name not in registry:
                self.assumptions.lacks_item(registry, name)
                continue
            value, path = registry[name], self._paths.get(id(module))
            if isinstance(value, torch.Tensor):
                return value if self.parameter is None or path is None else self.parameter(path, name)
            self._reads(registry, name)
            self.assumptions.holds_item(registry, name, value)
            if isinstance(value, nn.Module) and self.parameter is None:
                self.enter(value)  # lowering looks into it
            return value
        return usual(module, name)

    def _reads(self, holder: dict[Any, Any], name: Any) -> None:
        self._readers.setdefault((id(holder), name), self.running[-1])

    def write(self, module: nn.Module, name: str, value: Any) -> None:
        """Code sets an attribute."""
        state = object.__getattribute__(module, "__dict__")
        path = self._paths[id(module)]
        who = self.running[-1]
        if any(name in (state.get(registry) or ()) for registry in _REGISTRIES):
            if self._is_own_tensor(path, name, value):
                return  # self.count += 1: the tensor itself has changed, in the graph
            raise ViolationError(who, f"replaces {path}.{name}".replace(" .", " "), once=True)
        if isinstance(value, (nn.Module, nn.Parameter)) and not isinstance(value, fx.Proxy):
            raise ViolationError(who, f"sets the module or parameter {name}")
        if self.assumptions.knows_item(state, name):
            reader = self._readers.get((id(state), name), who)
            raise ViolationError(_common(who, reader), f"reads and writes its attribute {name}", once=True)
        assert self.written is not None
        self.written(path, name, value)
        self._overlay[id(module), name] = value

    def _is_own_tensor(self, path: str, name: str, value: Any) -> bool:
        if not isinstance(value, fx.Proxy):
            return False
        node = value.node
        target = f"{path}.{name}".lstrip(".")
        while node.op in ("call_function", "call_method") and node.args and isinstance(node.args[0], fx.Node):
            named = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if not (str(named).startswith("i") or str(named).endswith("_")):
                return False
            node = node.args[0]
        return node.op == "get_attr" and node.target == target

    # Code.

    def saw_code(self, function: Any) -> None:
        """A function is about to run: the global names and the closure that it reads matter."""
        while True:
            if isinstance(function, functools.partial):
                function = function.func
            elif isinstance(function, (types.MethodType, classmethod, staticmethod)):
                function = function.__func__
            elif isinstance(function, property):
                function = function.fget
            else:
                break
        if not isinstance(function, types.FunctionType) or id(function) in self._code:
            return
        self._code.add(id(function))
        if function.__code__.co_filename.startswith((_TORCH, _OURS)):
            return
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self.assumptions.cell_holds(cell, value)
            self.saw_code(value)
        for first, *attributes in globals_read(function.__code__):
            if first in function.__globals__:
                self._global(function.__globals__, first, attributes)
        self.saw_code(getattr(function, "__wrapped__", None))

    def _library_code(self, function: Any) -> None:
        """The functions that a library's layer calls: they may be patched, too."""
        if not isinstance(function, types.FunctionType) or id(function) in self._library:
            return
        self._library.add(id(function))
        if not function.__code__.co_filename.startswith(_TORCH):
            self.saw_code(function)
            return
        for first, *attributes in globals_read(function.__code__):
            if first in ("F", "torch") and first in function.__globals__:
                self._global(function.__globals__, first, attributes)

    def _global(self, holder: dict[str, Any], name: str, attributes: list[str]) -> None:
        value = holder[name]
        self.assumptions.holds_item(holder, name, value, str(holder.get("__name__", "")))
        if isinstance(value, types.ModuleType):
            if attributes and attributes[0] in vars(value):
                self._global(vars(value), attributes[0], attributes[1:])
            return
        if isinstance(value, type):
            for attribute in attributes[:1]:
                self.assumptions.class_has(value, attribute)
        self.saw_code(value)

    # Around the tracing.

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Attribute access of modules, in this thread, passes through here."""
        module_class: Any = nn.Module
        before = {name: vars(nn.Module)[name] for name in ("__getattr__", "__setattr__", "__delattr__")}

        def read(module: nn.Module, name: str) -> Any:
            value = object.__getattribute__(module, name)
            return self.saw(module, name, value) if self.mine() else value

        def look_up(module: nn.Module, name: str) -> Any:
            usual = before["__getattr__"]
            return self.look_up(module, name, usual) if self.mine() else usual(module, name)

        def write(module: nn.Module, name: str, value: Any) -> None:
            if self.written is None or not self.mine() or self.path_of(module) is None:
                before["__setattr__"](module, name, value)
            else:
                self.write(module, name, value)

        def delete(module: nn.Module, name: str) -> None:
            if self.mine() and self.path_of(module) is not None:
                raise ViolationError(self.running[-1], f"deletes its attribute {name}")
            before["__delattr__"](module, name)

        with _patching:
            try:
                module_class.__getattribute__ = read
                module_class.__getattr__, module_class.__setattr__ = look_up, write
                module_class.__delattr__ = delete
                yield
            finally:
                del module_class.__getattribute__
                for name, value in before.items():
                    setattr(module_class, name, value)

    @contextlib.contextmanager
    def no_effects(self) -> Iterator[None]:
        """What code does beside computing tensors is undone, and named as what a graph cannot repeat."""
        state = _RandomState()
        usual_print, usual_isinstance = builtins.print, builtins.isinstance
        autocast: Any = torch.autocast
        usual_enter = autocast.__enter__

        def refuse(*args: Any, **kwargs: Any) -> None:
            if self.mine():
                raise ViolationError(self.running[-1], "prints")
            usual_print(*args, **kwargs)

        def enter(context: Any) -> Any:
            # Where autocast is off, turning it off leaves no other mark.
            if self.mine() and context.device == "cpu":
                raise ViolationError(self.running[-1], "turns autocast on or off in its code")
            return usual_enter(context)

        def is_instance(value: Any, kinds: Any) -> bool:
            # The model's code is told of a graph's value that it is a tensor, where that is known. Torch's code is not:
            # it would hand such a value to C++ as a tensor.
            kind = vars(value).get("kind") if usual_isinstance(value, fx.Proxy) else None
            if kind is None or not self.mine() or not _asks_as_user(sys._getframe(1)):
                return usual_isinstance(value, kinds)
            return issubclass(kind, kinds) or usual_isinstance(value, kinds)

        with _patching:
            builtins.print, builtins.isinstance = refuse, is_instance
            autocast.__enter__ = enter
            try:
                yield
                if self.assumptions.undo_changes():
                    raise ViolationError(self.running[-1], "changes lists or dictionaries")
            finally:
                builtins.print, builtins.isinstance = usual_print, usual_isinstance
                autocast.__enter__ = usual_enter
                self.assumptions.undo_changes()
                if state.changed():
                    state.restore()

    def random_state(self) -> _RandomState:
        """Of all generators that code may draw from."""
        return _RandomState()


class _RandomState:
    """The state of Python's, NumPy's and torch's generators."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._torch = torch.get_rng_state()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = None if numpy is None else numpy.random.get_state(legacy=False)

    def changed(self) -> bool:
        """Whether numbers have been drawn since."""
        now = _RandomState()
        if now._python != self._python or not torch.equal(now._torch, self._torch):
            return True
        if self._numpy is None or now._numpy is None:
            return False
        mine, theirs = self._numpy["state"], now._numpy["state"]
        return bool(mine["pos"] != theirs["pos"] or (mine["key"] != theirs["key"]).any())

    def restore(self) -> None:
        """Sets all generators back."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _asks_as_user(frame: types.FrameType) -> bool:
    code = frame.f_code
    return not code.co_filename.startswith((_TORCH, _OURS)) or code.co_name == "is_tensor"


def _common(a: str, b: str) -> str:
    """The path of the innermost module that holds both."""
    shared = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        shared.append(x)
    return ".".join(shared)
