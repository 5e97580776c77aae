"""What a fused model's file holds: its one program, as a call runs it, and the names of what goes in and out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.capture.arguments import is_mapping, is_sequence, read_arguments
from resfuse.capture.conditions import dimensions_asked
from resfuse.capture.tracer import Output
from resfuse.engine import ops
from resfuse.engine.spec import ProgramSpec
from resfuse.errors import UnsupportedModelError
from resfuse.fused.calls import autocast_dtype
from resfuse.fused.graphs import Graph
from resfuse.fused.module import FusedModule, fused_parts
from resfuse.lowering.binding import BoundProgram, watcher
from resfuse.lowering.steps import Lowered, NodeParameter, ParameterPath

# What the runtime computes behind a program: functions of the channels, or of single elements.
_BY_CHANNEL = {
    torch.softmax: "softmax", F.softmax: "softmax", "softmax": "softmax", nn.Softmax: "softmax",
    torch.log_softmax: "log_softmax", F.log_softmax: "log_softmax", "log_softmax": "log_softmax",
    nn.LogSoftmax: "log_softmax", torch.argmax: "argmax", "argmax": "argmax",
}  # fmt: skip
_BY_ELEMENT = (torch.sigmoid, F.sigmoid, "sigmoid", nn.Sigmoid)


@dataclasses.dataclass(frozen=True)
class FileInput:
    """A tensor that the model takes; ``size`` where it takes no other."""

    name: str
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class FileOutput:
    """A tensor that the model returns: an output of its program, and the functions behind it."""

    name: str
    output: int
    functions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Captured:
    """One program, its parameters as the call had them, and the model's inputs and outputs."""

    spec: ProgramSpec
    parameters: list[torch.Tensor]
    names: list[str]  # of the parameters
    dtype: torch.dtype  # that it computes in
    inputs: list[FileInput]
    outputs: list[FileOutput]


