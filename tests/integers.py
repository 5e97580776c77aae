"""Programs of bytes computed by plain integers and NumPy, as their definition says: bit for bit what all levels give.

Not computed: layers of real numbers among them, but for elementwise ones, and activations other than ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    BatchNormSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    MaxPoolSpec,
    ProgramSpec,
    Range,
    same_padding,
)

Array = npt.NDArray[Any]
f32 = np.float32
# 255 times this is less than what results of Winograd's algorithm distinguish.
MOST_MAGNITUDE = (2**26 - 1) // 255


class Buffer:
    """Bytes of a range as integers, or floats."""

    def __init__(self, values: Array, byte_range: Range | None = None) -> None:
        self.values = values
        self.range = byte_range

    def bytes_by(self, byte_range: Range | None) -> tuple[Array, float, int]:
        """Integers, scale and zero point; of floats by the given range."""
        if self.range is not None:
            return self.values, f32(self.range[0]), self.range[1]
        assert byte_range is not None
        scale, zero = f32(byte_range[0]), byte_range[1]
        steps = np.clip(self.values * (f32(1) / scale), f32(-zero), f32(255 - zero))
        return np.rint(steps).astype(np.int64) + zero, scale, zero

    def real(self) -> Array:
        """The numbers that it stands for, in fp64."""
        if self.range is None:
            return self.values.astype(np.float64)
        return (self.values - self.range[1]) * np.float64(f32(self.range[0]))


def multiply_add(a: Array, b: Any, c: Any) -> Array:
    """a * b + c in fp32, rounded once: the exact product and sum in fp64, rounded to odd there."""
    a, b, c = np.broadcast_arrays(f32(a), f32(b), f32(c))
    product, added = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + added
    part = total - product
    error = (product - (total - part)) + (added - part)
    bits = total.view(np.int64).copy()
    uneven = (error != 0) & ((bits & 1) == 0)
    bits[uneven] += np.where((error[uneven] > 0) == (total[uneven] > 0), 1, -1)
    return bits.view(np.float64).astype(f32)


def quantize_channels(weight: Array, steps: Array | None, limit: int | None) -> tuple[Array, Array]:
    """Integers and steps of weights [K, C, R, S], symmetric by channel."""
    flat = weight.reshape(weight.shape[0], -1)
    given = steps is not None
    found = f32(steps) if given else f32(np.abs(flat).max(1) / f32(127))
    if not given:
        found[found < np.finfo(f32).tiny] = 1

    def integers(k: int) -> Array:
        return np.clip(np.rint(flat[k].astype(np.float64) / np.float64(found[k])), -128, 127)

    made = np.stack([integers(k) for k in range(len(flat))])
    if limit is not None and not given:
        for k in range(len(flat)):
            while (magnitude := np.abs(made[k]).sum()) > limit:
                found[k] *= f32(1.001) * f32(magnitude) / f32(limit)
                made[k] = integers(k)
    return made.reshape(weight.shape).astype(np.int64), found


def lost_means(weight: Array, integers: Array, steps: Array, means: Array, groups: int) -> Array:
    """What rounded weights [K, C, R, S] take from the mean of each output channel."""
    errors = weight.astype(np.float64) - steps.astype(np.float64)[:, None, None, None] * integers
    own = np.repeat(means.astype(np.float64).reshape(groups, -1), len(weight) // groups, 0)
    products = (errors * own[:, :, None, None]).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return np.add.accumulate(products, 1)[:, -1]  # one by one, as the core adds them


def _written(layer: Any, v: Array, activation: str) -> Buffer:
    """``v`` is in units of the output's steps, if it has such."""
    if layer.writes is None:
        return Buffer(np.maximum(v, f32(0)) if activation == "relu" else v)
    zero = layer.writes[1]
    low = f32(0) if activation == "relu" else f32(-zero)
    return Buffer(np.rint(np.clip(v, low, f32(255 - zero))).astype(np.int64) + zero, layer.writes)


def _units(layer: Any) -> np.float64:
    return np.float64(1) if layer.writes is None else 1 / np.float64(f32(layer.writes[0]))


def _residual(layer: ConvSpec | AffineSpec, buffers: list[Buffer], units: np.float64) -> tuple[Array, np.float32, int]:
    assert layer.residual is not None
    buffer = buffers[layer.residual]
    scale, zero = (1.0, 0) if buffer.range is None else (np.float64(f32(buffer.range[0])), buffer.range[1])
    return buffer.values, f32(scale * units), zero


def _pads(layer: ConvSpec, x: Array) -> list[tuple[int, int]]:
    if layer.padding is None:
        return [same_padding(x.shape[2 + i], layer.kernel_size[i], layer.stride[i], layer.dilation[i]) for i in (0, 1)]
    top, left, bottom, right = layer.padding
    return [(top, bottom), (left, right)]


def fold_batch_norm(
    bn: BatchNormSpec | None, bias_place: int | None, parameters: Sequence[torch.Tensor]
) -> tuple[list[float], list[float]]:
    """Scale and bias by channel, in fp64, of a batch norm behind a bias; empty lists: all ones, all zeros."""

    def get(index: int | None) -> torch.Tensor | None:
        return None if index is None else parameters[index].detach().double()

    bias = get(bias_place)
    if bn is None:
        return [], [] if bias is None else bias.tolist()
    gamma, beta = get(bn.weight), get(bn.bias)
    scale = (parameters[bn.running_var].detach().double() + bn.eps).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = -parameters[bn.running_mean].detach().double()
    shift = shift if bias is None else shift + bias
    shift = shift * scale
    return scale.tolist(), (shift if beta is None else shift + beta).tolist()


