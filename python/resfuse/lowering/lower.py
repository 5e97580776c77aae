"""Cuts a model's graph into programs and native nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import fx, nn

from resfuse.errors import UnsupportedModelError
from resfuse.lowering.describe import describe
from resfuse.lowering.modules import is_random
from resfuse.lowering.op import Op
from resfuse.lowering.region import Region
from resfuse.lowering.steps import Lowered, NativeStep, Step
from resfuse.lowering.tracer import Trace, trace

_PASSIVE = ("placeholder", "output", "get_attr")


def lower(model: nn.Module, algorithm: str = "auto") -> Lowered:
    """Traces a model and cuts its graph into steps; each program is as long as the graph allows.

    Raises:
        UnsupportedModelError: the model cannot be traced.
    """
    traced = trace(model)
    modes = _modes(model, traced)
    passed = drop_identities(traced.graph, model)
    return Lowered(traced.graph, lower_graph(traced.graph, model, algorithm), modes, passed)


def drop_identities(graph: fx.Graph, model: nn.Module) -> tuple[str, ...]:
    """Joins what goes into a node that does nothing with what reads it; gives the paths of the modules that did so."""
    passed: list[str] = []
    for node in list(graph.nodes):
        op = None if node.op in _PASSIVE else describe(node, model)
        if isinstance(op, Op) and op.kind == "identity":
            node.replace_all_uses_with(op.inputs[0])
            graph.erase_node(node)
            passed += op.modules
    return tuple(passed)


def lower_graph(graph: fx.Graph, model: nn.Module, algorithm: str) -> tuple[Step, ...]:
    """The steps of a graph over a model's modules and attributes."""
    steps: list[Step] = []
    region = Region(algorithm)
    for node in graph.nodes:
        if node.op in _PASSIVE:
            continue
        op = describe(node, model)
        reason = region.add(node, op) if isinstance(op, Op) else op.reason
        if reason is None:
            continue
        if not isinstance(op, Op) and region.is_independent_of(node):
            steps.append(NativeStep(node, reason))  # before the region, which goes on
            continue
        _close(region, steps)
        region = Region(algorithm)
        # What cannot join what came before may begin the next program.
        if isinstance(op, Op):
            reason = region.add(node, op)
        if reason is not None:
            steps.append(NativeStep(node, reason))
    _close(region, steps)
    return tuple(steps)


def _close(region: Region, steps: list[Step]) -> None:
    if not region.nodes:
        return
    closed = region.close()
    if isinstance(closed, str):
        steps.extend(NativeStep(node, closed) for node in region.nodes)
    else:
        steps.append(closed)


def _modes(model: nn.Module, traced: Trace) -> tuple[tuple[str, bool], ...]:
    """The modes under which the trace holds, if it would be another one under other modes."""
    inside = [(path, model.get_submodule(path)) for path in traced.modules]
    modes = tuple((path, module.training) for path, module in inside)
    leaves = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    random = [(path, model.get_submodule(path)) for path in leaves if is_random(model.get_submodule(path))]
    random_modes = tuple((path, module.training) for path, module in random)
    graphs = []
    for training in (False, True):
        if all(mode == training for _, mode in modes):
            graphs.append(_text(traced.graph))
            continue
        with _mode([module for _, module in inside], training):
            try:
                graphs.append(_text(trace(model).graph))
            except UnsupportedModelError:
                return (*modes, *random_modes)
    return random_modes if graphs[0] == graphs[1] else (*modes, *random_modes)


def _text(graph: fx.Graph) -> list[tuple[str, str, str, str]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


@contextlib.contextmanager
def _mode(modules: list[nn.Module], training: bool) -> Iterator[None]:
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode
