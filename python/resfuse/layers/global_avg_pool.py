"""Other libraries' global average pools, running resfuse's kernel in training as well as in inference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from resfuse.engine.global_avg_pool import global_avg_pool2d
from resfuse.engine.pooling import replaces_torch


def is_global(output_size: Any) -> bool:
    """Whether an adaptive pool's output size means one pixel."""
    return output_size == 1 or tuple(output_size if isinstance(output_size, (tuple, list)) else ()) == (1, 1)


class FusedPool(nn.Module):
    """Mixed into the class of a global average pool: the same result from `global_avg_pool2d`."""

    @property
    def keepdim(self) -> bool:
        """Whether the result is [N, C, 1, 1] and not [N, C]."""
        return getattr(self, "flatten", False) is not True  # timm's attribute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, 1, 1] or [N, C]."""
        if not replaces_torch(x):
            return super().forward(x)  # type: ignore[no-any-return]  # for torch's own errors, and for its tools
        return global_avg_pool2d(x, keepdim=self.keepdim)

    def __prepare_scriptable__(self) -> nn.Module:
        """For ``torch.jit.script``: the plain module, which has the same attributes and no modules inside."""
        plain: nn.Module = object.__new__(vars(type(self))["_resfuse_plain"])
        plain.__dict__.update(self.__dict__)
        return plain


def _is_global_avg_pool(module: nn.Module) -> bool:
    kind = type(module)
    if kind is nn.AdaptiveAvgPool2d:
        return is_global(module.output_size)
    # timm's SelectAdaptivePool2d holds one of these two kinds.
    fast = kind.__name__ == "FastAdaptiveAvgPool" and kind.__module__.split(".")[0] == "timm"
    return fast and tuple(getattr(module, "dim", ())) == (2, 3)


def replace_pools(model: nn.Module, parts: Sequence[str]) -> None:
    """Turns the global average pools of a model (``nn.AdaptiveAvgPool2d(1)``, timm's) into resfuse's, in place.

    Those in its fused ``parts`` stay what they are: there the graph runs them on the same kernel.
    """
    for name, module in list(model.named_modules()):
        inside = any(not part or name == part or name.startswith(f"{part}.") for part in parts)
        if not inside and _is_global_avg_pool(module):
            module.__class__ = _pool_class(type(module))  # type: ignore[arg-type]  # classes do hash


@functools.cache
def _pool_class(cls: type[nn.Module]) -> type[nn.Module]:
    def reduce_ex(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _rebuild, (cls,), self.__dict__.copy()

    return type(
        cls.__name__,
        (FusedPool, cls),
        {"__reduce_ex__": reduce_ex, "__module__": cls.__module__, "__doc__": cls.__doc__, "_resfuse_plain": cls},
    )


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    pool: type[nn.Module] = _pool_class(cls)  # type: ignore[arg-type]  # classes do hash
    return pool.__new__(pool)
