"""Cuts a program into blocks that train as one operator each.

A block ends where one tensor alone goes on: behind a residual sum or a pool. What its backward needs is kept or
computed again inside it, and is freed as soon as its gradients are there.
"""

from __future__ import annotations

import dataclasses
import functools

from resfuse.engine.spec import (
    AvgPoolSpec,
    BatchNormSpec,
    Bounds,
    ConvSpec,
    LayerSpec,
    MaxPoolSpec,
    OutputSpec,
    ProgramSpec,
    reads,
    same_padding,
)
from resfuse.training import pooling

_MOST_CONVOLUTIONS = 4  # of a block without residual sums


@dataclasses.dataclass(frozen=True)
class Saved:
    """A tensor that forward hands to backward: of a layer, its "product", "mean", "variance", "taps" or "result"."""

    layer: int
    what: str


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Where in a block's results a batch's own statistics are."""

    layer: int  # of the whole program
    mean: int
    variance: int


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a program as a program of its own; without one, a layer that torch's own functions compute."""

    spec: ProgramSpec | None
    text: str
    layers: tuple[int, ...]  # of the whole program
    inputs: tuple[int, ...]  # buffers of the whole program
    outputs: tuple[int, ...]
    parameters: tuple[int, ...]  # places in the whole program's list
    statistics: tuple[Statistics, ...] = ()
    activation: str = "none"  # follows, on torch
    slope: float = 0.0
    slopes: int | None = None  # of prelu: a place in the whole program's list
    bounds: Bounds | None = None
    factors: tuple[tuple[int, float], ...] = ()  # of `parameters`: places, and what they are multiplied by
    channel_scales: tuple[tuple[int, int], ...] = ()  # the same by channel: places in the whole program's list


def parameter_places(layer: LayerSpec) -> list[int]:
    """The parameters of a layer that may have gradients."""
    if not isinstance(layer, ConvSpec):
        return []
    norm = layer.batch_norm
    places = [layer.weight, layer.bias, *((norm.weight, norm.bias) if norm is not None else ())]
    return [place for place in places if place is not None]


def pads_of(layer: ConvSpec | MaxPoolSpec | AvgPoolSpec, extent: tuple[int, int]) -> tuple[int, int, int, int]:
    """A window's pads (top, left, bottom, right) over an image of this height and width."""
    if layer.padding is not None:
        return layer.padding
    (top, bottom), (left, right) = (
        same_padding(extent[i], layer.kernel_size[i], layer.stride[i], layer.dilation[i]) for i in (0, 1)
    )
    return top, left, bottom, right


def takes_batch_statistics(layer: ConvSpec) -> bool:
    """Whether a block's layer normalises with the batch's own statistics."""
    return layer.batch_norm is not None and layer.batch_norm.running_mean < 0


def computes_again(layer: ConvSpec) -> bool:
    """Whether a convolution's result is not kept: four times its input or more, for few multiplications."""
    pointwise = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
    return pointwise and layer.in_channels <= 64 and layer.out_channels >= 4 * layer.in_channels


@functools.lru_cache(maxsize=512)
def saved_tensors(spec: ProgramSpec) -> tuple[Saved, ...]:
    """What a block's forward returns behind its outputs."""
    outputs = {output.buffer for output in spec.outputs}
    saved: list[Saved] = []
    for index, layer in enumerate(spec.layers):
        wants_result = layer.output not in outputs
        if isinstance(layer, MaxPoolSpec):
            saved.append(Saved(index, "taps"))
        elif isinstance(layer, ConvSpec) and layer.batch_norm is not None:
            if not computes_again(layer):
                saved.append(Saved(index, "product"))
            if takes_batch_statistics(layer):
                saved += [Saved(index, "mean"), Saved(index, "variance")]
            wants_result &= layer.residual is not None
        if wants_result:
            saved.append(Saved(index, "result"))
    return tuple(saved)


@functools.lru_cache(maxsize=512)
def reached_from(text: str, has_gradient: tuple[bool, ...]) -> frozenset[int]:
    """Places, in a block's inputs and parameters together, on which the outputs that have gradients depend.

    Others get none, as in torch: not zeros, which optimizers would treat as a step.
    """
    spec = ProgramSpec.from_text(text)
    buffers = {output.buffer for output, has in zip(spec.outputs, has_gradient, strict=True) if has}
    places: set[int] = set()
    for layer in reversed(spec.layers):
        if layer.output not in buffers:
            continue
        buffers.update(reads(layer))
        places.update(len(spec.inputs) + place for place in parameter_places(layer))
    return frozenset(places | {i for i in range(len(spec.inputs)) if i in buffers})


def fits_block(layer: LayerSpec) -> bool:
    """Whether the block operator computes this layer, perhaps but for its activation."""
    if isinstance(layer, MaxPoolSpec):
        return pooling.covers(layer)
    return isinstance(layer, ConvSpec) and not _is_linear(layer)


def _has_residual(layer: LayerSpec) -> bool:
    return isinstance(layer, ConvSpec) and layer.residual is not None


