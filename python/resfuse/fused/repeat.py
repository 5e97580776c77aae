"""Calls like the last one.

What a call costs beside its kernels is a tenth of a small network's time. Nearly all of it is asking whether all is as
it was: modules, parameters, their values. Where the last call ran one program and nothing else, the next one begins
with that program and asks meanwhile.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch

from resfuse.capture.arguments import ONE_TENSOR
from resfuse.capture.assumptions import FAILS
from resfuse.engine.executor import executor_of
from resfuse.fused.calls import autocast_dtype, tool_reason
from resfuse.fused.graphs import Graph, Graphs
from resfuse.lowering.binding import Binding, BoundProgram, watcher


class Repeat:
    """What a call ran: one program as a whole."""

    def __init__(self, graphs: Graphs, graph: Graph, binding: Binding, bound: BoundProgram, x: torch.Tensor) -> None:
        self._graphs, self._graph, self._binding, self._bound = graphs, graph, binding, bound
        self._shape, self._stride, self._dtype = x.shape, x.stride(), x.dtype
        parameters = bound.parameters()
        self._text, whole = bound.whole([x], parameters, None)
        self._executor = executor_of(self._text, x.dtype, parameters[0].dtype if parameters else x.dtype)
        self._weights = weakref.ref(self._executor.weights(whole))  # they die with the parameters
        self._planes = tuple(bound.plain_outputs([x], [False], parameters))

    @classmethod
    def of(cls, graphs: Graphs, graph: Graph, binding: Binding, x: Any, dtype: torch.dtype | None) -> Repeat | None:
        """That of a call that has just computed in ``dtype``, without gradients; None if it may not be repeated so."""
        bound = binding.only_program
        if bound is None or graph.key != ONE_TENSOR or graph.may_settle or dtype not in (None, x.dtype):
            return None
        repeat = cls(graphs, graph, binding, bound, x)
        return repeat if set(repeat._planes) <= set(bound.handed_out) else None

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call looks like that one, by its arguments and by what is switched on in this thread."""
        if kwargs or len(args) != 1 or type(args[0]) is not torch.Tensor:
            return False
        x = args[0]
        return (
            x.layout is torch.strided
            and x.is_cpu
            and x.dtype is self._dtype
            and x.shape == self._shape
            and x.stride() == self._stride
            and not torch.is_grad_enabled()
            and autocast_dtype() is None
            and tool_reason(args) is None
            and watcher.get() is None
            and not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        )

    def run(self, x: torch.Tensor) -> Result | None:
        """The result; None where it was another call after all."""
        weights = self._weights()
        outputs = None if weights is None else self._executor.run_if([x], weights, self._present, self._planes)
        if outputs is None:
            return None
        self._graphs.count_call()
        self._bound.last_plan = self._executor.last_plan
        return Result(self._binding.result_of(self._bound, outputs))

    def _present(self) -> list[torch.Tensor] | None:
        """What the program computes with, while modules and parameter objects are what they were."""
        if self._graphs.kept[:1] != [self._graph]:
            return None
        state = self._graph.assumptions.check()
        if state == FAILS or self._graphs.trains(self._graph, state):
            return None
        try:
            text, parameters = self._bound.whole([], self._bound.parameters(), None)
        except KeyError:  # one is gone
            return None
        same = text is self._text and self._executor.weights(parameters) is self._weights()
        return parameters if same else None


@dataclasses.dataclass(frozen=True)
class Result:
    """What the model returned, which may be None."""

    value: Any
