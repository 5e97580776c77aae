"""Convolution and its two gradients on the core's kernels; whatever these do not cover goes to torch's own.

The gradient of the input is, at stride 1, a convolution of the output's gradient with the weights turned round, so it
is Winograd's where the convolution's own is. The gradient of the weights is a sum of outer products, of Winograd tiles
or of pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from resfuse import _core
from resfuse.engine.executor import DTYPES, Executor
from resfuse.engine.memory import dense, empty
from resfuse.engine.spec import ConvSpec, OutputSpec, ProgramSpec
from resfuse.engine.views import view

Maybe = torch.Tensor | None
Pads = tuple[int, int, int, int]  # top, left, bottom, right


def forward(x: torch.Tensor, weight: torch.Tensor, bias: Maybe, layer: ConvSpec, padding: Pads) -> torch.Tensor:
    """The convolution alone, without the layer's epilogue; in channels_last memory where the core computes it."""
    if x.dtype not in DTYPES:
        x = _pad(x, padding)
        return F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, layer.groups)
    executor = _executor(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups,
        layer.algorithm, bias is not None, False, x.dtype,
    )  # fmt: skip
    return executor.run_once([x], view(weight.float()), [] if bias is None else bias.tolist())


def weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, layer: ConvSpec, padding: Pads
) -> torch.Tensor:
    """The gradient of the weights, in their memory format; float32 where the core computes it."""
    if grad.dtype not in DTYPES or layer.groups > 1 or grad.numel() == 0:
        return _torch_backward(grad, x, weight, layer, padding, 1)
    dw = torch.empty_like(weight, dtype=torch.float32)
    _core.weight_gradient(
        view(dense(x)), view(dense(grad)), view(dw), layer.stride, layer.dilation, padding, layer.algorithm,
        torch.get_num_threads(),
    )  # fmt: skip
    return dw


def input_gradient(
    grad: torch.Tensor, weight: torch.Tensor, layer: ConvSpec, padding: Pads, like: torch.Tensor, more: Maybe
) -> torch.Tensor:
    """The gradient of an input of ``like``'s shape, plus ``more`` (whose memory may be the result's)."""
    if grad.numel() == 0:
        return torch.zeros_like(like) if more is None else more
    if grad.dtype in DTYPES and layer.groups == 1 and layer.dilation == (1, 1) and layer.stride != (1, 1):
        dx = empty(like.shape, grad.dtype) if more is None else dense(more)
        _core.input_gradient(
            view(dense(grad)), view(weight.float()), view(dx), more is not None, layer.stride, padding,
            torch.get_num_threads(),
        )  # fmt: skip
        return dx
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    pads = (spans[0] - padding[0], spans[1] - padding[1], spans[0] - padding[2], spans[1] - padding[3])
    if grad.dtype not in DTYPES or layer.stride != (1, 1) or min(pads) < 0:
        dx = _torch_backward(grad, like, weight, layer, padding, 0)
        return dx if more is None else dx + more
    executor = _executor(
        layer.out_channels, layer.in_channels, layer.kernel_size, (1, 1), pads, layer.dilation, layer.groups,
        layer.algorithm, False, more is not None, grad.dtype,
    )  # fmt: skip
    return executor.run_once([grad] if more is None else [grad, more], _turned(weight.float(), layer.groups), [])


def _pad(x: torch.Tensor, padding: Pads) -> torch.Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom)) if any(padding) else x


def _torch_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, layer: ConvSpec, padding: Pads, which: int
) -> torch.Tensor:
    """torch's gradient of the input (0) or the weights (1); computed in float32 for types of 16 bits."""
    if grad.dtype in DTYPES and grad.dtype is not torch.float32:
        found = _torch_backward(grad.float(), x.float(), weight.float(), layer, padding, which)
        return found if which == 1 else found.to(grad.dtype)
    top, left, bottom, right = padding
    symmetric = (top, left) == (bottom, right)
    result: Maybe = torch.ops.aten.convolution_backward(
        grad,
        x if symmetric else _pad(x, padding),
        weight,
        None,
        layer.stride,
        [top, left] if symmetric else [0, 0],
        layer.dilation,
        False,
        [0, 0],
        layer.groups,
        [which == 0, which == 1, False],
    )[which]
    assert result is not None
    return result if symmetric or which == 1 else result[:, :, top : top + x.shape[2], left : left + x.shape[3]]


@functools.lru_cache(maxsize=1024)
def _executor(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int], stride: tuple[int, int], padding: Pads,
    dilation: tuple[int, int], groups: int, algorithm: str, has_bias: bool, has_residual: bool, dtype: torch.dtype,
) -> Executor:  # fmt: skip
    inputs = (in_channels, out_channels) if has_residual else (in_channels,)
    if algorithm == "auto":
        # Strassen's sums of the weights, new ones in every step, cost more than its products save.
        algorithm = "auto_once"
    layer = ConvSpec(
        "conv",
        0,
        len(inputs),
        in_channels,
        out_channels,
        0,
        1 if has_bias else None,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        residual=1 if has_residual else None,
        algorithm=algorithm,
    )
    return Executor(ProgramSpec(inputs, (layer,), (OutputSpec(len(inputs)),)), None, dtype, torch.float32)


def _turned(weight: torch.Tensor, groups: int) -> npt.NDArray[np.float32]:
    """A view of the weights with input and output channels exchanged and taps in reverse order."""
    k, c, *kernel = weight.shape
    flipped = view(weight)[:, :, ::-1, ::-1]
    if groups == 1:
        return flipped.transpose(1, 0, 2, 3)
    return flipped.reshape(groups, k // groups, c, *kernel).swapaxes(1, 2).reshape(groups * c, k // groups, *kernel)
