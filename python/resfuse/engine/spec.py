"""The description of a program: plain data that can be hashed, pickled, exported and handed to an operator as text.

A specification holds structure only. Weights are a flat list of tensors beside it; each convolution names the places of
its own in that list.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

# Scale and zero point: a byte q stands for (q - zero point) * scale.
Range = tuple[float, int]
# Of clamp and hardtanh: the lower and the upper one; None: there is none.
Bounds = tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class BatchNormSpec:
    """Places of a batch norm's tensors in the parameter list (None: not there) and its epsilon."""

    weight: int | None
    bias: int | None
    running_mean: int
    running_var: int
    eps: float


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """Convolution or linear layer with its epilogue: ``act((conv(input) * scale + bias) * factor + residual)``.

    ``padding`` is (top, left, bottom, right), or None for TensorFlow's "same" padding. It computes with bytes where its
    input is of bytes, or is real numbers that ``reads`` makes bytes of. ``writes`` makes bytes of its output.
    ``weight_steps`` and ``weight_zeros`` are the places of given steps and zero points of its weights, by output
    channel: then the weights are of int8 or, where they have yet to be rounded to these steps, real numbers.
    ``channel_scale`` is the place of a parameter that multiplies as ``factor`` does, by channel.
    ``input_means`` is the place of its input's means, by channel: by them its bias makes up for rounded weights, and
    ``weight_lost`` that of what it has to make up for, by output channel.
    """

    name: str
    input: int
    output: int
    in_channels: int
    out_channels: int
    weight: int
    bias: int | None = None
    batch_norm: BatchNormSpec | None = None
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    groups: int = 1
    activation: str = "none"
    residual: int | None = None
    algorithm: str = "auto"
    reads: Range | None = None
    writes: Range | None = None
    weight_steps: int | None = None
    weight_zeros: int | None = None
    weight_lost: int | None = None
    input_means: int | None = None
    factor: float = 1.0
    slope: float = 0.0  # of leaky_relu; elu's alpha
    slopes: int | None = None  # the place of prelu's: one for each channel, or one for all
    bounds: Bounds | None = None
    channel_scale: int | None = None
    kind: str = "conv"


@dataclasses.dataclass(frozen=True)
class MaxPoolSpec:
    """Max-pooling; ``padding`` is (top, left, bottom, right), or None for TensorFlow's "same" padding."""

    name: str
    input: int
    output: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int] | None
    ceil_mode: bool
    kind: str = "max_pool"


@dataclasses.dataclass(frozen=True)
class AvgPoolSpec:
    """Average pooling; ``padding`` as in `MaxPoolSpec`, counted as zeros where ``count_include_pad`` says so."""

    name: str
    input: int
    output: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] | None
    ceil_mode: bool
    count_include_pad: bool
    writes: Range | None = None
    kind: str = "avg_pool"

    @property
    def dilation(self) -> tuple[int, int]:
        """Average pools have none."""
        return 1, 1


@dataclasses.dataclass(frozen=True)
class GlobalAvgPoolSpec:
    """Mean over all pixels of each channel; ``mean`` where it was written so, which torch lays out in another way."""

    name: str
    input: int
    output: int
    mean: bool = False
    writes: Range | None = None
    kind: str = "global_avg_pool"


@dataclasses.dataclass(frozen=True)
class AffineSpec:
    """What is computed element by element: ``act(batch_norm(input) * factor * gate + residual)``, or a part of it.

    ``gate`` is a buffer of one pixel, as squeeze-and-excitation makes it; the gate excludes batch norm, factor and
    ``channel_scale``, the place of a parameter that multiplies by channel. ``product`` is a buffer of the output's size
    that multiplies before the residual is added.
    ``slope`` is leaky_relu's, and elu's alpha, ``slopes`` the place of prelu's, ``bounds`` are
    those of clamp and hardtanh.
    """

    name: str
    input: int
    output: int
    batch_norm: BatchNormSpec | None = None
    gate: int | None = None
    residual: int | None = None
    activation: str = "none"
    slope: float = 0.0
    slopes: int | None = None
    bounds: Bounds | None = None
    writes: Range | None = None
    factor: float = 1.0
    channel_scale: int | None = None
    product: int | None = None
    kind: str = "affine"


