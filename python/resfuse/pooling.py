"""Other libraries' global average pools, running resfuse's kernel in training as well as in inference."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from resfuse.nn.functional import global_avg_pool2d


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
        return global_avg_pool2d(x, keepdim=self.keepdim)


def _is_global_avg_pool(module: nn.Module) -> bool:
    kind = type(module)
    if kind is nn.AdaptiveAvgPool2d:
        return is_global(module.output_size)
    # timm's SelectAdaptivePool2d holds one of these two kinds.
    fast = kind.__name__ == "FastAdaptiveAvgPool" and kind.__module__.split(".")[0] == "timm"
    return fast and tuple(getattr(module, "dim", ())) == (2, 3)


def replace_pools(model: nn.Module) -> list[str]:
    """Turns the global average pools of a model (``nn.AdaptiveAvgPool2d(1)``, timm's) into resfuse's, in place.

    Returns:
        The paths of the modules that were changed.
    """
    replaced = [name for name, module in model.named_modules() if _is_global_avg_pool(module)]
    for name in replaced:
        module = model.get_submodule(name)
        module.__class__ = _pool_class(type(module))  # type: ignore[arg-type]  # classes do hash
    return replaced


@functools.cache
def _pool_class(cls: type[nn.Module]) -> type[nn.Module]:
    def reduce_ex(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _rebuild, (cls,), self.__dict__.copy()

    return type(
        cls.__name__,
        (FusedPool, cls),
        {"__reduce_ex__": reduce_ex, "__module__": cls.__module__, "__doc__": cls.__doc__},
    )


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    pool: type[nn.Module] = _pool_class(cls)  # type: ignore[arg-type]  # classes do hash
    return pool.__new__(pool)
