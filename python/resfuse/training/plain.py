"""Layers on torch's own functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from resfuse.engine.executor import DTYPES
from resfuse.engine.global_avg_pool import global_avg_pool2d
from resfuse.engine.spec import (
    AvgPoolSpec,
    Bounds,
    ChannelShuffleSpec,
    ConvSpec,
    DepthToSpaceSpec,
    LayerSpec,
    MaxPoolSpec,
    NormSpec,
    PadSpec,
    ResizeSpec,
    SliceSpec,
)
from resfuse.training.split import pads_of

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(1),
    "silu": F.silu,
    "gelu": F.gelu,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "mish": F.mish,
}
_OF_SLOPES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {"leaky_relu": F.leaky_relu, "elu": F.elu}


class Activated(Protocol):
    """What has an activation: a layer, or a block of some."""

    @property
    def activation(self) -> str: ...
    @property
    def slope(self) -> float: ...
    @property
    def slopes(self) -> int | None: ...
    @property
    def bounds(self) -> Bounds | None: ...


def activated(layer: Activated, x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The activation of what a layer computes."""
    if layer.slopes is not None:
        return F.prelu(x, parameters[layer.slopes].to(x.dtype))
    if layer.bounds is not None:
        low, high = layer.bounds
        if layer.activation == "hardtanh" and low is not None and high is not None:
            return F.hardtanh(x, low, high)
        return torch.clamp(x, low, high)
    if layer.activation in _OF_SLOPES:
        return _OF_SLOPES[layer.activation](x, layer.slope)
    return ACTIVATIONS[layer.activation](x)


def plain_layer(
    layer: LayerSpec, x: torch.Tensor, parameters: Sequence[torch.Tensor], activate: bool = True
) -> torch.Tensor:
    """A convolution, linear layer or pool; of a convolution without batch norm and residual."""
    if isinstance(layer, ConvSpec):
        y = _products(layer, x, parameters)
        return activated(layer, y, parameters) if activate else y
    if isinstance(layer, MaxPoolSpec):
        if layer.padding is not None and layer.padding[:2] == layer.padding[2:]:
            padding = layer.padding[:2]
            return F.max_pool2d(x, layer.kernel_size, layer.stride, padding, layer.dilation, layer.ceil_mode)
        x = F.pad(x, _pads(layer, x), value=float("-inf"))
        return F.max_pool2d(x, layer.kernel_size, layer.stride, 0, layer.dilation, layer.ceil_mode)
    if isinstance(layer, AvgPoolSpec):
        return _avg_pool(layer, x)
    return global_avg_pool2d(x)


def moved(layer: LayerSpec, x: torch.Tensor, size: Sequence[Any]) -> torch.Tensor:
    """A slice, a padding, channels that become pixels, or resampling to ``size``."""
    if isinstance(layer, SliceSpec):
        return x.narrow(1, layer.first_channel, layer.channels)
    if isinstance(layer, PadSpec):
        top, left, bottom, right = layer.padding
        return F.pad(x, (left, right, top, bottom))
    if isinstance(layer, DepthToSpaceSpec):
        return depth_to_space(x, layer.block, layer.crop)
    if isinstance(layer, ChannelShuffleSpec):
        return shuffle_channels(x, layer.groups) if layer.views else F.channel_shuffle(x, layer.groups)
    assert isinstance(layer, ResizeSpec)
    how = {"mode": "bilinear", "align_corners": layer.align_corners} if layer.bilinear else {"mode": "nearest"}
    if layer.scale is not None:
        return F.interpolate(x, scale_factor=layer.scale, **how)
    return F.interpolate(x, tuple(size), **how)


def depth_to_space(x: torch.Tensor, block: tuple[int, int], crop: tuple[int, int, int, int]) -> torch.Tensor:
    """What `DepthToSpaceSpec` says, of feature maps [..., C, H, W]."""
    (high, wide), (top, left, bottom, right) = block, crop
    blocks = x.unflatten(-3, (high, wide, x.shape[-3] // (high * wide)))
    pixels: torch.Tensor = blocks.movedim((-3, -2, -5, -1, -4), (-5, -4, -3, -2, -1)).flatten(-2).flatten(-3, -2)
    height, width = pixels.shape[-2:]
    return pixels.narrow(-2, top, height - top - bottom).narrow(-1, left, width - left - right)


def shuffle_channels(x: torch.Tensor, groups: int, copies: bool = True) -> torch.Tensor:
    """What `ChannelShuffleSpec` says where it was written as views: in contiguous memory.

    Of groups of one channel, where it ``copies``; else these are views.
    """
    turned: torch.Tensor = x.unflatten(-3, (groups, x.shape[-3] // groups)).transpose(-4, -3)
    return (turned.contiguous() if copies else turned).flatten(-4, -3)


def normalized(layer: NormSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """A group norm or layer norm, with the residual sum and the activation behind it."""
    x = inputs[0]
    weight, bias = (None if place is None else parameters[place] for place in (layer.weight, layer.bias))
    if layer.groups:
        y = F.group_norm(x, layer.groups, weight, bias, layer.eps)
    else:
        y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, layer.eps).permute(0, 3, 1, 2)
    y = y if layer.residual is None else y + inputs[1]
    return activated(layer, y, parameters)


def _products(layer: ConvSpec, x: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Without the activation. Of 16-bit feature maps in float32, rounded once: torch is slow in their own types."""
    weight = parameters[layer.weight]
    bias = None if layer.bias is None else parameters[layer.bias]
    dtype = x.dtype
    if dtype in DTYPES:
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    with torch.autocast("cpu", enabled=False):
        if weight.dim() == 2:
            if x.shape[2] == x.shape[3] == 1:
                y = F.linear(x.flatten(1), weight, bias)[:, :, None, None]
            else:
                y = F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
            return _scaled(layer, y, parameters).to(dtype)
        x = F.pad(x, _pads(layer, x))
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            # torch 2.13 gets second derivatives of these wrong, now and then, in channels_last memory.
            x = x.contiguous()
        y = F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, layer.groups)
        return _scaled(layer, y, parameters).to(dtype)


def _scaled(layer: ConvSpec, y: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    if layer.channel_scale is not None:
        y = y * parameters[layer.channel_scale].reshape(1, -1, 1, 1)
    return y if layer.factor == 1.0 else y * layer.factor


def _avg_pool(layer: AvgPoolSpec, x: torch.Tensor) -> torch.Tensor:
    def pool(t: torch.Tensor, padding: tuple[int, int], count_include_pad: bool) -> torch.Tensor:
        return F.avg_pool2d(t, layer.kernel_size, layer.stride, padding, layer.ceil_mode, count_include_pad)

    if layer.padding is not None and layer.padding[:2] == layer.padding[2:]:
        return pool(x, layer.padding[:2], layer.count_include_pad)
    pads = _pads(layer, x)
    inside = pool(F.pad(torch.ones_like(x[:1, :1]), pads), (0, 0), True)
    return pool(F.pad(x, pads), (0, 0), True) / (1.0 if layer.count_include_pad else inside)


def _pads(layer: ConvSpec | MaxPoolSpec | AvgPoolSpec, x: torch.Tensor) -> tuple[int, int, int, int]:
    """In F.pad's order."""
    top, left, bottom, right = pads_of(layer, (x.shape[2], x.shape[3]))
    return left, right, top, bottom
