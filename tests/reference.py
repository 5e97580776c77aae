"""Programs computed by plain torch in any dtype, and how far a result may be from fp64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from resfuse.engine.spec import (
    MOVING,
    AffineSpec,
    AvgPoolSpec,
    ChannelShuffleSpec,
    ConcatSpec,
    ConvSpec,
    DepthToSpaceSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    MaxPoolSpec,
    NormSpec,
    PadSpec,
    ProgramSpec,
    ResizeSpec,
    SliceSpec,
    same_padding,
)

ACTIVATIONS = {
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


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0


def _pad(layer: ConvSpec | MaxPoolSpec, x: torch.Tensor, value: float) -> torch.Tensor:
    if layer.padding is None:
        (top, bottom), (left, right) = (
            same_padding(x.shape[2 + i], layer.kernel_size[i], layer.stride[i], layer.dilation[i]) for i in (0, 1)
        )
    else:
        top, left, bottom, right = layer.padding
    return F.pad(x, (left, right, top, bottom), value=value)


def _layer(layer: LayerSpec, buffers: list[torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    x = buffers[layer.input]
    if isinstance(layer, MaxPoolSpec):
        if layer.ceil_mode:
            assert layer.padding is not None
            padding = layer.padding[:2]
            return F.max_pool2d(x, layer.kernel_size, layer.stride, padding, layer.dilation, ceil_mode=True)
        return F.max_pool2d(_pad(layer, x, float("-inf")), layer.kernel_size, layer.stride, 0, layer.dilation)
    if isinstance(layer, AvgPoolSpec):
        assert layer.padding is not None
        padding = layer.padding[:2]
        return F.avg_pool2d(x, layer.kernel_size, layer.stride, padding, layer.ceil_mode, layer.count_include_pad)
    if isinstance(layer, GlobalAvgPoolSpec):
        return x.mean((2, 3), keepdim=True)
    if isinstance(layer, MOVING):
        return _moved(layer, buffers)

    def get(i: int | None) -> torch.Tensor | None:
        return None if i is None else parameters[i].to(x.dtype)

    y = x
    if isinstance(layer, ConvSpec):
        weight = get(layer.weight)
        assert weight is not None
        weight = weight[:, :, None, None] if weight.dim() == 2 else weight
        y = F.conv2d(_pad(layer, x, 0.0), weight, get(layer.bias), layer.stride, 0, layer.dilation, layer.groups)
    if isinstance(layer, NormSpec):
        y = _normalized(layer, x, get(layer.weight), get(layer.bias))
        y = y if layer.residual is None else y + buffers[layer.residual]
        return _activated(layer, y, get(layer.slopes))
    bn = layer.batch_norm
    if bn is not None:
        y = F.batch_norm(y, get(bn.running_mean), get(bn.running_var), get(bn.weight), get(bn.bias), eps=bn.eps)
    if isinstance(layer, AffineSpec) and layer.gate is not None:
        y = y * buffers[layer.gate]
    if layer.channel_scale is not None:
        y = y * parameters[layer.channel_scale].to(x.dtype).reshape(1, -1, 1, 1)
    if isinstance(layer, AffineSpec) and layer.product is not None:
        y = y * buffers[layer.product]
    if layer.residual is not None:
        y = y + buffers[layer.residual]
    return _activated(layer, y, get(layer.slopes))


def _activated(layer: ConvSpec | AffineSpec | NormSpec, y: torch.Tensor, slopes: torch.Tensor | None) -> torch.Tensor:
    if slopes is not None:
        return F.prelu(y, slopes)
    if layer.bounds is not None:
        return torch.clamp(y, *layer.bounds)
    if layer.activation in ("leaky_relu", "elu"):
        return (F.leaky_relu if layer.activation == "leaky_relu" else F.elu)(y, layer.slope)
    return ACTIVATIONS[layer.activation](y)


def _normalized(
    layer: NormSpec, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    if layer.groups:
        return F.group_norm(x, layer.groups, weight, bias, layer.eps)
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, layer.eps).permute(0, 3, 1, 2)


def _moved(layer: LayerSpec, buffers: list[torch.Tensor]) -> torch.Tensor:
    x = buffers[layer.input]
    if isinstance(layer, ConcatSpec):
        return torch.cat([buffers[part] for part in layer.parts], 1)
    if isinstance(layer, SliceSpec):
        return x[:, layer.first_channel : layer.first_channel + layer.channels].clone()
    if isinstance(layer, PadSpec):
        top, left, bottom, right = layer.padding
        return F.pad(x, (left, right, top, bottom))
    if isinstance(layer, DepthToSpaceSpec):
        (high, wide), (top, left, bottom, right) = layer.block, layer.crop
        channels = x.shape[1] // (high * wide)
        y = x.new_empty(x.shape[0], channels, x.shape[2] * high, x.shape[3] * wide)
        for i in range(high):
            for j in range(wide):
                first = (i * wide + j) * channels
                y[:, :, i::high, j::wide] = x[:, first : first + channels]
        return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
    if isinstance(layer, ChannelShuffleSpec):
        return torch.cat([x[:, i :: x.shape[1] // layer.groups] for i in range(x.shape[1] // layer.groups)], 1)
    assert isinstance(layer, ResizeSpec)
    how = {"mode": "bilinear", "align_corners": layer.align_corners} if layer.bilinear else {"mode": "nearest"}
    if layer.scale is not None:
        return F.interpolate(x, scale_factor=layer.scale, **how)
    size = layer.size if layer.like is None else tuple(buffers[layer.like].shape[2:])
    return F.interpolate(x, size, **how)


def run_buffers(
    spec: ProgramSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], dtype: torch.dtype
) -> list[torch.Tensor]:
    """All values of the program, its inputs first."""
    buffers = [x.to(dtype) for x in inputs]
    for layer in spec.layers:
        buffers.append(_layer(layer, buffers, parameters))
    return buffers


def run_reference(
    spec: ProgramSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], dtype: torch.dtype
) -> list[torch.Tensor]:
    """The program's outputs, computed by torch in `dtype`."""
    buffers = run_buffers(spec, inputs, parameters, dtype)
    return [buffers[o.buffer].flatten(1) if o.rank == 2 else buffers[o.buffer] for o in spec.outputs]


def assert_accurate(
    got: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor, factor: float = 4.0, layers: int = 1
) -> None:
    """rms error at most `factor` x eager's; small tensors, where eager may be lucky, at most a few ulp of the rms.

    Independent rounding errors of layers in a row add up in squares.
    """
    assert got.shape == exact.shape
    scale = max(rms(exact), 1e-30)
    error, allowed = (
        rms(got.double() - exact) / scale,
        factor * max(rms(eager.double() - exact) / scale, 1.5e-7 * layers**0.5),
    )
    assert error <= allowed, f"rms error {error:.2e}, allowed {allowed:.2e}"
