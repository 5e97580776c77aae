"""Max-pooling that remembers one byte for each maximum, and its gradient; types other than programs' go to torch's."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from resfuse import _core
from resfuse.engine.executor import DTYPES
from resfuse.engine.memory import dense, empty
from resfuse.engine.spec import MaxPoolSpec
from resfuse.engine.views import view

Pads = tuple[int, int, int, int]  # top, left, bottom, right
_MOST_KERNEL = 8


def covers(layer: MaxPoolSpec) -> bool:
    """Whether these kernels compute a pool."""
    return layer.dilation == (1, 1) and max(layer.kernel_size) <= _MOST_KERNEL


def forward(
    x: torch.Tensor, layer: MaxPoolSpec, padding: Pads, extent: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maxima over windows and the tap (row * kernel width + column) that each of them was, uint8."""
    shape = (*x.shape[:2], *extent)
    taps = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    if x.dtype in DTYPES and x.numel() > 0:
        y = empty(shape, x.dtype)
        _core.max_pool_forward(
            view(dense(x)), view(y), view(taps), layer.kernel_size, layer.stride, padding,
            layer.ceil_mode, torch.get_num_threads(),
        )  # fmt: skip
        return y, taps
    windows = _windows(x, layer, padding, extent)
    return windows.max(2).values, taps.copy_(windows.max(2).indices)


def backward(
    grad: torch.Tensor, taps: torch.Tensor, layer: MaxPoolSpec, padding: Pads, like: torch.Tensor
) -> torch.Tensor:
    """The gradient of an input of ``like``'s shape."""
    if grad.dtype in DTYPES and grad.numel() > 0:
        dx = empty(like.shape, grad.dtype)
        _core.max_pool_backward(
            view(dense(grad)), view(dense(taps)), view(dx), layer.kernel_size, layer.stride,
            padding, layer.ceil_mode, torch.get_num_threads(),
        )  # fmt: skip
        return dx
    width = like.shape[3]
    taps = taps.long()
    rows = torch.arange(grad.shape[2])[:, None] * layer.stride[0] - padding[0] + taps // layer.kernel_size[1]
    columns = torch.arange(grad.shape[3]) * layer.stride[1] - padding[1] + taps % layer.kernel_size[1]
    dx = torch.zeros_like(like, dtype=grad.dtype, memory_format=torch.contiguous_format)
    dx.flatten(2).scatter_add_(2, (rows * width + columns).flatten(2), grad.flatten(2))
    return dense(dx)


def _windows(x: torch.Tensor, layer: MaxPoolSpec, padding: Pads, extent: tuple[int, int]) -> torch.Tensor:
    """[N, C, taps, OH, OW]; -inf outside the image."""
    top, left, bottom, right = padding
    sizes = [(extent[i] - 1) * layer.stride[i] + layer.kernel_size[i] for i in (0, 1)]  # with what ceil_mode adds
    x = F.pad(
        x, (left, max(right, sizes[1] - x.shape[3] - left), top, max(bottom, sizes[0] - x.shape[2] - top)),
        value=float("-inf"),
    )  # fmt: skip
    taps = [
        x[:, :, r :: layer.stride[0], s :: layer.stride[1]][:, :, : extent[0], : extent[1]]
        for r in range(layer.kernel_size[0])
        for s in range(layer.kernel_size[1])
    ]  # fmt: skip
    return torch.stack(taps, 2)