def _conv(layer: ConvSpec, buffers: list[Buffer], parameters: Sequence[torch.Tensor]) -> Buffer:
    assert layer.activation in ("none", "relu")
    x, scale, zero = buffers[layer.input].bytes_by(layer.reads)
    weight = parameters[layer.weight].detach().numpy()
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    given = None if layer.weight_steps is None else parameters[layer.weight_steps].numpy()
    winograd = (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
    integers, steps = quantize_channels(weight, given, MOST_MAGNITUDE if winograd else None)
    padded = np.pad(x - zero, ((0, 0), (0, 0), *_pads(layer, x)))
    sums = F.conv2d(  # exact: all sums are below 2^53
        torch.tensor(padded, dtype=torch.float64), torch.tensor(integers, dtype=torch.float64),
        stride=layer.stride, dilation=layer.dilation, groups=layer.groups,
    ).numpy()  # fmt: skip
    folded, bias = fold_batch_norm(layer.batch_norm, layer.bias, parameters)
    units = _units(layer)
    factor = np.float64(scale) * steps.astype(np.float64) * (np.array(folded) if folded else 1.0) * units
    added = np.array(bias) if bias else np.zeros(len(steps))
    if layer.input_means is not None:
        lost = lost_means(weight, integers, steps, parameters[layer.input_means].numpy(), layer.groups)
        added = added + (np.array(folded) if folded else 1.0) * lost
    added = added * units
    residual = None if layer.residual is None else _residual(layer, buffers, units)
    if residual is not None:
        added = added - residual[2] * np.float64(residual[1])
    v = multiply_add(f32(sums), f32(factor)[None, :, None, None], f32(added)[None, :, None, None])
    if residual is not None:
        v = multiply_add(f32(residual[0]), residual[1], v)
    return _written(layer, v, layer.activation)


def _affine(layer: AffineSpec, buffers: list[Buffer], parameters: Sequence[torch.Tensor]) -> Buffer:
    assert layer.activation in ("none", "relu")
    assert layer.gate is None
    x = buffers[layer.input]
    folded, bias = fold_batch_norm(layer.batch_norm, None, parameters)
    channels = x.values.shape[1]
    units = _units(layer)
    scale, zero = (1.0, 0) if x.range is None else (np.float64(f32(x.range[0])), x.range[1])
    factor = f32(folded).astype(np.float64) * units * scale if folded else np.full(channels, units * scale)
    added = f32(bias).astype(np.float64) * units if bias else np.zeros(channels)
    residual = None if layer.residual is None else _residual(layer, buffers, units)
    shift = 0.0 if residual is None else np.float64(residual[1]) * residual[2]
    v = multiply_add(
        f32(x.values), f32(factor)[None, :, None, None], f32(added - factor * zero - shift)[None, :, None, None]
    )
    if residual is not None:
        v = multiply_add(f32(residual[0]), residual[1], v)
    return _written(layer, v, layer.activation)


def _layer(layer: LayerSpec, buffers: list[Buffer], parameters: Sequence[torch.Tensor]) -> Buffer:
    if isinstance(layer, ConvSpec):
        return _conv(layer, buffers, parameters)
    if isinstance(layer, AffineSpec):
        return _affine(layer, buffers, parameters)
    x = buffers[layer.input]
    values = torch.tensor(x.values, dtype=torch.float64)
    if isinstance(layer, MaxPoolSpec):
        assert layer.padding is not None
        y = F.max_pool2d(values, layer.kernel_size, layer.stride, layer.padding[:2], layer.dilation, layer.ceil_mode)
        return Buffer(y.numpy() if x.range is None else y.numpy().astype(np.int64), x.range)
    assert x.range is not None
    scale, zero = f32(x.range[0]), x.range[1]
    if isinstance(layer, GlobalAvgPoolSpec):
        pixels = x.values.shape[2] * x.values.shape[3]
        steps = f32(_units(layer))
        factor, shift = f32(np.float64(steps) * (np.float64(scale) / pixels)), -steps * f32(zero) * scale
        return _written(layer, multiply_add(f32(values.sum((2, 3), keepdim=True).numpy()), factor, shift), "none")
    assert isinstance(layer, AvgPoolSpec)
    assert layer.padding is not None
    options: dict[str, Any] = {"ceil_mode": layer.ceil_mode, "count_include_pad": layer.count_include_pad}
    window = (layer.kernel_size, layer.stride, layer.padding[:2])
    sums = F.avg_pool2d(values - zero, *window, divisor_override=1, ceil_mode=layer.ceil_mode).numpy()
    shares = F.avg_pool2d(torch.ones_like(values), *window, divisor_override=1, ceil_mode=layer.ceil_mode)
    divisor = torch.round(shares / F.avg_pool2d(torch.ones_like(values), *window, **options)).numpy()
    steps = f32(np.float64(scale) * _units(layer))
    return _written(layer, f32(sums) * (steps / f32(divisor)), "none")


def run_integers(spec: ProgramSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> list[Array]:
    """What a program gives for [N, C, H, W] inputs."""
    buffers = [Buffer(x.numpy()) for x in inputs]
    for layer in spec.layers:
        buffers.append(_layer(layer, buffers, parameters))
    results = [buffers[output.buffer].values for output in spec.outputs]
    return [y[:, :, 0, 0] if o.rank == 2 else y for y, o in zip(results, spec.outputs, strict=True)]
