"""The vocabulary of lowering: what one node of a graph computes, whichever way its author wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from resfuse.engine.spec import Bounds, Range
from resfuse.lowering.steps import NodeParameter, ParameterPath

Parameter = ParameterPath | NodeParameter

# Of a placeholder's meta: the tensor that a graph was made for.
GIVEN = "resfuse_given"
# Of a node that computes weights from parameters: a tensor without memory that tells their shape.
COMPUTED = "resfuse_computed"

_IN_PLACE = (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "ipow",
    "imod",
    "imatmul",
    "iand",
    "ior",
    "ixor",
    "setitem",
)


@dataclasses.dataclass(frozen=True)
class ByteWeights:
    """Steps and zero points of weights that a graph has quantised, by output channel."""

    steps: Parameter
    zeros: Parameter
    winograd: bool  # whether sums are known to be small enough for Winograd's algorithm


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution, or a linear layer; ``padding`` None is TensorFlow's "same"."""

    in_channels: int
    out_channels: int
    weight: Parameter
    bias: Parameter | None
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    groups: int = 1
    linear: bool = False
    bytes: ByteWeights | None = None  # None: real numbers

    @property
    def pointwise(self) -> bool:
        """Whether one pixel goes in for each that comes out."""
        return self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding in (None, (0, 0, 0, 0))


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm: of a module, or with the state that a call to ``F.batch_norm`` names."""

    channels: int
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Parameter
    running_var: Parameter
    eps: float
    module: str | None = None  # whose train mode counts
    training: bool = False  # of a call
    momentum: float | None = None


@dataclasses.dataclass(frozen=True)
class ChannelsOf:
    """Some of a feature map's channels: ``begin`` to ``end`` as a Python slice has them, or part ``index`` of those
    that ``chunk`` cuts them into or that ``split`` cuts them to.
    """

    begin: int | None = None
    end: int | None = None
    chunks: int = 0
    split: int = 0
    index: int = 0

    def among(self, channels: int) -> tuple[int, int] | None:
        """The first one and how many; None where there are none."""
        begin, end = self.begin, self.end
        if self.chunks or self.split:
            size = self.split or -(-channels // self.chunks)
            count = -(-channels // size)
            if self.chunks and count != self.chunks:
                return None
            index = self.index + count if self.index < 0 else self.index
            begin, end = index * size, min((index + 1) * size, channels)
            if index < 0:
                return None
        first, last, _ = slice(begin, end).indices(channels)
        return (first, last - first) if last > first else None


@dataclasses.dataclass(frozen=True)
class Resize:
    """How a feature map is resampled: to a size or by factors; without either to the size of an `Op`'s second input."""

    bilinear: bool
    align_corners: bool = False
    size: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A group norm, or with no groups a layer norm over channels."""

    groups: int
    weight: Parameter | None
    bias: Parameter | None
    eps: float
    channels: int | None  # where that is known


@dataclasses.dataclass(frozen=True)
class Op:
    """A node that a program can compute, and the nodes that it reads."""

    # conv, batch_norm, activation, add, multiply, scale, round, identity, flatten, max_pool, avg_pool, global_avg_pool,
    # concat, slice, pad, depth_to_space, channel_shuffle, resize, norm, permute, channel_scale
    kind: str
    inputs: tuple[fx.Node, ...]
    name: str = ""
    conv: Conv | None = None
    norm: Norm | None = None
    activation: str = "none"  # of an activation, or behind a batch norm
    slope: float = 0.0  # of leaky_relu; elu's alpha
    bounds: Bounds | None = None  # of clamp and hardtanh
    factor: float = 1.0  # of a scale
    keepdim: bool = True
    mean: bool = False  # a global average pool that is written as a mean, a channel_shuffle as views
    pool: dict[str, Any] | None = None
    range: Range | None = None  # of a rounding to bytes
    channels: ChannelsOf | None = None  # of a slice
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # of a pad: top, left, bottom, right
    block: tuple[int, int] = (1, 1)  # of a depth_to_space, whose crop is `padding`
    groups: int = 1  # of a channel_shuffle
    resize: Resize | None = None
    statistics: Statistics | None = None  # of a norm
    parameter: Parameter | None = None  # of a channel_scale, or the slopes of prelu
    shape: tuple[int, ...] = ()  # of that parameter
    to_pixels: bool = False  # of a permute: channels become the last dimension
    inplace: bool = False  # overwrites its first input


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """A node that stays native, and why."""

    reason: str


class WrittenNorm:
    """A batch norm that is written by hand, as one function: of the image, of the tensors that its nodes read, and of
    those that are its mean, variance, weight and bias.
    """

    __name__ = "written_norm"
    __module__ = __name__

    def __init__(self, run: Callable[[list[Any]], Any], eps: float) -> None:
        self._run = run
        self.eps = eps

    def __call__(self, x: torch.Tensor, tensors: list[torch.Tensor], *roles: Any) -> Any:
        return self._run([x, *tensors])


@dataclasses.dataclass(frozen=True)
class Rounding:
    """``dequantize(quantize(x))`` as one function; ``how`` are scale, zero point, smallest, largest and type."""

    quantize: Callable[..., Any]
    dequantize: Callable[..., Any]
    how: tuple[Any, ...]
    __name__ = "rounding"

    def __call__(self, x: torch.Tensor) -> Any:
        return self.dequantize(self.quantize(x, *self.how), *self.how)


@dataclasses.dataclass(frozen=True)
class QuantizedWeights:
    """``layer(x, dequantize(weight), ...)`` as one function; with ``quantize``, of ``dequantize(quantize(weight))``."""

    layer: Callable[..., Any]
    quantize: Callable[..., Any] | None
    dequantize: Callable[..., Any]
    how: tuple[Any, ...]  # axis, smallest, largest and type
    __name__ = "quantized_weights"

    def __call__(
        self, x: Any, weight: Any, *args: Any, weight_scales: torch.Tensor, weight_zeros: torch.Tensor, **kwargs: Any
    ) -> Any:
        if self.quantize is not None:
            weight = self.quantize(weight, weight_scales, weight_zeros, *self.how)
        return self.layer(x, self.dequantize(weight, weight_scales, weight_zeros, *self.how), *args, **kwargs)


def pair(value: Any) -> tuple[int, int]:
    """An int, or a tuple of one or two, as a pair."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def pads(padding: Any, kernel_size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) for what ``nn.Conv2d`` takes as padding."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        return totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2
    top, left = pair(padding)
    return top, left, top, left


