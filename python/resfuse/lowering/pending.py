"""What a program is built from while it grows: buffers, layers that wait for more to join them, and finished layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from resfuse.engine.spec import Bounds, Range
from resfuse.lowering.op import Conv, Norm, Parameter, Resize, Statistics

# The rank of a feature map whose channels are the last dimension.
PIXELS = -4


class Buffer:
    """A tensor of the program: an input, or the output of a layer. ``like`` shares its number of channels; those of
    ``parts`` are joined.
    """

    def __init__(
        self,
        channels: int | None,
        like: Buffer | None = None,
        one_pixel: bool = False,
        range: Range | None = None,
        parts: tuple[Buffer, ...] = (),
    ) -> None:
        self._channels = channels
        self._like = like
        self.one_pixel = one_pixel  # known to be of one
        self.range = range  # of bytes
        self.parts = parts

    @property
    def channels(self) -> int | None:
        if self.parts:
            known = [part.channels for part in self.parts]
            return None if None in known else sum(channels or 0 for channels in known)
        return self._like.channels if self._like is not None else self._channels

    def expect(self, channels: int) -> bool:
        """Settles an open number of channels; False on a contradiction."""
        if self.parts:
            unknown = [part for part in self.parts if part.channels is None]
            rest = channels - sum(part.channels or 0 for part in self.parts)
            return rest == 0 if not unknown else len(unknown) == 1 and rest > 0 and unknown[0].expect(rest)
        if self._like is not None:
            return self._like.expect(channels)
        if self._channels is None:
            self._channels = channels
        return self._channels == channels


@dataclasses.dataclass
class Pending:
    """A layer that may still grow: a convolution or linear layer, or without one an elementwise layer."""

    name: str
    input: Buffer
    conv: Conv | None = None
    norm: Norm | None = None
    gate: Buffer | None = None
    product: Buffer | None = None
    residual: Buffer | None = None
    activation: str = "none"
    slope: float = 0.0
    slopes: Parameter | None = None  # of prelu
    bounds: Bounds | None = None  # of clamp and hardtanh
    factor: float = 1.0  # before the residual is added
    channel_scale: Parameter | None = None  # likewise
    statistics: Statistics | None = None  # of an elementwise layer: it normalises by these
    reads: Range | None = None  # a convolution rounds its input so
    writes: Range | None = None

    @property
    def computes_bytes(self) -> bool:
        """Whether it is a convolution of bytes."""
        return self.conv is not None and (self.reads is not None or self.input.range is not None)

    @property
    def linear(self) -> bool:
        return self.conv is not None and self.conv.linear

    def makes(self, one_pixel: bool) -> Buffer:
        """The buffer of its result."""
        if self.conv is None:
            return Buffer(None, like=self.input, one_pixel=one_pixel, range=self.writes)
        return Buffer(self.conv.out_channels, one_pixel=one_pixel, range=self.writes)


@dataclasses.dataclass
class Value:
    node: fx.Node  # the node whose result this is
    rank: int  # 4, 2 of a flattened pixel, or PIXELS
    buffer: Buffer | None = None
    pending: Pending | None = None
    one_pixel: bool = False
    emitted: Emitted | None = None  # of a pool
    rounds: Range | None = None  # the value is the buffer's real numbers, rounded so by whoever reads it
    padding: tuple[int, int, int, int] | None = None  # and with zeros around them


@dataclasses.dataclass
class Emitted:
    kind: str
    node: fx.Node
    input: Buffer
    output: Buffer
    pending: Pending | None = None
    pool: dict[str, Any] | None = None
    mean: bool = False
    writes: Range | None = None  # of a pool
    parts: tuple[Buffer, ...] = ()  # of a concatenation
    channels: tuple[int, int] = (0, 0)  # of a slice: the first one and how many
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    block: tuple[int, int] = (1, 1)  # of a depth_to_space, whose crop is `padding`
    groups: int = 1  # of a channel_shuffle
    resize: Resize | None = None
    like: Buffer | None = None  # of the size to which a resize goes
