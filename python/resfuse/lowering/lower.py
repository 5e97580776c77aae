"""Cuts a model's graph into programs and native nodes."""

from __future__ import annotations

from torch import nn

from resfuse.lowering.describe import Op, describe
from resfuse.lowering.region import Region
from resfuse.lowering.steps import Lowered, NativeStep, Step
from resfuse.lowering.tracer import trace

_PASSIVE = ("placeholder", "output", "get_attr")


def lower(model: nn.Module, algorithm: str = "auto") -> Lowered:
    """Traces a model and cuts its graph into steps; each program is as long as the graph allows.

    Raises:
        UnsupportedModelError: the model cannot be traced.
    """
    graph = trace(model)
    steps: list[Step] = []
    region = Region(model, algorithm)
    for node in graph.nodes:
        if node.op in _PASSIVE:
            continue
        op = describe(node, model)
        reason = region.add(node, op) if isinstance(op, Op) else op.reason
        if reason is None:
            continue
        _close(region, steps)
        region = Region(model, algorithm)
        # What cannot join what came before may begin the next program.
        if isinstance(op, Op):
            reason = region.add(node, op)
        if reason is not None:
            steps.append(NativeStep(node, reason))
    _close(region, steps)
    return Lowered(graph, tuple(steps))


def _close(region: Region, steps: list[Step]) -> None:
    if not region.nodes:
        return
    closed = region.close()
    if isinstance(closed, str):
        steps.extend(NativeStep(node, closed) for node in region.nodes)
    else:
        steps.append(closed)
