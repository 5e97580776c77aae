"""Symbolic tracing of a model down to the layers that matching knows."""

from __future__ import annotations

from torch import fx, nn

from resfuse.errors import UnsupportedModelError
from resfuse.layers import LEAF_TYPES
from resfuse.pooling import FusedPool


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LEAF_TYPES, FusedPool)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """The FX graph of a model (one tensor in is the usual case; any signature works).

    Raises:
        UnsupportedModelError: the model's Python code depends on values and cannot be traced.
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} cannot be traced by torch.fx, so its structure is not known: {error}"
        ) from error
