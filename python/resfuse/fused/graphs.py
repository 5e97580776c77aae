"""The graphs of one fused model: one for each pattern of arguments and each state of its Python objects."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from resfuse.capture.arguments import Key, read_arguments, replaced
from resfuse.capture.assumptions import ABSENT, FAILS, USUAL, Assumptions, Difference
from resfuse.capture.conditions import Condition
from resfuse.errors import UnsupportedModelError
from resfuse.lowering.binding import Binding
from resfuse.lowering.lower import lower
from resfuse.lowering.ranges import Ranges
from resfuse.lowering.steps import Lowered

_MOST_GRAPHS = 8
_FREE_LOWERINGS = 32  # before a model whose state changes all the time runs natively
_CALLS_A_LOWERING = 8
_LONGEST_WAIT = 64  # in calls, before a better graph is looked for again


@dataclasses.dataclass(frozen=True)
class Example:
    """Arguments like those of a call, without its tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Graph:
    """What a model computes for calls of one pattern while its assumptions hold."""

    def __init__(
        self,
        key: Key,
        assumptions: Assumptions,
        binding: Binding | None,
        reason: str = "",
        conditions: Sequence[Condition] = (),
        training_binding: Binding | None = None,
    ) -> None:
        self.key = key
        trace = None if binding is None else binding.lowered.trace
        self._conditions = conditions if trace is None else trace.conditions
        self.may_settle = trace is not None and trace.may_settle  # see `is_due`
        self.ran = False  # since that was asked
        self._uses, self._wait = 0, 1
        self.assumptions = assumptions
        self.binding = binding  # None: it cannot be traced
        self.training_binding = binding if training_binding is None else training_binding
        self.reason = reason
        self.example: Example | None = None  # what it was made for, unless that was a guess
        self.always_trains = binding is not None and binding.always_trains
        for norm in [] if binding is None else binding.norm_modules():
            assumptions.usually(vars(norm), "training", False)
        assumptions.watch()

    @classmethod
    def of(cls, lowered: Lowered, model: nn.Module, ranges: Ranges | None) -> Graph:
        """The graph of a lowered model."""
        trace, in_order = lowered.trace, lowered.in_order
        assert trace is not None
        training_binding = None if in_order is None else Binding(in_order, model)
        return cls(trace.key, trace.assumptions, Binding(lowered, model, ranges), training_binding=training_binding)

    def suits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call's inputs are of sizes for which it was made."""
        if not self._conditions:
            return True
        _, values = read_arguments(args, kwargs)
        return all(condition.holds(values) for condition in self._conditions)

    def is_due(self) -> bool:
        """Whether to look, before it is used once more, if the model's state allows for a better graph by now.

        Code that keeps what it computed (anchors of a detector) does so in its first call, which runs natively, and
        again when images are of another size. Code that does so in every call is looked at less and less often.
        """
        if not (self.may_settle and self.ran):
            return False
        self.ran = False
        self._uses += 1
        if self._uses < self._wait:
            return False
        self._uses, self._wait = 0, min(self._wait * 4, _LONGEST_WAIT)
        return True

    def waits_as(self, other: Graph | None) -> None:
        """Looks for a better graph as seldom as another one; None: in the next call."""
        self._wait = 1 if other is None else other._wait

    def unchanged(self) -> bool:
        """Whether its assumptions hold, in Python that Dynamo can read and guard."""
        if self._conditions:
            return False
        plain, held, absent = self.assumptions.for_dynamo()
        for holder, name, value in plain:  # Dynamo makes numbers and tuples anew
            if holder.get(name, ABSENT) != value:
                return False
        for holder, name, value in held:
            if holder.get(name, ABSENT) is not value:
                return False
        return not any([name in holder for holder, name in absent])


