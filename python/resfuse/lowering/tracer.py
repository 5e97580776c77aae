"""Symbolic tracing of a model down to the layers that matching knows."""

from __future__ import annotations

import dataclasses
import operator
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


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.traced: dict[str, None] = {"": None}

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
