"""Memory of feature maps that no user holds: what training keeps for backward, what is copied before a user sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resfuse import _core


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An uninitialised [N, C, H, W] tensor of float32, bfloat16 or float16 in channels_last memory.

    It comes from the core's heap, whose pages are mapped already: fresh memory costs several times what writing does.
    """
    return torch.from_numpy(_core.empty(shape, dtype.itemsize)).view(dtype)


def dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it in channels_last memory."""
    return x.contiguous(memory_format=torch.channels_last)
