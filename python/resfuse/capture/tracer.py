"""Tracing: the graph of what a module computes for calls of one pattern, and what that assumed.

Modules whose code does what a graph cannot repeat (it reads what it writes, draws random numbers, prints, turns
gradients off, ...) are left whole: one node calls such a module, and it is named with the reason.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from resfuse.capture.arguments import (
    Key,
    guessed_arguments,
    is_mapping,
    is_plain,
    is_sequence,
    plain_forward,
    read_arguments,
    rebuilt,
    replaced,
)
from resfuse.capture.assumptions import Assumptions
from resfuse.capture.conditions import SIZE_FUNCTIONS, Condition, Evaluate, question_about_sizes
from resfuse.capture.recorder import HOOKS, Recorder, ViolationError
from resfuse.capture.sizes import MAY_WRITE, may_write, sizes_of
from resfuse.errors import UnsupportedModelError

IsLeaf = Callable[[nn.Module], bool]

_MOST_NATIVE_MODULES = 32
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_forward_hooks_always_called",
)


@dataclasses.dataclass(frozen=True)
class Output:
    """Stands in the template of a result for one of the graph's outputs."""

    index: int


@dataclasses.dataclass(frozen=True)
class Trace:
    """A model's graph for calls of one pattern; its result has the form of ``template``."""

    key: Key
    graph: fx.Graph
    template: Any
    modules: tuple[str, ...]  # whose Python code the graph was made from
    native: Mapping[str, str]  # modules that are left whole for what their code does, and why
    assumptions: Assumptions
    recorder: Recorder
    conditions: tuple[Condition, ...]  # that the inputs' sizes must meet
    may_settle: bool  # whether later calls may have a graph with less that is left whole

    @property
    def keeps_state(self) -> bool:
        """Whether a call may set attributes, so that the next one's graph is another."""
        return bool(self.native) or any(node.target is set_attribute for node in self.graph.nodes)


class Constant:
    """A tensor that is no attribute of a model, as a function of a graph."""

    __name__ = "constant"
    __module__ = __name__

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __call__(self) -> torch.Tensor:
        return self._tensor


def set_attribute(path: str, name: str, value: Any) -> None:
    """Stands in a graph for a write to a module's attribute; `resfuse.lowering.native` carries it out."""
    raise NotImplementedError("set_attribute: is carried out by the runner of a graph")


# Where `torch.nn.utils.parametrize` keeps what computes a module's weights, and modules whose forward reads them once.
_PARAMETRIZATIONS = "parametrizations"
_PARAMETRIZED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_PURE = (getattr, *SIZE_FUNCTIONS)
_TENSOR_ATTRIBUTES = ("T", "mT", "H", "mH", "data", "real", "imag")
# Methods and functions whose results are no single tensors.
_OTHER_RESULTS = frozenset(
    {"size", "dim", "numel", "nelement", "ndimension", "item", "tolist", "stride", "storage_offset", "is_contiguous",
     "element_size", "data_ptr", "get_device", "is_floating_point", "is_complex", "type", "split", "chunk", "unbind",
     "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "topk", "sort", "kthvalue", "mode", "median",
     "nanmedian", "max", "min", "var_mean", "std_mean", "qr", "svd", "max_pool2d_with_indices", "unique",
     "unique_consecutive", "meshgrid", "broadcast_tensors", "register_hook", "shape"}
)  # fmt: skip


