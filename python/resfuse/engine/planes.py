"""Feature maps in contiguous memory."""

from __future__ import annotations

import torch

from resfuse import _core
from resfuse.engine.views import view


def to_contiguous(x: torch.Tensor) -> torch.Tensor:
    """``x.contiguous()`` of a tensor [N, C, H, W]; in the core, several times as fast, where nothing is recorded."""
    if (
        torch.compiler.is_compiling()
        or (x.requires_grad and torch.is_grad_enabled())
        or not (type(x) is torch.Tensor and x.is_cpu and x.dtype is torch.float32 and x.numel() > 0)
        or not x.is_contiguous(memory_format=torch.channels_last)
        or x.is_contiguous()
    ):
        return x.contiguous()
    y = torch.empty(x.shape)
    _core.copy_to_planes(view(x), view(y), _core.usable_threads(torch.get_num_threads()))
    return y
