"""Global average pooling."""

from __future__ import annotations

import torch
from torch import nn

from resfuse.engine.global_avg_pool import global_avg_pool2d


class GlobalAvgPool2d(nn.Module):
    """Each feature map becomes one number: its mean (Lin et al., "Network In Network", 2014, section 3.2).

    `resfuse.nn.functional.global_avg_pool2d` as a layer: any floating-point type and memory format, training included.

    Args:
        keepdim: return [N, C, 1, 1] instead of [N, C].
    """

    def __init__(self, keepdim: bool = True) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, 1, 1], or [N, C] without ``keepdim``; [C, H, W] likewise."""
        return global_avg_pool2d(x, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        return f"keepdim={self.keepdim}"