class _Proxy(fx.Proxy):
    """A value of the graph.

    ``x += y`` and its like are recorded as what they are; torch.fx makes them ``x = x + y``, which aliases do not see.
    """

    kind: type | None = None  # what it is known to be; for isinstance, see `resfuse.capture.recorder`

    def __getattr__(self, k: str) -> Any:
        if self.kind is torch.Tensor and not hasattr(torch.Tensor, k):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return fx.proxy.Attribute(self, k) if k not in _TENSOR_ATTRIBUTES else self._attribute(k)

    def _attribute(self, k: str) -> Any:
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __str__(self) -> str:
        raise fx.proxy.TraceError("its code prints or formats a tensor")

    def __format__(self, form: str) -> str:
        return str(self)

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def __len__(self) -> int:
        count = _parts_of(self.node)
        return super().__len__() if count is None else count

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _parts_of(node: fx.Node) -> int | None:
    """How many tensors a node makes of one, where its own arguments say so."""
    sizes = node.args[1] if len(node.args) > 1 else next(
        (node.kwargs[name] for name in ("chunks", "split_size_or_sections", "split_size") if name in node.kwargs), None
    )  # fmt: skip
    if node.target in (torch.chunk, "chunk") and isinstance(sizes, int):
        return sizes  # of fewer channels lowering says that they are too few
    if node.target in (torch.split, "split") and isinstance(sizes, (tuple, list)):
        return len(sizes)
    return None


def _is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is surely one tensor."""
    if node.op == "get_attr":
        return True
    if node.op == "call_module":
        return False  # `call_module` of the tracer knows
    name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    if node.target is getattr:
        return node.args[1] in _TENSOR_ATTRIBUTES and _is_tensor_argument(node.args[0])
    if node.target is operator.getitem:
        return _is_tensor_argument(node.args[0])
    if name in _OTHER_RESULTS:
        return False
    return any(_is_tensor_argument(source) for source in node.all_input_nodes)


def _returns_tensor(module: nn.Module, described: bool) -> bool:
    """Whether a leaf's result is surely one tensor."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) or getattr(module, "return_indices", False):
        return False
    return described or _of_torch(module)


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _is_hooked(module: nn.Module) -> bool:
    return any(vars(module).get(name) for name in HOOKS)


def _is_tensor_argument(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta.get("tensor"))