@dataclasses.dataclass(frozen=True)
class ConcatSpec:
    """Joins the channels of buffers; ``input`` is the first of ``parts``."""

    name: str
    input: int
    output: int
    parts: tuple[int, ...]
    kind: str = "concat"


@dataclasses.dataclass(frozen=True)
class SliceSpec:
    """Some of a buffer's channels."""

    name: str
    input: int
    output: int
    first_channel: int
    channels: int
    kind: str = "slice"


@dataclasses.dataclass(frozen=True)
class PadSpec:
    """Zeros around an image: ``padding`` is (top, left, bottom, right); negative ones crop."""

    name: str
    input: int
    output: int
    padding: tuple[int, int, int, int]
    kind: str = "pad"


@dataclasses.dataclass(frozen=True)
class DepthToSpaceSpec:
    """Channels that become pixels: the pixels of each ``block`` (height, width) of the output lie one behind the other
    in the input's channels, row by row. ``crop`` (top, left, bottom, right) of the image that they make is left out.
    """

    name: str
    input: int
    output: int
    block: tuple[int, int]
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    kind: str = "depth_to_space"


@dataclasses.dataclass(frozen=True)
class ChannelShuffleSpec:
    """The channels of ``groups`` take turns (Zhang et al., 2018, "ShuffleNet"), as ``F.channel_shuffle`` does it.

    ``views`` where it was written as views and a copy, which torch lays out in contiguous memory.
    """

    name: str
    input: int
    output: int
    groups: int
    views: bool = False
    kind: str = "channel_shuffle"


@dataclasses.dataclass(frozen=True)
class ResizeSpec:
    """Resampling as ``F.interpolate`` does it: to a ``size``, by factors, or to the size of the buffer ``like``."""

    name: str
    input: int
    output: int
    bilinear: bool
    align_corners: bool = False
    size: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    like: int | None = None
    kind: str = "resize"


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """``act(norm(input) + residual)`` with the statistics of each image's ``groups`` of channels (a group norm) or,
    with none, of each pixel's channels (a layer norm, which adds no residual). ``weight`` and ``bias`` are places.
    """

    name: str
    input: int
    output: int
    weight: int | None
    bias: int | None
    eps: float
    groups: int
    residual: int | None = None
    activation: str = "none"
    slope: float = 0.0
    slopes: int | None = None
    bounds: Bounds | None = None
    kind: str = "norm"


LayerSpec = (
    ConvSpec
    | MaxPoolSpec
    | AvgPoolSpec
    | GlobalAvgPoolSpec
    | AffineSpec
    | ConcatSpec
    | SliceSpec
    | PadSpec
    | DepthToSpaceSpec
    | ChannelShuffleSpec
    | ResizeSpec
    | NormSpec
)
_KINDS: dict[str, type[LayerSpec]] = {
    "conv": ConvSpec,
    "max_pool": MaxPoolSpec,
    "avg_pool": AvgPoolSpec,
    "global_avg_pool": GlobalAvgPoolSpec,
    "affine": AffineSpec,
    "concat": ConcatSpec,
    "slice": SliceSpec,
    "pad": PadSpec,
    "depth_to_space": DepthToSpaceSpec,
    "channel_shuffle": ChannelShuffleSpec,
    "resize": ResizeSpec,
    "norm": NormSpec,
}
# Layers that compute nothing of their own.
MOVING = (ConcatSpec, SliceSpec, PadSpec, DepthToSpaceSpec, ChannelShuffleSpec, ResizeSpec)
# Layers that read and write real numbers only.
REAL = (*MOVING, NormSpec)


