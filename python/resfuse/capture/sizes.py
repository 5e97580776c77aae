"""Sizes of values inside a graph as functions of its inputs: found by running what they depend on without data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase

MAY_WRITE = "may write"  # marks a node whose module may change something when it is called

_MOST_KEPT = 64


class _Runner(fx.Interpreter):
    """Runs a graph without data; nobody can see that it ran."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A module's result, without its hooks; a batch norm, which may count and gather statistics, is left alone."""
        module = self.fetch_attr(target)
        return args[0] if isinstance(module, _NormBase) else module.forward(*args, **kwargs)


class SizesOf:
    """A node's value, of which only the sizes count, for any inputs of a graph.

    The nodes that it depends on are copied: the graph itself is changed when it is lowered.
    """

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], model: nn.Module) -> None:
        self._model = model
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, fx.Node] = {}
        for source in inputs:
            self._copies[source] = self._graph.placeholder(source.name)
        self._graph.output(self._copy(node))
        self._attributes = [str(source.target) for source in self._copies if source.op == "get_attr"]
        self._kept: dict[Any, Any] = {}

    def _copy(self, node: fx.Node) -> fx.Node:
        waiting = [node]
        while waiting:
            last = waiting[-1]
            missing = [source for source in last.all_input_nodes if source not in self._copies]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if last not in self._copies:
                self._copies[last] = self._graph.node_copy(last, self._copies.__getitem__)
        return self._copies[node]

    def __call__(self, values: Sequence[Any]) -> Any:
        """The value for inputs that are tensors, or look like tensors and have a shape; it depends on no others."""
        shapes = [tuple(getattr(value, "shape", ())) for value in values]
        of_inputs = [(shape, _dtype(value)) for shape, value in zip(shapes, values, strict=True)]
        of_attributes = [getattr(operator.attrgetter(path)(self._model), "shape", None) for path in self._attributes]
        key = (*of_inputs, *of_attributes)
        if key not in self._kept:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = self._run(shapes, values)
        return self._kept[key]

    def _run(self, shapes: Sequence[tuple[int, ...]], values: Sequence[Any]) -> Any:
        runner = _Runner(self._model, graph=self._graph)
        casts = torch.is_autocast_enabled("cpu")  # it would keep weights of another type, without data, for later
        types = [torch.float32 if casts else _dtype(value) for value in values]
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast("cpu", enabled=False),
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.no_grad(),
        ):
            return runner.run(*[torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)])


def may_write(module: nn.Module) -> bool:
    """Whether a layer of a library may change its buffers when it is called, in ways not known here."""
    return next(module.buffers(), None) is not None and not isinstance(module, _NormBase)


def _dtype(value: Any) -> torch.dtype:
    dtype = getattr(value, "dtype", torch.float32)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def sizes_of(node: fx.Node, inputs: Sequence[fx.Node], model: nn.Module) -> Callable[[Sequence[Any]], Any] | None:
    """A node's sizes as a function of a graph's inputs; None where what it depends on may do more than compute."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.meta.get(MAY_WRITE) or (source.op == "placeholder" and not source.meta.get("tensor")):
            return None
        waiting += source.all_input_nodes
    return SizesOf(node, inputs, model)