class _Tracer(fx.Tracer):
    def __init__(self, recorder: Recorder, native: Mapping[str, str], is_leaf: IsLeaf, guessed: bool) -> None:
        super().__init__()
        self._guessed = guessed
        self._is_leaf = is_leaf
        self.proxy_buffer_attributes = True
        self.traced: dict[str, None] = {"": None}
        self.template: Any = None
        self._recorder = recorder
        self._native = native
        self._attributes: dict[str, fx.Proxy] = {}
        self._autocast = torch.is_autocast_enabled("cpu")
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self.conditions: list[Condition] = []
        self._sizes: dict[fx.Node, Evaluate | None] = {}  # of values inside

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
        """The graph of a call of a model's own forward with arguments of this pattern."""
        self._args, self._kwargs = args, kwargs
        return self.trace(model)

    # The root's call, as it is made and not as its signature says.

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        _, inputs = read_arguments(self._args, self._kwargs)
        self._inputs = inputs
        proxies = []
        for index, value in enumerate(inputs):
            tensor = isinstance(value, torch.Tensor)
            proxy = self.create_proxy("placeholder", f"input_{index}", (), {})
            proxy.node.meta["tensor"] = tensor
            proxy.kind = torch.Tensor if tensor else type(value)  # type: ignore[attr-defined]
            proxies.append(proxy)
        values: list[Any] = []
        args = tuple(replaced(value, values, proxies) for value in self._args)
        kwargs = {name: replaced(value, values, proxies) for name, value in self._kwargs.items()}
        copies = [(a, list(a) if isinstance(a, list) else dict(a)) for a in (*args, *kwargs.values())
                  if isinstance(a, (list, dict))]  # fmt: skip
        forward = plain_forward(self.root)

        def call(*_: Any) -> list[Any]:
            recorder = self._recorder
            recorder.enter(self.root)
            recorder.saw_code(inspect.unwrap(type(self.root).forward))
            recorder.parameter, recorder.written = self._parameter, self._write
            before = recorder.random_state()
            with recorder.watching():
                result = forward(*args, **kwargs)
            recorder.parameter, recorder.written = None, None
            if before.changed():
                raise ViolationError("", "draws random numbers in Python")
            for container, copy in copies:
                if len(container) != len(copy) or any(a is not b for a, b in zip(container, copy, strict=True)):
                    raise ViolationError("", "changes its arguments")
            leaves: list[Any] = []
            self.template = self._result_template(result, leaves)
            return leaves

        return call, proxies

    def _result_template(self, value: Any, leaves: list[Any]) -> Any:
        if isinstance(value, (fx.Proxy, torch.Tensor)):
            leaves.append(value)
            return Output(len(leaves) - 1)
        if is_plain(value) or type(value) in (slice, range):
            return value
        if is_sequence(value):
            return rebuilt(value, [self._result_template(item, leaves) for item in value])
        if is_mapping(value):
            return type(value)((key, self._result_template(item, leaves)) for key, item in value.items())
        raise ViolationError("", f"returns a {type(value).__name__}")

    # Modules.

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        state = vars(m)
        if module_qualified_name in self._native or _is_hooked(m) or isinstance(m, torch.jit.ScriptModule):
            return True
        if _PARAMETRIZATIONS in (state.get("_modules") or ()):
            return bool(parametrize._cache_enabled) or not isinstance(m, _PARAMETRIZED)
        if _PARAMETRIZATIONS in module_qualified_name.split("."):
            return bool(parametrize._cache_enabled)  # else its code is what computes the weights
        return self._is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._recorder.mine():
            return forward(*args, **kwargs)
        path = self._recorder.path_of(m)
        if path is None:
            raise ViolationError(self._recorder.running[-1], f"calls a {type(m).__name__} that is no module of it")
        self._recorder.enter(m)
        if self.is_leaf_module(m, path):
            proxy = self.create_proxy("call_module", path, args, kwargs)
            if path in self._native:
                proxy.node.meta["native"] = self._native[path]
            known = (self._is_leaf(m) or _of_torch(m)) and path not in self._native
            proxy.node.meta[MAY_WRITE] = not known or _is_hooked(m) or may_write(m)
            proxy.node.meta["tensor"] = _returns_tensor(m, self._is_leaf(m))
            proxy.kind = torch.Tensor if proxy.node.meta["tensor"] else None  # type: ignore[attr-defined]
            return proxy
        self.traced[path] = None
        self._recorder.running.append(path)
        before = self._recorder.random_state()
        try:
            function = m.forward
            self._recorder.saw_code(function)
            result = function(*args, **kwargs)
        except Exception as error:
            if _PARAMETRIZATIONS not in m._modules:
                raise
            raise ViolationError(path, "computes its parametrized weights in ways that no graph repeats") from error
        finally:
            self._recorder.running.pop()
        if before.changed():
            raise ViolationError(path, "draws random numbers in Python")
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val

    # Nodes.

    def proxy(self, node: fx.Node) -> fx.Proxy:
        proxy = _Proxy(node, self)
        if node.op != "placeholder":
            node.meta["tensor"] = _is_tensor(node)
        if node.meta.get("tensor"):
            proxy.kind = torch.Tensor
        return proxy

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        who = self._recorder.running[-1]
        if kind.startswith("call"):
            if not torch.is_grad_enabled():
                raise ViolationError(who, "turns gradients off in its code")
            if torch.is_autocast_enabled("cpu") != self._autocast:
                raise ViolationError(who, "turns autocast on or off in its code")
        return super().create_node(kind, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor):
            return self.create_node("call_function", Constant(a), (), {})
        if isinstance(a, nn.Module):
            path = self._recorder.path_of(a)
            if path is None:
                raise NotImplementedError(f"argument of type {type(a).__name__}")
            return self.create_node("get_attr", path, (), {})
        return super().create_arg(a)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Over the parts of a tensor, where their number is known."""
        count = _parts_of(obj.node)
        return super().iter(obj) if count is None else iter([operator.getitem(obj, i) for i in range(count)])

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answers what code asks of its inputs' sizes; nobody knows those of a guessed call, whose code is told no."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]

        def inside(node: fx.Node) -> Evaluate | None:
            if node not in self._sizes:  # code asks for height and width
                self._sizes[node] = sizes_of(node, placeholders, self.root)
            return self._sizes[node]

        evaluate = question_about_sizes(obj.node, placeholders, inside)
        if evaluate is None:
            return super().to_bool(obj)
        with self._recorder.looking_away():
            answer = not self._guessed and bool(evaluate(self._inputs))
        self.conditions.append(Condition(evaluate, answer))
        return answer

    def _parameter(self, path: str, name: str) -> fx.Proxy:
        target = f"{path}.{name}".lstrip(".")
        if target not in self._attributes:
            self._attributes[target] = self.create_proxy("get_attr", target, (), {})
        return self._attributes[target]

    def _write(self, path: str, name: str, value: Any) -> None:
        try:
            self.create_node("call_function", set_attribute, (path, name, self.create_arg(value)), {})
        except NotImplementedError as error:
            who = self._recorder.running[-1]
            raise ViolationError(who, f"sets {name} to a {type(value).__name__}") from error


def trace(
    model: nn.Module,
    is_leaf: IsLeaf,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Trace:
    """The FX graph of a model for calls of one pattern; without arguments, of the usual call.

    ``is_leaf`` says at which modules tracing stops although their code could be traced.

    Raises:
        UnsupportedModelError: the model's Python code depends on values and cannot be traced. Its ``assumptions`` hold
            what was read until then.
    """
    native: dict[str, str] = {}
    may_settle, guessed = False, args is None
    while True:
        recorder = Recorder(model)
        for name in _GLOBAL_HOOKS:
            hooks = getattr(torch_module, name, None)
            if isinstance(hooks, dict) and hooks:
                recorder.assumptions.watch_value(hooks)
                raise _unsupported(model, "there are global hooks, which must see all modules", recorder)
            if isinstance(hooks, dict):
                recorder.assumptions.is_empty(hooks)
        tracer = _Tracer(recorder, native, is_leaf, guessed)
        try:
            if args is None:
                args, kwargs = guessed_arguments(model.forward)
            with torch.enable_grad(), recorder.no_effects():
                graph = tracer.run(model, args, dict(kwargs or {}))
        except ViolationError as violation:
            if not violation.path or violation.path in native or len(native) >= _MOST_NATIVE_MODULES:
                raise _unsupported(model, f"it {violation.reason}", recorder, tracer) from violation
            native[violation.path] = violation.reason
            may_settle = may_settle or violation.once
            continue
        except Exception as error:
            raise _unsupported(model, str(error), recorder, tracer) from error
        _drop_assertions(graph)
        key, _ = read_arguments(args, kwargs or {})
        return Trace(
            key,
            graph,
            tracer.template,
            tuple(tracer.traced),
            native,
            recorder.assumptions,
            recorder,
            tuple(tracer.conditions),
            may_settle,
        )


def _unsupported(
    model: nn.Module, reason: str, recorder: Recorder, tracer: _Tracer | None = None
) -> UnsupportedModelError:
    error = UnsupportedModelError(
        f"model: {type(model).__name__} cannot be traced by torch.fx, so its structure is not known: {reason}"
    )
    error.assumptions = recorder.assumptions
    error.conditions = () if tracer is None else tuple(tracer.conditions)
    return error


def _drop_assertions(graph: fx.Graph) -> None:
    """Without assertions about what layers compute, which hold by their structure; those about the inputs stay."""
    of_inputs: set[fx.Node] = set()
    for node in graph.nodes:
        pure = node.op == "call_function" and node.target in _PURE
        if node.op == "placeholder" or (pure and all(source in of_inputs for source in node.all_input_nodes)):
            of_inputs.add(node)
    for node in reversed(list(graph.nodes)):
        checks = node.op == "call_function" and node.target is torch._assert
        checks = checks and not all(source in of_inputs for source in node.all_input_nodes)
        if checks or (not node.users and node.op == "call_function" and node.target in _PURE):
            graph.erase_node(node)
