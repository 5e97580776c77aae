"""Specifications of finished layers."""

from __future__ import annotations

from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    BatchNormSpec,
    ChannelShuffleSpec,
    ConcatSpec,
    ConvSpec,
    DepthToSpaceSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    MaxPoolSpec,
    NormSpec,
    PadSpec,
    ResizeSpec,
    SliceSpec,
)
from resfuse.lowering.op import Norm, Parameter
from resfuse.lowering.pending import Buffer, Emitted, Pending
from resfuse.lowering.steps import NormMode


def layer_spec(e: Emitted, numbers: dict[Buffer, int], parameters: list[Parameter], algorithm: str) -> LayerSpec:
    """A finished layer's specification; ``parameters`` grows by what it reads."""
    source, output = numbers[e.input], numbers[e.output]
    if e.kind == "concat":
        return ConcatSpec(e.node.name, source, output, tuple(numbers[part] for part in e.parts))
    if e.kind == "slice":
        return SliceSpec(e.node.name, source, output, *e.channels)
    if e.kind == "pad":
        return PadSpec(e.node.name, source, output, e.padding)
    if e.kind == "depth_to_space":
        return DepthToSpaceSpec(e.node.name, source, output, e.block, e.padding)
    if e.kind == "channel_shuffle":
        return ChannelShuffleSpec(e.node.name, source, output, e.groups, e.mean)
    if e.kind == "resize":
        assert e.resize is not None
        r = e.resize
        like = None if e.like is None else numbers[e.like]
        return ResizeSpec(e.node.name, source, output, r.bilinear, r.align_corners, r.size, r.scale, like)
    if e.kind == "max_pool":
        assert e.pool is not None
        return MaxPoolSpec(e.node.name, source, output, **e.pool)
    if e.kind == "avg_pool":
        assert e.pool is not None
        return AvgPoolSpec(e.node.name, source, output, **e.pool, writes=e.writes)
    if e.kind == "global_avg_pool":
        return GlobalAvgPoolSpec(e.node.name, source, output, e.mean, e.writes)
    pending = e.pending
    assert pending is not None

    def place(parameter: Parameter | None) -> int | None:
        if parameter is None:
            return None
        parameters.append(parameter)
        return len(parameters) - 1

    def batch_norm() -> BatchNormSpec | None:
        norm = pending.norm
        if norm is None:
            return None
        weight, bias = place(norm.weight), place(norm.bias)
        mean, variance = place(norm.running_mean), place(norm.running_var)
        assert mean is not None
        assert variance is not None
        return BatchNormSpec(weight, bias, mean, variance, norm.eps)

    residual = None if pending.residual is None else numbers[pending.residual]
    if pending.statistics is not None:
        statistics = pending.statistics
        return NormSpec(
            name=pending.name,
            input=source,
            output=output,
            weight=place(statistics.weight),
            bias=place(statistics.bias),
            eps=statistics.eps,
            groups=statistics.groups,
            residual=residual,
            activation=pending.activation,
            slope=pending.slope,
            slopes=place(pending.slopes),
            bounds=pending.bounds,
        )
    if pending.conv is None:
        gate = None if pending.gate is None else numbers[pending.gate]
        product = None if pending.product is None else numbers[pending.product]
        return AffineSpec(
            name=pending.name,
            input=source,
            output=output,
            batch_norm=batch_norm(),
            gate=gate,
            residual=residual,
            activation=pending.activation,
            slope=pending.slope,
            slopes=place(pending.slopes),
            bounds=pending.bounds,
            writes=pending.writes,
            factor=pending.factor,
            channel_scale=place(pending.channel_scale),
            product=product,
        )
    conv = pending.conv
    # Steps come first: the type of a program's first parameter is that of all its real numbers.
    steps = None if conv.bytes is None else place(conv.bytes.steps)
    weight_place = place(conv.weight)
    assert weight_place is not None
    return ConvSpec(
        name=pending.name,
        input=source,
        output=output,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        weight=weight_place,
        bias=place(conv.bias),
        batch_norm=batch_norm(),
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        dilation=conv.dilation,
        padding=conv.padding,
        groups=conv.groups,
        activation=pending.activation,
        residual=residual,
        algorithm=_algorithm_of(pending, algorithm),
        reads=pending.reads,
        writes=pending.writes,
        weight_steps=steps,
        weight_zeros=None if conv.bytes is None else place(conv.bytes.zeros),
        factor=pending.factor,
        slope=pending.slope,
        slopes=place(pending.slopes),
        bounds=pending.bounds,
        channel_scale=place(pending.channel_scale),
    )


def _algorithm_of(pending: Pending, algorithm: str) -> str:
    conv = pending.conv
    assert conv is not None
    if conv.bytes is not None and pending.computes_bytes and not conv.bytes.winograd:
        return "direct"
    return "auto" if conv.linear else algorithm


def norm_mode(norm: Norm | None) -> NormMode | None:
    """What decides a layer's statistics, where these may be the batch's."""
    if norm is None or (norm.module is None and not norm.training):
        return None
    return NormMode(norm.module, norm.training, norm.momentum)