def value_of(node: fx.Node, model: nn.Module) -> torch.Tensor | None:
    """The tensor that a node stands for while a graph is lowered: a model's attribute, or Dynamo's example."""
    if COMPUTED in node.meta:
        value: Any = node.meta[COMPUTED]
    elif node.op == "get_attr":
        value = model
        for name in str(node.target).split("."):
            value = getattr(value, name, None)
    else:
        value = node.meta.get("example_value", node.meta.get("val"))
    return value if isinstance(value, torch.Tensor) else None


def values_now(node: fx.Node, model: nn.Module) -> torch.Tensor | None:
    """A parameter with its present values; None where these cannot be known."""
    if COMPUTED in node.meta:
        return None
    value = node.meta.get(GIVEN) if node.op == "placeholder" else value_of(node, model)
    return value if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) else None


def overwrites(node: fx.Node) -> bool:
    """Whether a call of a function or method changes its first argument."""
    name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    return node.op != "call_module" and (
        bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE
    )


def may_write(node: fx.Node) -> bool:
    """Whether a call may change its arguments; a module's may."""
    return node.op == "call_module" or overwrites(node)


_OF_TORCH = ("torch", "_operator", "builtins", "math")


def only_computes(node: fx.Node) -> bool:
    """Whether a node surely does no more than compute its value, so that it may as well run later."""
    if node.op == "call_method":
        return not overwrites(node) and not _is_random(str(node.target))
    if node.op != "call_function" or overwrites(node) or "out" in node.kwargs:
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and not _is_random(target.__name__)
    name, home = str(getattr(target, "__name__", "")), str(getattr(target, "__module__", "")).split(".")[0]
    return home in _OF_TORCH and name not in ("setitem", "delitem", "_assert") and not _is_random(name)


def _is_random(name: str) -> bool:
    return any(word in name for word in ("drop", "rand", "bernoulli", "multinomial", "normal", "poisson"))
