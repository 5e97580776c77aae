"""``torch.compile(model, backend="resfuse")``: the fusions of `resfuse.fuse` for any graph that Dynamo captures."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions

from resfuse.checks import require_choice
from resfuse.engine.executor import DTYPES
from resfuse.fused.calls import (
    asks_for_gradients,
    autocast_dtype,
    has_empty_batch,
    input_reason,
    tool_reason,
    train_program,
)
from resfuse.fused.fuse import ALGORITHMS
from resfuse.lowering.binding import Binding
from resfuse.lowering.lower import join_nodes, lower_graph
from resfuse.lowering.op import GIVEN, value_of
from resfuse.lowering.steps import Lowered, NativeStep, NodeParameter, ProgramStep, Step

Compiled = Callable[..., Any]
FALLBACKS = ("eager", "inductor")
# Of nodes that change what those behind them do: programs would move past them.
_MODES = (
    torch.amp.autocast_mode._enter_autocast,
    torch.amp.autocast_mode._exit_autocast,
    torch._C._set_grad_enabled,
)


def resfuse(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Compiled:
    """The backend of ``torch.compile``, under the name "resfuse".

    Graphs of inference and of training run fused, for any batch and image size that Dynamo lets in
    (``dynamic=True`` compiles once for all of them). What has no fused form, and graphs of other types than float32,
    bfloat16 and float16 on the CPU or with autocast regions in them, run as ``fallback`` says.

    Args:
        graph_module, example_inputs: from Dynamo.
        options: ``algorithm``, as in `resfuse.fuse`; ``fallback``: "eager" (default) runs the rest as it is, "inductor"
            compiles it.

    Raises:
        ValueError: an unknown option, or an unknown value of one.
    """
    algorithm, fallback = _options(options or {})
    if any(node.target in _MODES for node in graph_module.graph.nodes):
        return _compile(graph_module, example_inputs, fallback)
    _fix_numbers(graph_module.graph)
    join_nodes(graph_module.graph, graph_module)
    with _given(graph_module.graph, example_inputs):
        steps = lower_graph(graph_module.graph, graph_module, algorithm)
        if not any(isinstance(step, ProgramStep) and _is_computed(step, graph_module) for step in steps):
            return _compile(graph_module, example_inputs, fallback)
        if fallback == "inductor":
            steps = _compile_natives(graph_module, steps, algorithm)
    return CompiledGraph(graph_module, steps)


@contextlib.contextmanager
def _given(graph: fx.Graph, example_inputs: Sequence[Any]) -> Iterator[None]:
    """Shows a graph's arguments of now to those who decide by parameters' values."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, example_inputs, strict=False):
        node.meta[GIVEN] = value
    try:
        yield
    finally:
        for node in placeholders:
            node.meta.pop(GIVEN, None)


def _options(options: Mapping[str, Any]) -> tuple[str, str]:
    unknown = sorted(set(options) - {"algorithm", "fallback"})
    if unknown:
        raise ValueError(f"options: got {unknown[0]!r}, want algorithm or fallback")
    algorithm, fallback = options.get("algorithm", "auto"), options.get("fallback", "eager")
    require_choice("options: algorithm", algorithm, ALGORITHMS)
    require_choice("options: fallback", fallback, FALLBACKS)
    return algorithm, fallback


def _fix_numbers(graph: fx.Graph) -> None:
    """Symbolic floats (a batch norm's momentum and epsilon, under ``dynamic=True``) become what they are; reading them
    makes Dynamo guard them.
    """
    for node in list(graph.nodes):
        example = node.meta.get("example_value")
        if not isinstance(example, torch.SymFloat):
            continue
        for user in list(node.users):
            _replace_argument(user, node, float(example))
        graph.erase_node(node)


def _replace_argument(user: fx.Node, old: fx.Node, new: float) -> None:
    def replaced(node: fx.Node) -> Any:
        return new if node is old else node

    user.args = fx.node.map_arg(user.args, replaced)
    user.kwargs = fx.node.map_arg(user.kwargs, replaced)


