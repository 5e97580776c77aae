"""Global average pooling."""

from __future__ import annotations

import torch
from torch import nn


class GlobalAvgPool2d(nn.Module):
    """Each feature map becomes one number: its mean (Lin et al., "Network In Network", 2014, section 3.2).

    Args:
        keepdim: return [N, C, 1, 1] instead of [N, C].
    """

    def __init__(self, keepdim: bool = True) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, 1, 1], or [N, C] without ``keepdim``."""
        return x.mean((2, 3), keepdim=self.keepdim)

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        return f"keepdim={self.keepdim}"
