"""Cuts a model's graph into programs and native nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import fx, nn

from resfuse.capture.tracer import trace
from resfuse.lowering.computed_weights import mark_computed_weights
from resfuse.lowering.describe import describe
from resfuse.lowering.modules import is_leaf
from resfuse.lowering.moving import join_moving
from resfuse.lowering.op import Op, Unsupported, may_write, only_computes
from resfuse.lowering.quantized_graphs import join_quantized
from resfuse.lowering.region import Region
from resfuse.lowering.shuffles import join_channel_shuffles
from resfuse.lowering.steps import Lowered, NativeStep, ProgramStep, Step
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
        graph = traced.graph
        cutter, in_order = _cut(graph, model, algorithm, may_wait=True), None
        if cutter.reordered:
            in_order = Lowered(graph, tuple(_cut(graph, model, algorithm, may_wait=False).steps), traced)
        return Lowered(graph, tuple(cutter.steps), traced, in_order)


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
    return tuple(_cut(graph, model, algorithm, may_wait=True).steps)


def _cut(graph: fx.Graph, model: nn.Module, algorithm: str, may_wait: bool) -> _Cutter:
    """``may_wait``: native nodes that only compute may run later than in the graph, so that programs are longer."""
    weights = mark_computed_weights(graph, model)
    cutter = _Cutter(algorithm, may_wait)
    cutter.steps += [NativeStep(node, "computes a weight", True, is_weight) for node, is_weight in weights.items()]
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
        cutter.take(node, op)
    cutter.close()
    return cutter


class _Cutter:
    """Takes a graph's nodes in order: programs grow while what cannot join them may wait for their end."""

    def __init__(self, algorithm: str, may_wait: bool) -> None:
        self.steps: list[Step] = []
        self.reordered = False  # whether any node runs later than in the graph
        self._algorithm = algorithm
        self._may_wait = may_wait
        self._region = Region(algorithm)
        self._waiting: dict[fx.Node, str] = {}  # native nodes that run behind the region, and why they are native

    def take(self, node: fx.Node, op: Op | Unsupported) -> None:
        """The next node of the graph."""
        reads_waiting = any(source in self._waiting for source in node.all_input_nodes)
        if isinstance(op, Op):
            reason = "reads what a native node computes" if reads_waiting else self._region.add(node, op)
        else:
            reason = op.reason
        if reason is None:
            self.reordered = self.reordered or bool(self._waiting)
            return
        # A product with a number is fused where one of its factors is, and is nothing to begin a program with.
        alone = not isinstance(op, Op) or op.kind == "scale"
        writes = may_write(node) and bool(self._waiting)
        if alone and not reads_waiting and not writes and self._region.is_independent_of(node):
            self.steps.append(NativeStep(node, reason))  # before the region, which goes on
            return
        # What cannot join what came before may begin the next program.
        if isinstance(op, Op):
            region = Region(self._algorithm)
            reason = region.add(node, op)
            if reason is None:
                self.close()
                self._region = region
                return
        if self._may_wait and only_computes(node) and self._region.is_program():
            self._waiting[node] = reason
        else:
            self.close()
            self.steps.append(NativeStep(node, reason))

    def close(self) -> None:
        """Ends the region, and what has waited for it."""
        region, waiting = self._region, self._waiting
        self._region, self._waiting = Region(self._algorithm), {}
        closed = region.close() if region.nodes else ""
        if isinstance(closed, ProgramStep):
            self.steps.append(closed)
            parts = region.parts_for_others()
            self.steps.extend(NativeStep(node, "a part of a feature map, which others read") for node in parts)
            self.steps.extend(NativeStep(node, reason) for node, reason in waiting.items())
            return
        # No program, but nodes among those that waited: in the graph's order.
        reasons = {**dict.fromkeys(region.nodes, closed), **waiting}
        self.steps.extend(NativeStep(node, reasons[node]) for node in _in_order(reasons))


def _in_order(nodes: Collection[fx.Node]) -> list[fx.Node]:
    """Nodes of one graph as it has them."""
    if len(nodes) < 2:
        return list(nodes)
    graph = next(iter(nodes)).graph
    return [node for node in graph.nodes if node in nodes]