class CompiledGraph:
    """A graph whose programs run fused; Dynamo's guards stand before it."""

    def __init__(self, graph_module: fx.GraphModule, steps: tuple[Step, ...]) -> None:
        self._module = graph_module
        self.binding = Binding(Lowered(graph_module.graph, steps), graph_module)
        programs = self.binding.lowered.programs
        read = {node.name for step in programs for node in step.inputs}
        for step in programs:
            real = [p for i, p in enumerate(step.parameters) if i not in step.spec.other_types]
            read |= {p.name for p in real if isinstance(p, NodeParameter)}
        placeholders = [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
        self._read = [i for i, name in enumerate(placeholders) if name in read]

    def __call__(self, *args: Any) -> Any:
        read = [args[i] for i in self._read]
        if (tool_reason(read) or input_reason(read)) is not None:
            return self._module(*args)
        learns = self.binding.trains() or asks_for_gradients([a for a in args if isinstance(a, torch.Tensor)])
        if learns and has_empty_batch([a for a in read if isinstance(a, torch.Tensor)]):
            return self._module(*args)
        return self.binding.run(self._module, args, train_program if learns else None, autocast=autocast_dtype())


def _is_computed(step: ProgramStep, module: fx.GraphModule) -> bool:
    """Whether its inputs are of types that programs compute."""
    values = [value_of(node, module) for node in step.inputs]
    return all(value is not None and value.dtype in DTYPES and value.is_cpu for value in values)


def _compile(module: fx.GraphModule, example_inputs: Sequence[Any], fallback: str) -> Compiled:
    if fallback == "eager":
        return module.forward
    from torch._inductor.compile_fx import compile_fx

    compiled: Compiled = compile_fx(module, list(example_inputs))  # type: ignore[assignment]
    return compiled


class _InductorPart:
    """Native nodes, compiled by Inductor for each layout of tensors that they meet. Not before the first call: programs
    hand on channels_last memory, which Dynamo's examples do not have.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._compiled: dict[tuple[Any, ...], Compiled] = {}

    def __call__(self, *args: torch.Tensor) -> Any:
        layouts = [(a.shape, a.stride(), a.dtype, a.device, a.requires_grad) for a in args]
        key = (torch.is_grad_enabled(), *layouts)
        compiled = self._compiled.get(key)
        if compiled is None:
            part = fx.GraphModule({}, copy.deepcopy(self._graph))
            compiled = self._compiled[key] = _compile(part, args, "inductor")
        result = compiled(*args)
        return result[0] if isinstance(result, (tuple, list)) and not self._returns_tuple() else result

    def _returns_tuple(self) -> bool:
        output = next(node for node in self._graph.nodes if node.op == "output")
        return isinstance(output.args[0], (tuple, list))


def _is_tensor_code(node: fx.Node) -> bool:
    """Whether a node makes a tensor of tensors: sizes and what is computed of them stay in the graph."""
    return all(isinstance(n.meta.get("example_value"), torch.Tensor) for n in (node, *node.all_input_nodes))


def _compile_natives(graph_module: fx.GraphModule, steps: tuple[Step, ...], algorithm: str) -> tuple[Step, ...]:
    """Makes a module of each run of native nodes, compiles it, and gives the steps of the graph that is left."""
    runs: list[list[fx.Node]] = [[]]
    for step in steps:
        if isinstance(step, NativeStep) and _is_tensor_code(step.node):
            runs[-1].append(step.node)
        elif runs[-1]:
            runs.append([])
    partitions = [dict.fromkeys(run) for run in runs if run]
    before = set(dict(graph_module.named_children()))
    fuse_by_partitions(graph_module, partitions)
    for name, part in list(graph_module.named_children()):
        if name in before or not isinstance(part, fx.GraphModule):
            continue
        part.forward = _InductorPart(part.graph)
    return lower_graph(graph_module.graph, graph_module, algorithm)
