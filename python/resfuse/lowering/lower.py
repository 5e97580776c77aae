"""Cuts a model's graph into programs and native nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from resfuse.capture.tracer import trace
from resfuse.lowering.computed_weights import mark_computed_weights
from resfuse.lowering.describe import describe
from resfuse.lowering.modules import is_leaf
from resfuse.lowering.moving import join_moving
from resfuse.lowering.op import Op, Unsupported
from resfuse.lowering.quantized_graphs import join_quantized
from resfuse.lowering.region import Region
from resfuse.lowering.shuffles import join_channel_shuffles
from resfuse.lowering.steps import Lowered, NativeStep, Step
from resfuse.lowering.transposed import join_transposed
from resfuse.lowering.written_norms import join_written_norms

_PASSIVE = ("placeholder", "output", "get_attr")


def lower(
    model: nn.Module,
    algorithm: str = "auto",
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Lowered:
    """Traces a model for calls with such arguments, and cuts its graph into steps; each program is as long as the graph
    allows.

    Raises:
        UnsupportedModelError: the model cannot be traced.
    """
    traced = trace(model, is_leaf, args, kwargs)
    with traced.recorder.watching():  # what decides here is assumed as well
        join_nodes(traced.graph, model)
        return Lowered(traced.graph, lower_graph(traced.graph, model, algorithm), traced)


def join_nodes(graph: fx.Graph, model: nn.Module) -> None:
    """Makes one node of each group that programs know as one, and none of what does nothing."""
    _drop_identities(graph, model)
    join_written_norms(graph, model)
    join_quantized(graph)
    join_channel_shuffles(graph)
    join_moving(graph)
    join_transposed(graph, model)


def _drop_identities(graph: fx.Graph, model: nn.Module) -> None:
    """Joins what goes into a node that does nothing with what reads it."""
    for node in list(graph.nodes):
        op = None if node.op in _PASSIVE else describe(node, model)
        if isinstance(op, Op) and op.kind == "identity":
            node.replace_all_uses_with(op.inputs[0])
            graph.erase_node(node)


def lower_graph(graph: fx.Graph, model: nn.Module, algorithm: str) -> tuple[Step, ...]:
    """The steps of a graph over a model's modules and attributes."""
    weights = mark_computed_weights(graph, model)
    steps: list[Step] = [NativeStep(node, "computes a weight", True, is_weight) for node, is_weight in weights.items()]
    region = Region(algorithm)
    attributes: set[fx.Node] = set()  # and what is computed from them alone
    for node in graph.nodes:
        if node.op == "get_attr":
            attributes.add(node)
        if node.op in _PASSIVE or node in weights:
            continue
        op: Op | Unsupported
        if node.all_input_nodes and all(source in attributes for source in node.all_input_nodes):
            attributes.add(node)
            op = Unsupported("computes with parameters alone")
        else:
            op = describe(node, model)
        reason = region.add(node, op) if isinstance(op, Op) else op.reason
        if reason is None:
            continue
        # A product with a number is fused where one of its factors is, and is nothing to begin a program with.
        if (not isinstance(op, Op) or op.kind == "scale") and region.is_independent_of(node):
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
        return
    steps.append(closed)
    steps.extend(NativeStep(node, "a part of a feature map, which others read") for node in region.parts_for_others())
