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
    ) -> None:
        self.key = key
        trace = None if binding is None else binding.lowered.trace
        self._conditions = conditions if trace is None else trace.conditions
        self.assumptions = assumptions
        self.binding = binding  # None: it cannot be traced
        self.reason = reason
        self.example: Example | None = None  # what it was made for, unless that was a guess
        self.always_trains = binding is not None and binding.always_trains
        for norm in [] if binding is None else binding.norm_modules():
            assumptions.usually(vars(norm), "training", False)
        assumptions.watch()

    def suits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call's inputs are of sizes for which it was made."""
        if not self._conditions:
            return True
        _, values = read_arguments(args, kwargs)
        return all(condition.holds(values) for condition in self._conditions)

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
            self._keep(Graph(lowered.trace.key, lowered.trace.assumptions, Binding(lowered, model, ranges)))

    def quantize(self, ranges: Ranges) -> None:
        """Whole programs of all graphs compute with bytes from now on."""
        with self._lock:
            self._ranges = ranges
            for binding in self.bindings():
                for bound in binding.programs:
                    bound.quantize(ranges)

    def find(self, model: nn.Module, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Graph, int]:
        """The graph for a call, made if there is none, and what its assumptions' check said."""
        self._calls += 1
        first = self.kept[0] if self.kept else None
        if first is not None and first.key == key and first.suits(args, kwargs):
            state = first.assumptions.check()
            if state != FAILS:
                return first, state
        with self._lock:
            return self._find_other(model, key, args, kwargs)

    def _find_other(
        self, model: nn.Module, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Graph, int]:
        found: list[Difference] = []
        for graph in list(self.kept):
            if graph.key != key or not graph.suits(args, kwargs):
                continue
            state = graph.assumptions.check()
            if state != FAILS:
                self.kept.remove(graph)
                self.kept.insert(0, graph)
                return graph, state
            differences = graph.assumptions.differences()
            found = found or differences
            if any(difference.structural for difference in differences):
                self.kept.remove(graph)  # and the modules that it was made for
        if found:
            self.changed = found[0].what
        if self._lowerings >= _FREE_LOWERINGS + self._calls // _CALLS_A_LOWERING:
            return Graph(key, Assumptions(model), None, f"its state changes from call to call ({self.changed})"), FAILS
        graph = self._make(model, key, args, kwargs)
        self._keep(graph)
        return graph, graph.assumptions.check()

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
            assert lowered.trace is not None
            graph = Graph(key, lowered.trace.assumptions, Binding(lowered, model, self._ranges))
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
            assert lowered.trace is not None
            graph = Graph(lowered.trace.key, lowered.trace.assumptions, Binding(lowered, model, self._ranges))
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