class Graphs:
    """Keeps a few graphs, the one used last first."""

    def __init__(
        self, model: nn.Module, algorithm: str, lowered: Lowered | None = None, ranges: Ranges | None = None
    ) -> None:
        self._algorithm = algorithm
        self._ranges = ranges
        self._lock = threading.RLock()
        self.kept: list[Graph] = []
        self._lowerings = 0
        self._calls = 0
        self.changed: str | None = None  # what the last new graph was made for
        if lowered is not None and lowered.trace is not None:
            self._keep(Graph.of(lowered, model, ranges))

    def quantize(self, ranges: Ranges) -> None:
        """Whole programs of all graphs compute with bytes from now on."""
        with self._lock:
            self._ranges = ranges
            for binding in self.bindings():
                for bound in binding.programs:
                    bound.quantize(ranges)

    def count_call(self) -> None:
        """Models that are called often may be lowered often."""
        self._calls += 1

    def find(self, model: nn.Module, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Graph, int]:
        """The graph for a call, made if there is none, and what its assumptions' check said."""
        self.count_call()
        first = self.kept[0] if self.kept else None
        due: Graph | None = None
        if first is not None and first.key == key:
            state = first.assumptions.check()
            if state != FAILS and first.suits(args, kwargs):
                if not first.is_due():
                    return first, state
                due = first
        with self._lock:
            return self._find_other(model, key, args, kwargs, due)

    def _find_other(
        self, model: nn.Module, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any], due: Graph | None
    ) -> tuple[Graph, int]:
        found: list[Difference] = []
        may_lower = self._lowerings < _FREE_LOWERINGS + self._calls // _CALLS_A_LOWERING
        for graph in sorted(self.kept, key=lambda graph: graph.may_settle):
            if graph.key != key:
                continue
            state = graph.assumptions.check()
            if state != FAILS:
                if not graph.suits(args, kwargs):
                    continue
                if graph is due and may_lower:
                    break
                self._use(graph, due)
                return graph, state
            differences = graph.assumptions.differences()
            found = found or differences
            if any(difference.structural for difference in differences):
                self.kept.remove(graph)  # and the modules that it was made for
        if found:
            self.changed = found[0].what
        if not may_lower:
            return Graph(key, Assumptions(model), None, f"its state changes from call to call ({self.changed})"), FAILS
        graph = self._make(model, key, args, kwargs)
        self._use(graph, due)
        return graph, graph.assumptions.check()

    def _use(self, graph: Graph, due: Graph | None) -> None:
        """The graph comes first, where one was due that may be replaced by a better one."""
        if due is not None and due is not graph:
            if graph.may_settle:  # no better
                graph.waits_as(due)
                if due in self.kept:  # no other thread has replaced it
                    self.kept.remove(due)
            else:
                due.waits_as(None)
        if graph in self.kept:
            self.kept.remove(graph)
        self._keep(graph)

    def _make(self, model: nn.Module, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
        self._lowerings += 1
        _, values = read_arguments(args, kwargs)
        # Code may ask for sizes.
        shapes = [torch.empty(v.shape, device="meta") if isinstance(v, torch.Tensor) else v for v in values]
        seen: list[Any] = []
        example = Example(
            tuple(replaced(value, seen, shapes) for value in args),
            {name: replaced(value, seen, shapes) for name, value in kwargs.items()},
        )
        try:
            lowered = lower(model, self._algorithm, example.args, example.kwargs)
        except UnsupportedModelError as error:
            assumptions = error.assumptions or Assumptions(model)
            graph = Graph(key, assumptions, None, str(error), error.conditions)
        else:
            graph = Graph.of(lowered, model, self._ranges)
        if not any(value is kept for value in values for kept in shapes):
            graph.example = example  # objects of a call are not kept
        return graph

    def _keep(self, graph: Graph) -> None:
        self.kept.insert(0, graph)
        del self.kept[_MOST_GRAPHS:]

    def present(self, model: nn.Module) -> Graph:
        """The graph for calls like the last one, with the model as it is now."""
        example = self.kept[0].example if self.kept else None
        if example is None:
            for graph in self.kept:
                if graph.assumptions.check() != FAILS:
                    return graph
            try:
                lowered = lower(model, self._algorithm)
            except UnsupportedModelError as error:
                return Graph((), error.assumptions or Assumptions(model), None, str(error))
            graph = Graph.of(lowered, model, self._ranges)
            self._keep(graph)
            return graph
        key, _ = read_arguments(example.args, example.kwargs)
        return self.find(model, key, example.args, example.kwargs)[0]

    def bindings(self) -> Sequence[Binding]:
        """Of all graphs that are kept."""
        return [graph.binding for graph in self.kept if graph.binding is not None]

    def trains(self, graph: Graph, state: int) -> bool:
        """Whether a batch norm of a graph takes its statistics from the batch."""
        if state == USUAL:
            return graph.always_trains
        return graph.binding is not None and graph.binding.trains()