def capture(model: FusedModule, example: Sequence[Any]) -> Captured:
    """Calls a model and tells what ran.

    Raises:
        UnsupportedModelError: not all of it ran as one program; names the parts that did not.
    """
    if autocast_dtype() is not None:
        raise UnsupportedModelError("save: called under autocast; fuse with dtype= instead")
    calls: list[tuple[BoundProgram, str, list[torch.Tensor], list[torch.Tensor]]] = []

    def run(step: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        text, whole = step.whole(inputs, parameters, model._resfuse_dtype)
        calls.append((step, text, inputs, whole))
        return ops.run_program(inputs, whole, text, dtype=model._resfuse_dtype)

    fusion = model.fusion()
    token = watcher.set(run)
    try:
        with torch.no_grad():
            before = fusion.fused_calls
            model(*example)
    finally:
        watcher.reset(token)
    if fusion.fused_calls == before:
        raise UnsupportedModelError(f"save: {type(model).__name__} did not run fused: {fusion.native_reason}")
    key, values = read_arguments(tuple(example), {})
    graph, _ = fusion.graphs.find(model, key, tuple(example), {})
    assert graph.binding is not None
    lowered = graph.binding.lowered
    heads = _heads(model, lowered)
    step, text, inputs, parameters = calls[0]
    placeholders = [node.name for node in lowered.graph.nodes if node.op == "placeholder"]
    of_tensors = dict(zip(placeholders, values, strict=True))
    foreign = [name for name in step.inputs if not isinstance(of_tensors.get(name), torch.Tensor)]
    unread = [name for name in placeholders if name not in step.inputs]
    if foreign or unread:
        raise UnsupportedModelError(f"save: want a program that reads the model's inputs, here it reads {step.inputs}")
    computed = {node.name for node in lowered.computed_weights}
    names = [_name(parameter, computed) for parameter in step.step.parameters]
    names += [f"input_means.{i}" for i in range(len(parameters) - len(names))]
    dtype = model._resfuse_dtype or inputs[0].dtype
    fixed = _sizes_matter(graph, values)
    called = _input_names(model, example, placeholders)
    files = [
        FileInput(called[name], (x.shape[2], x.shape[3]) if fixed else None)
        for name, x in zip(step.inputs, inputs, strict=True)
    ]
    return Captured(ProgramSpec.from_text(text), parameters, names, dtype, files, heads)


def _name(parameter: ParameterPath | NodeParameter, computed: Collection[str]) -> str:
    if isinstance(parameter, ParameterPath):
        return f"{parameter.module}.{parameter.name}".lstrip(".")
    return f"computed.{parameter.name}" if parameter.name in computed else parameter.name


def _input_names(model: FusedModule, example: Sequence[Any], placeholders: Sequence[str]) -> dict[str, str]:
    """The names of the graph's inputs in the signature of the model's code, where they can be told."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    usual = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters[: len(example)])
    tensors = [p.name for p, value in zip(parameters, example, strict=False) if isinstance(value, torch.Tensor)]
    if not usual or len(tensors) != len(placeholders):
        return {name: name for name in placeholders}
    return dict(zip(placeholders, tensors, strict=True))


def require_whole(model: nn.Module) -> FusedModule:
    """The model, where it is fused as a whole; raises UnsupportedModelError that names the parts where not."""
    if isinstance(model, FusedModule):
        return model
    parts = [path for path, _ in fused_parts(model)]
    if not parts:
        raise UnsupportedModelError(f"fast: {type(model).__name__} is not fused; want what resfuse.fuse returned")
    rest = [name for name, child in model.named_children() if not isinstance(child, FusedModule)]
    raise UnsupportedModelError(
        f"fast: {type(model).__name__} is not fused as a whole: {', '.join(parts)} are, its own code"
        f"{' and ' + ', '.join(rest) if rest else ''} run natively"
    )


def _sizes_matter(graph: Graph, values: Sequence[Any]) -> bool:
    """Whether the graph holds for some image sizes only. Raises UnsupportedModelError where it is so for batches."""
    trace = graph.binding.lowered.trace if graph.binding is not None else None
    asked = set() if trace is None else dimensions_asked(trace.conditions, values)
    if 0 in asked:
        raise UnsupportedModelError("save: what the model computes depends on the batch")
    return bool(asked & {2, 3})


def _heads(model: nn.Module, lowered: Lowered) -> list[FileOutput]:
    natives = {step.node: step.reason for step in lowered.natives}
    programs = lowered.programs
    heads: dict[fx.Node, tuple[fx.Node, tuple[str, ...]]] = {}
    wrong: list[str] = []
    if len(programs) == 1:
        same = dict(programs[0].aliases)
        for node in programs[0].outputs:
            heads[node] = node, ()
        for node, other in same.items():
            heads[node] = other, ()
    for node in lowered.graph.nodes:
        if node not in natives:
            continue
        function = head_function(node, model, lowered)
        source = node.args[0] if node.args else None
        if function is None or not isinstance(source, fx.Node) or source not in heads:
            wrong.append(f"{node.name} ({natives[node]})")
            continue
        first, functions = heads[source]
        heads[node] = first, (*functions, function)
        if functions and functions[-1] == "argmax":
            wrong.append(f"{node.name} (behind argmax)")
    if len(programs) != 1 or wrong:
        what = f"it makes {len(programs)} programs" if len(programs) != 1 else "not all of it is fused"
        listed = "; ".join(wrong) or "the parts between them"
        raise UnsupportedModelError(f"save: want a model that is one program, {what}; natively run: {listed}")
    returned = next(node for node in lowered.graph.nodes if node.op == "output").args[0]
    results = returned if isinstance(returned, (tuple, list)) else (returned,)
    assert lowered.trace is not None
    found: list[FileOutput] = []
    for name, index in _names(lowered.trace.template, ""):
        node = results[index]
        if not isinstance(node, fx.Node) or node not in heads:
            raise UnsupportedModelError(f"save: its output {name or 'output'} comes from no program")
        first, functions = heads[node]
        found.append(FileOutput(name or "output", list(programs[0].outputs).index(first), functions))
    if not found:
        raise UnsupportedModelError("save: the model returns no tensors")
    twice = [o.name for i, o in enumerate(found) if o.name in [other.name for other in found[:i]]]
    if twice:
        raise UnsupportedModelError(f"save: two of the model's outputs would be called {twice[0]!r}")
    return found


def _names(template: Any, prefix: str) -> Iterator[tuple[str, int]]:
    """The tensors of a result: where they stand in it, and their numbers among the graph's outputs."""
    if isinstance(template, Output):
        yield prefix, template.index
    elif is_mapping(template):
        for key, item in template.items():
            yield from _names(item, f"{prefix}.{key}".lstrip("."))
    elif is_sequence(template):
        for i, item in enumerate(template):
            yield from _names(item, f"{prefix}.{i}" if prefix else f"output.{i}")
    elif template is not None:
        raise UnsupportedModelError(f"save: the model returns a {type(template).__name__}, want tensors")


def head_function(node: fx.Node, model: nn.Module, lowered: Lowered) -> str | None:
    """The function of the runtime's that a native node is, or None."""
    target: Any = node.target
    arguments: Mapping[str, Any] = node.kwargs
    rest: tuple[Any, ...] = node.args[1:]
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        target, rest, arguments = type(module), (), {"dim": getattr(module, "dim", None)}
        if target is nn.Sigmoid:
            return "sigmoid"
    if target in _BY_ELEMENT:
        return "sigmoid" if not rest and not node.kwargs else None
    name = _BY_CHANNEL.get(target)
    if name is None:
        return None
    known = {"dim", "_stacklevel", "dtype", "keepdim"}
    if not set(arguments) <= known or arguments.get("dtype") is not None or arguments.get("keepdim") or len(rest) > 1:
        return None
    dim = rest[0] if rest else arguments.get("dim")
    two = _rank(node, lowered) == 2
    return name if dim == 1 or (dim == (-1 if two else -3)) else None


def _rank(node: fx.Node, lowered: Lowered) -> int:
    """Of the feature map behind a chain of functions."""
    source: Any = node
    program = lowered.programs[0]
    outputs = dict(zip(program.outputs, program.spec.outputs, strict=True))
    outputs |= {alias: outputs[other] for alias, other in program.aliases}
    while isinstance(source, fx.Node):
        if source in outputs:
            return outputs[source].rank
        source = source.args[0] if source.args else None
    return 4
