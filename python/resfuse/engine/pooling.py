"""Global average pooling of plain CPU tensors: checks, allocation and the call into the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from resfuse import _core
from resfuse.engine.weights import PLAIN_TENSORS

# The core's numbers of its element types.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def replaces_torch(x: object) -> bool:
    """Whether the kernel may take the place of ``nn.AdaptiveAvgPool2d(1)``: nobody could tell, but for the time."""
    if not isinstance(x, torch.Tensor) or not is_plain(x) or x.dim() != 4 or not x.is_floating_point():
        return False
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return dense and x.numel() > 0 and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1


def is_plain(x: torch.Tensor) -> bool:
    """Whether a tensor is only its memory, and nothing listens to the dispatcher."""
    return (
        type(x) in PLAIN_TENSORS
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and not torch._C._is_tracing()
        and not torch._C._autograd._profiler_enabled()
    )


def pooled_size(size: Sequence[Any], keepdim: bool) -> tuple[Any, ...]:
    """Shape of the result for an input of shape [N, C, H, W] or [C, H, W]."""
    return (*size[:-2], 1, 1) if keepdim else tuple(size[:-2])


def check_input(x: torch.Tensor) -> None:
    """Raises TypeError or ValueError for what global average pooling does not take."""
    if x.layout is not torch.strided or x.dtype not in _DTYPES:
        kind = f"dtype {x.dtype}" if x.layout is torch.strided else f"a {x.layout} tensor"
        raise TypeError(f"x: got {kind}, want a dense tensor of float32, float64, bfloat16 or float16")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, C, H, W] or [C, H, W]")
    if 0 in x.shape[-3:]:
        raise ValueError(f"x: got shape {list(x.shape)}, want at least one channel and one pixel")


def forward(x: torch.Tensor, keepdim: bool = True) -> torch.Tensor:
    """Means over the pixels of a plain CPU tensor, strides as they are."""
    shape, strides = x.shape, x.stride()
    dtype = _DTYPES.get(x.dtype)
    if dtype is None or len(shape) != 4 or 0 in shape:
        check_input(x)
        if len(shape) == 3:
            return forward(x.unsqueeze(0), keepdim).squeeze(0)
        return x.new_empty(pooled_size(shape, keepdim))
    n, c = shape[0], shape[1]
    if not keepdim:
        y = torch.empty_strided((n, c), (c, 1), dtype=x.dtype)
    elif strides[1] == 1 and c > 1:  # as torch does: a convolution behind it then keeps the memory format
        y = torch.empty_strided((n, c, 1, 1), (c, 1, c, c), dtype=x.dtype)
    else:
        y = torch.empty_strided((n, c, 1, 1), (c, 1, 1, 1), dtype=x.dtype)
    _core.global_avg_pool(x.data_ptr(), dtype, shape, strides, y.data_ptr(), torch.get_num_threads())
    return y


def backward(grad: torch.Tensor, size: Sequence[int], channels_last: bool) -> torch.Tensor:
    """The gradient with respect to an input of shape ``size``: ``grad / (H * W)`` for every pixel.

    Raises:
        TypeError, ValueError: ``grad`` is not the gradient of such an input's pooling.
    """
    dtype = _DTYPES.get(grad.dtype)
    if dtype is None or grad.layout is not torch.strided:
        raise TypeError(f"grad: got dtype {grad.dtype}, want float32, float64, bfloat16 or float16")
    if len(size) not in (3, 4) or tuple(grad.shape) not in (pooled_size(size, True), pooled_size(size, False)):
        raise ValueError(f"grad: got shape {list(grad.shape)}, want that of the pooled {list(size)}")
    memory_format = torch.channels_last if channels_last and len(size) == 4 else torch.contiguous_format
    dx = torch.empty(tuple(size), dtype=grad.dtype, memory_format=memory_format)
    if dx.numel() > 0:
        images = dx if len(size) == 4 else dx.unsqueeze(0)
        strides = grad.stride()[: len(size) - 2]
        _core.global_avg_pool_backward(
            grad.data_ptr(),
            strides if len(size) == 4 else (0, *strides),
            dx.data_ptr(),
            dtype,
            images.shape,
            images.stride(),
            torch.get_num_threads(),
        )
    return dx