def reads(layer: LayerSpec) -> tuple[int, ...]:
    """The buffers that a layer reads."""
    if isinstance(layer, ConcatSpec):
        return layer.parts
    others = [layer.residual] if isinstance(layer, (ConvSpec, AffineSpec, NormSpec)) else []
    others += [layer.gate, layer.product] if isinstance(layer, AffineSpec) else []
    return (layer.input, *(buffer for buffer in others if buffer is not None))


@dataclasses.dataclass(frozen=True)
class OutputSpec:
    """A buffer that the program returns, as [N, C, H, W] (rank 4) or [N, C] (rank 2, one pixel)."""

    buffer: int
    rank: int = 4


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """Inputs (buffer numbers 0, 1, ... with their channels), layers in order, outputs."""

    inputs: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    outputs: tuple[OutputSpec, ...]

    def channels(self, buffer: int) -> int:
        """Channels of a buffer."""
        if buffer < len(self.inputs):
            return self.inputs[buffer]
        layer = self.layers[buffer - len(self.inputs)]
        if isinstance(layer, ConvSpec):
            return layer.out_channels
        if isinstance(layer, ConcatSpec):
            return sum(map(self.channels, layer.parts))
        if isinstance(layer, DepthToSpaceSpec):
            return self.channels(layer.input) // math.prod(layer.block)
        return layer.channels if isinstance(layer, SliceSpec) else self.channels(layer.input)

    @functools.cached_property
    def ranges(self) -> dict[int, Range]:
        """The buffers that hold bytes, and what these stand for; a max-pool hands on what it reads."""
        held: dict[int, Range] = {}
        for layer in self.layers:
            found = held.get(layer.input) if isinstance(layer, MaxPoolSpec) else getattr(layer, "writes", None)
            if found is not None:
                held[layer.output] = found
        return held

    def computes_bytes(self, layer: LayerSpec) -> bool:
        """Whether a layer's input is bytes when it computes with it."""
        return layer.input in self.ranges or (isinstance(layer, ConvSpec) and layer.reads is not None)

    @functools.cached_property
    def has_bytes(self) -> bool:
        """Whether some of it computes with bytes."""
        return bool(self.ranges) or any(self.computes_bytes(layer) for layer in self.layers)

    @functools.cached_property
    def parameter_count(self) -> int:
        """How many parameters the layers read."""
        places: list[int | None] = [-1]
        for layer in self.layers:
            if isinstance(layer, ConvSpec):
                places += [layer.weight, layer.bias, layer.weight_steps, layer.weight_zeros]
                places += [layer.weight_lost, layer.input_means]
            if isinstance(layer, NormSpec):
                places += [layer.weight, layer.bias]
            places += [getattr(layer, "channel_scale", None), getattr(layer, "slopes", None)]
            norm = getattr(layer, "batch_norm", None)
            places += [] if norm is None else [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return 1 + max(place for place in places if place is not None)

    @functools.cached_property
    def other_types(self) -> frozenset[int]:
        """Places of parameters that have types of their own: those of quantised weights."""
        places: list[int | None] = []
        for layer in self.layers:
            if isinstance(layer, ConvSpec) and (layer.weight_zeros is not None or layer.weight_lost is not None):
                places += [layer.weight, layer.weight_zeros, layer.weight_lost]
        return frozenset(place for place in places if place is not None)

    def with_outputs(self, outputs: Sequence[OutputSpec]) -> ProgramSpec:
        """The same program returning other buffers."""
        return dataclasses.replace(self, outputs=tuple(outputs))

    def to_text(self) -> str:
        """One line of JSON, the same for equal programs."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), allow_nan=False)

    @staticmethod
    @functools.lru_cache(maxsize=512)
    def from_text(text: str) -> ProgramSpec:
        """The inverse of `to_text`; raises ValueError for anything else."""
        try:
            data = json.loads(text)
            return ProgramSpec(
                tuple(int(c) for c in data["inputs"]),
                tuple(_layer(layer) for layer in data["layers"]),
                tuple(OutputSpec(**output) for output in data["outputs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"program: got text that is no program specification ({error!r})") from error

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Shapes of the outputs for [N, C, H, W] shapes of the inputs; works with symbolic sizes."""
        shapes = self.buffer_shapes(inputs)
        return [shapes[o.buffer][:2] if o.rank == 2 else shapes[o.buffer] for o in self.outputs]

    def buffer_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[N, C, H, W] of every buffer for those of the inputs; works with symbolic sizes."""
        extents: list[tuple[Any, Any]] = [(shape[2], shape[3]) for shape in inputs]
        for layer in self.layers:
            like = layer.like if isinstance(layer, ResizeSpec) else None
            extents.append(_output_extent(layer, extents[layer.input]) if like is None else extents[like])
        return [[inputs[0][0], self.channels(buffer), *extent] for buffer, extent in enumerate(extents)]


def check_operands(spec: ProgramSpec, shapes: Sequence[Sequence[Any]]) -> None:
    """Raises ValueError where a residual or gate is of another size than its layer takes; ``shapes`` of all buffers."""
    for layer in spec.layers:
        if isinstance(layer, AffineSpec) and layer.gate is not None:
            _require_extent(layer, "gate", shapes[layer.gate], (1, 1))
        if isinstance(layer, AffineSpec) and layer.product is not None:
            _require_extent(layer, "product", shapes[layer.product], shapes[layer.output][2:])
        if isinstance(layer, (ConvSpec, AffineSpec, NormSpec)) and layer.residual is not None:
            _require_extent(layer, "residual", shapes[layer.residual], shapes[layer.output][2:])
        for part in layer.parts[1:] if isinstance(layer, ConcatSpec) else ():
            _require_extent(layer, "part of a concatenation", shapes[part], shapes[layer.output][2:])


def _layer(data: dict[str, Any]) -> LayerSpec:
    data = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    if data.get("batch_norm") is not None:
        data["batch_norm"] = BatchNormSpec(**data["batch_norm"])
    return _KINDS[data["kind"]](**data)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) of TensorFlow's "same" padding of one axis; the odd one goes behind."""
    out = -(-size // stride)
    total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def _require_extent(layer: LayerSpec, what: str, shape: Sequence[Any], want: Sequence[Any]) -> None:
    height, width = shape[2:]
    if height != want[0] or width != want[1]:
        raise ValueError(f"{layer.name}: the {what} is {height} x {width}, want {want[0]} x {want[1]}")


def _scaled(size: Any, scale: float) -> Any:
    """As torch rounds it; whole factors of symbolic sizes too."""
    return size * int(scale) if scale == int(scale) else math.floor(float(size) * scale)


def _output_extent(layer: LayerSpec, extent: tuple[Any, Any]) -> tuple[Any, Any]:
    if isinstance(layer, GlobalAvgPoolSpec):
        return 1, 1
    if isinstance(layer, (AffineSpec, ConcatSpec, SliceSpec, ChannelShuffleSpec, NormSpec)):
        return extent
    if isinstance(layer, PadSpec):
        top, left, bottom, right = layer.padding
        return extent[0] + top + bottom, extent[1] + left + right
    if isinstance(layer, DepthToSpaceSpec):
        top, left, bottom, right = layer.crop
        return extent[0] * layer.block[0] - top - bottom, extent[1] * layer.block[1] - left - right
    if isinstance(layer, ResizeSpec):
        if layer.size is not None:
            return layer.size
        assert layer.scale is not None
        return _scaled(extent[0], layer.scale[0]), _scaled(extent[1], layer.scale[1])
    sizes = []
    for axis, size in enumerate(extent):
        stride = layer.stride[axis]
        if layer.padding is None:
            sizes.append((size + stride - 1) // stride)
            continue
        before, after = layer.padding[axis], layer.padding[axis + 2]
        span = size + before + after - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1
        if isinstance(layer, (MaxPoolSpec, AvgPoolSpec)) and layer.ceil_mode:
            out = (span + stride - 1) // stride + 1
            sizes.append(out - 1 if (out - 1) * stride >= size + before else out)
        else:
            sizes.append(span // stride + 1)
    return sizes[0], sizes[1]