def _is_linear(layer: ConvSpec) -> bool:
    return layer.batch_norm is None and layer.kernel_size == (1, 1) and layer.residual is None


@functools.lru_cache(maxsize=256)
def split(spec: ProgramSpec, batch_statistics: tuple[bool, ...]) -> tuple[Block, ...]:
    """The blocks of a program; ``batch_statistics``: for each layer, whether its batch norm takes the batch's own."""
    last_read = {buffer: index for index, layer in enumerate(spec.layers) for buffer in reads(layer)}
    kept = {output.buffer for output in spec.outputs}
    blocks: list[Block] = []
    current: list[int] = []

    def close() -> None:
        if current:
            blocks.append(_block(spec, current, last_read, kept, batch_statistics))
            current.clear()

    for index, layer in enumerate(spec.layers):
        if not fits_block(layer):
            close()
            blocks.append(Block(None, "", (index,), reads(layer), (layer.output,), ()))
            continue
        if isinstance(layer, ConvSpec) and layer.activation not in ("none", "relu"):
            close()
            bare = dataclasses.replace(layer, activation="none", slopes=None, bounds=None)
            whole = dataclasses.replace(spec, layers=(*spec.layers[:index], bare, *spec.layers[index + 1 :]))
            blocks.append(
                dataclasses.replace(
                    _block(whole, [index], last_read, kept, batch_statistics),
                    activation=layer.activation,
                    slope=layer.slope,
                    slopes=layer.slopes,
                    bounds=layer.bounds,
                )
            )
            continue
        current.append(index)
        live = [buffer for buffer, last in last_read.items() if buffer <= layer.output and last > index]
        ends = isinstance(layer, MaxPoolSpec) or _has_residual(layer) or len(current) >= _MOST_CONVOLUTIONS
        # A stem goes on to its pool, so that its largest feature map is not kept.
        pool_follows = index + 1 < len(spec.layers) and isinstance(spec.layers[index + 1], MaxPoolSpec)
        if ends and not pool_follows and live in ([], [layer.output]):
            close()
    close()
    return tuple(blocks)


def _block(
    spec: ProgramSpec, indices: list[int], last_read: dict[int, int], kept: set[int], batch_statistics: tuple[bool, ...]
) -> Block:
    layers = [spec.layers[i] for i in indices]
    made = {layer.output for layer in layers}
    inputs = tuple(dict.fromkeys(b for layer in layers for b in reads(layer) if b not in made))
    outputs = tuple(b for b in sorted(made) if b in kept or last_read.get(b, -1) > indices[-1])
    numbers = {buffer: number for number, buffer in enumerate((*inputs, *(layer.output for layer in layers)))}
    parameters: list[int] = []

    def place(parameter: int | None) -> int | None:
        if parameter is None:
            return None
        parameters.append(parameter)
        return len(parameters) - 1

    own: list[LayerSpec] = []
    factors: list[tuple[int, float]] = []
    channel_scales: list[tuple[int, int]] = []
    for index, layer in zip(indices, layers, strict=True):
        source, output = numbers[layer.input], numbers[layer.output]
        if isinstance(layer, MaxPoolSpec):
            own.append(dataclasses.replace(layer, input=source, output=output))
            continue
        assert isinstance(layer, ConvSpec)
        weight, bias = place(layer.weight), place(layer.bias)
        assert weight is not None
        norm = layer.batch_norm
        if norm is not None:
            gamma, beta = place(norm.weight), place(norm.bias)
            own_statistics = batch_statistics[index]
            mean, var = (-1, -1) if own_statistics else (place(norm.running_mean), place(norm.running_var))
            norm = BatchNormSpec(gamma, beta, mean, var, norm.eps)  # type: ignore[arg-type]
        scaled = [p for p in ((weight, bias) if norm is None else (norm.weight, norm.bias)) if p is not None]
        if layer.factor != 1.0:
            factors += [(p, layer.factor) for p in scaled]
        if layer.channel_scale is not None:
            channel_scales += [(p, layer.channel_scale) for p in scaled]
        own.append(
            dataclasses.replace(
                layer,
                input=source,
                output=output,
                name="",
                weight=weight,
                bias=bias,
                batch_norm=norm,
                factor=1.0,
                channel_scale=None,
                residual=None if layer.residual is None else numbers[layer.residual],
            )
        )
    channels = tuple(spec.channels(b) for b in inputs)
    part = ProgramSpec(channels, tuple(own), tuple(OutputSpec(numbers[b]) for b in outputs))
    positions = {saved: len(outputs) + i for i, saved in enumerate(saved_tensors(part))}
    statistics = tuple(
        Statistics(indices[i], positions[Saved(i, "mean")], positions[Saved(i, "variance")])
        for i, layer in enumerate(own)
        if isinstance(layer, ConvSpec) and takes_batch_statistics(layer)
    )
    return Block(
        part,
        part.to_text(),
        tuple(indices),
        inputs,
        outputs,
        tuple(parameters),
        statistics,
        factors=tuple(factors),
        channel_scales=tuple(channel_scales),
    )
