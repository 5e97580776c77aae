"""Symbolic tracing of a model down to the layers that matching knows."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from resfuse.errors import UnsupportedModelError
from resfuse.lowering.modules import is_leaf


@dataclasses.dataclass(frozen=True)
class Trace:
    """A model's graph, and the paths of the modules whose Python code it was made from."""

    graph: fx.Graph
    modules: tuple[str, ...]


_PURE = (getattr, operator.eq, operator.ne, operator.getitem, operator.gt, operator.ge, operator.lt, operator.le)


class _Proxy(fx.Proxy):
    """Records ``x += y`` and its like as what they are; torch.fx makes them ``x = x + y``, which aliases do not see."""

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.traced: dict[str, None] = {"": None}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            self.traced[path] = None
        return super().call_module(m, forward, args, kwargs)


def trace(model: nn.Module) -> Trace:
    """The FX graph of a model (one tensor in is the usual case; any signature works).

    Raises:
        UnsupportedModelError: the model's Python code depends on values and cannot be traced.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} cannot be traced by torch.fx, so its structure is not known: {error}"
        ) from error
    _drop_assertions(graph)
    return Trace(graph, tuple(tracer.traced))


def _drop_assertions(graph: fx.Graph) -> None:
    """Without what checks an input's shape and nothing else: the layers behind it refuse what they cannot take."""
    for node in reversed(list(graph.nodes)):
        checks = node.op == "call_function" and node.target is torch._assert
        if checks or (not node.users and node.op == "call_function" and node.target in _PURE):
            graph.erase_node(node)
