"""A call of a function or method in a graph, by the names of its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from resfuse.lowering.op import COMPUTED, Parameter, value_of, values_now
from resfuse.lowering.steps import NodeParameter, ParameterPath

Arguments = dict[str, Any]


class Call:
    """A node's arguments by name, and the model whose parameters they may be."""

    def __init__(self, node: fx.Node, names: tuple[str, ...], model: nn.Module) -> None:
        self.node = node
        self._arguments: Arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        self._model = model

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or its default."""
        return self._arguments.get(name, default)

    def unknown(self, *names: str) -> list[str]:
        """Names of arguments that are there and not expected."""
        return sorted(set(self._arguments) - set(names))

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The first argument."""
        source = self.get("input")
        return (source,) if isinstance(source, fx.Node) else ()

    def parameter(self, name: str) -> tuple[Parameter, torch.Tensor] | None:
        """A tensor argument that is a parameter or buffer, or computed from such, and what it is now; None for any
        other.
        """
        node = self.get(name)
        if not isinstance(node, fx.Node) or not (node.op in ("get_attr", "placeholder") or COMPUTED in node.meta):
            return None
        value = value_of(node, self._model)
        if value is None:
            return None
        if node.op != "get_attr":
            return NodeParameter(node.name), value
        module, _, attribute = str(node.target).rpartition(".")
        return ParameterPath(module, attribute), value

    def values(self, name: str) -> torch.Tensor | None:
        """A parameter's present values, where they can be known."""
        node = self.get(name)
        return values_now(node, self._model) if isinstance(node, fx.Node) else None
