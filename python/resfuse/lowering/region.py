"""Building one program from consecutive supported nodes.

Layers with an epilogue are emitted late: one stays pending while batch norm, a residual sum and an activation may still
join it, and becomes a layer when something else needs its value. What has no convolution to join becomes an elementwise
layer, to which the next ones join.

A feature map that the graph itself rounds to bytes is written so by the layer that makes it, where that can and nobody
else wants it unrounded. Else convolutions round as they read it, and an elementwise layer does for the others.
"""

from __future__ import annotations

import dataclasses
import math

from torch import fx

from resfuse.engine.spec import LayerSpec, OutputSpec, ProgramSpec, Range
from resfuse.lowering.moving import ResizedLike
from resfuse.lowering.op import Conv, Op, Parameter, may_write
from resfuse.lowering.pending import PIXELS, Buffer, Emitted, Pending, Value
from resfuse.lowering.specs import layer_spec, norm_mode
from resfuse.lowering.steps import ProgramStep

_LAYERS = ("conv", "global_avg_pool")  # at least one of them makes a program


class Region:
    """Takes nodes one by one (`add`) while they fit, then becomes a `ProgramStep` (`close`)."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._values: dict[fx.Node, Value] = {}
        self._inputs: dict[fx.Node, Buffer] = {}
        self._emitted: list[Emitted] = []
        self._conversions: dict[tuple[Buffer, Range | None], Buffer] = {}
        self._joined: dict[tuple[Buffer, ...], Buffer] = {}
        self._slices: dict[Buffer, tuple[Buffer, tuple[int, int]]] = {}  # what they are cut from, and which channels
        self.nodes: list[fx.Node] = []

    def add(self, node: fx.Node, op: Op) -> str | None:
        """Takes a node in; a text instead says why it does not fit."""
        reason = getattr(self, f"_add_{op.kind}")(node, op)
        if reason is None:
            self.nodes.append(node)
        return reason  # type: ignore[no-any-return]

    def is_program(self) -> bool:
        """Whether it could end here, as a program of its own."""
        layers = any(e.kind in _LAYERS for e in self._emitted) or any(
            value.pending is not None and value.pending.conv is not None for value in self._values.values()
        )
        return layers and all(buffer.channels is not None for buffer in self._inputs.values())

    def is_independent_of(self, node: fx.Node) -> bool:
        """Whether a node may as well run before all of this region: it reads none of its values, and writes to nothing
        that the region reads.
        """
        sources = node.all_input_nodes
        if any(source in self._values for source in sources):
            return False
        return not (may_write(node) and any(user in self._values for source in sources for user in source.users))

    # One method for each kind of `Op`.

    def _add_conv(self, node: fx.Node, op: Op) -> str | None:
        conv = op.conv
        assert conv is not None
        rank = self._rank_of(op.inputs[0])
        if conv.linear and rank == PIXELS:
            source, reads = self._read_for(conv, op.inputs[0])
            if source is None or not source.expect(conv.in_channels):
                return "its input is no feature map of as many channels as it takes"
        elif conv.linear:
            source, reads = self._read_for(conv, op.inputs[0]) if op.inputs[0] in self._values else (None, None)
            if source is None or not source.one_pixel or not source.expect(conv.in_channels):
                return "its input is not a global average pool"
        elif rank != 4:
            return "its input's channels come last"
        else:
            conv = self._with_padding_of(op.inputs[0], conv)
            source, reads = self._read_for(conv, op.inputs[0])
            if source is None or not source.expect(conv.in_channels):
                return "its input is no feature map of as many channels as it takes"
        pending = Pending(op.name or node.name, source, conv, reads=reads)
        rank = (PIXELS if rank == PIXELS else 2) if conv.linear else 4
        self._values[node] = Value(node, rank, None, pending, source.one_pixel and conv.pointwise)
        return None

    def _add_batch_norm(self, node: fx.Node, op: Op) -> str | None:
        norm = op.norm
        assert norm is not None
        pending = self._joinable(op.inputs[0])
        joins = pending is not None and pending.conv is not None and not pending.linear
        plain = pending is not None and pending.residual is None and pending.factor == 1.0
        plain = plain and pending is not None and pending.channel_scale is None
        if joins and plain and pending is not None and pending.norm is None:
            pending.norm = norm
            self._join(node, op.inputs[0])
        else:
            source = self._read(op.inputs[0], rank=4)
            if source is None or source.one_pixel or not source.expect(norm.channels):
                return "batch norm of no feature map of as many channels as it takes"
            self._elementwise(node, Pending(op.name or node.name, source, norm=norm))
        return None if op.activation == "none" else self._activate(node, node, op)

    def _add_activation(self, node: fx.Node, op: Op) -> str | None:
        return self._activate(node, op.inputs[0], op)

    def _activate(self, node: fx.Node, source_node: fx.Node, op: Op) -> str | None:
        """``source_node`` may be the node itself, for an activation that is a part of it."""
        pending = self._joinable(source_node, own=source_node is node)
        if op.activation == "prelu" and not self._has_slopes(source_node, op.shape):
            return "prelu of other than one slope for each channel of a feature map, or one for all"
        if op.activation == "softmax":
            if pending is None or not pending.linear:
                return "softmax that follows no linear layer of its own"
        elif pending is None:
            rank = self._rank_of(source_node)
            source = self._read(source_node, rank)
            if source is None or rank == 2:
                return f"{op.activation} of no feature map"
            pending = Pending(node.name, source)
            self._elementwise(node, pending, source.one_pixel, rank)
            source_node = node
        pending.activation, pending.slope, pending.slopes = op.activation, op.slope, op.parameter
        pending.bounds = op.bounds
        if source_node is not node:
            self._join(node, source_node)
        return None

    def _has_slopes(self, node: fx.Node, shape: tuple[int, ...]) -> bool:
        """Whether prelu can take slopes of this shape: of the channels, which are torch's second dimension."""
        if len(shape) > 1:
            return False
        if math.prod(shape) == 1:
            return True
        value, rank = self._values.get(node), self._rank_of(node)
        if rank == PIXELS:
            return False
        pending = None if value is None else value.pending
        buffer = self._read(node, rank) if pending is None else pending.makes(False)
        return buffer is not None and buffer.expect(shape[0])

    def _add_add(self, node: fx.Node, op: Op) -> str | None:
        if op.inputs[0] is op.inputs[1] or any(self._is_unit(source) for source in op.inputs):
            return "sum that may broadcast"
        ranks = {self._rank_of(source) for source in op.inputs}
        if len(ranks) > 1:
            return "sum of tensors whose channels are in other dimensions"
        (rank,) = ranks
        for main, other in (op.inputs, op.inputs[::-1]):
            pending = self._joinable(main)
            if pending is None or (pending.linear and rank != PIXELS) or pending.residual is not None:
                continue
            if pending.statistics is not None and pending.statistics.groups == 0:
                continue
            real = pending.statistics is not None or pending.product is not None
            mixes = (pending.conv is None and not real) or pending.computes_bytes
            residual = self._read(other, rank) if mixes else self._read_real(other, rank)
            if residual is None or not self._alike(residual, pending):
                continue
            pending.residual = residual
            self._join(node, main)
            return None
        if not any(source in self._values for source in op.inputs):
            return "sum of tensors that are computed elsewhere"
        first, second = (self._read(source, rank) for source in op.inputs)
        if rank == 2 or first is None or second is None or not self._same_channels(first, second):
            return "sum of other than two feature maps"
        self._elementwise(node, Pending(node.name, first, residual=second), rank=rank)
        return None

    def _add_multiply(self, node: fx.Node, op: Op) -> str | None:
        for main, gate in (op.inputs, op.inputs[::-1]):
            if not self._is_unit(gate) or self._is_unit(main) or main is gate:
                continue
            if self._rank_of(main) != 4:
                break
            source, factor = self._read(main, rank=4), self._read_real(gate, rank=4)
            if source is None or factor is None or not self._same_channels(source, factor):
                break
            self._elementwise(node, Pending(node.name, source, gate=factor))
            return None
        return self._multiply_maps(node, op)

    def _multiply_maps(self, node: fx.Node, op: Op) -> str | None:
        ranks = {self._rank_of(source) for source in op.inputs}
        known = all(source in self._values for source in op.inputs)
        if len(ranks) > 1 or 2 in ranks or not known or any(self._is_unit(source) for source in op.inputs):
            return "product of other than two feature maps, or one and one number for each of its channels"
        (rank,) = ranks
        first, second = (self._read_real(source, rank) for source in op.inputs)
        if first is None or second is None or not self._same_channels(first, second):
            return "product of feature maps of different numbers of channels"
        self._elementwise(node, Pending(node.name, first, product=second), rank=rank)
        return None

    def _add_scale(self, node: fx.Node, op: Op) -> str | None:
        value = self._values.get(op.inputs[0])
        if value is None or value.rank == 2:
            return "a number times what is computed elsewhere"
        pending = self._scalable(op.inputs[0])
        # A ReLU may as well be applied behind a positive factor.
        if pending is not None and (pending.activation == "none" or (pending.activation == "relu" and op.factor > 0)):
            pending.factor *= op.factor
            self._join(node, op.inputs[0])
        else:
            source = self._read(op.inputs[0], value.rank)
            assert source is not None
            self._elementwise(node, Pending(node.name, source, factor=op.factor), source.one_pixel, value.rank)
        return None

    def _scalable(self, node: fx.Node) -> Pending | None:
        """The pending layer behind a node, where it can multiply its own result and nobody wants that as it is now."""
        value = self._values[node]
        pending = value.pending
        if pending is None or len(node.users) != 1 or pending.writes is not None:
            return None
        if any(part is not None for part in (pending.residual, pending.gate, pending.product, pending.statistics)):
            return None
        # In training a batch norm's weight and bias take the factor.
        taken = pending.conv is None or pending.norm is None or pending.norm.weight is not None
        return pending if taken else None

    def _add_channel_scale(self, node: fx.Node, op: Op) -> str | None:
        value = self._values.get(op.inputs[0])
        if value is None or value.rank == 2:
            return "a parameter times what is computed elsewhere"
        waiting = value.pending
        buffer = waiting.makes(False) if waiting is not None else self._read(op.inputs[0], value.rank)
        lengths = op.shape if value.rank == PIXELS else op.shape[-3:-2]
        channels = None if buffer is None else buffer.channels
        if channels is None or lengths[-1:] != (channels,) or math.prod(op.shape) != channels or len(op.shape) > 4:
            return "a product with a parameter that is not one number for each channel"
        pending = self._scalable(op.inputs[0])
        if pending is not None and pending.activation == "none" and pending.channel_scale is None:
            pending.channel_scale = op.parameter
            self._join(node, op.inputs[0])
        else:
            source = self._read(op.inputs[0], value.rank)
            assert source is not None
            scaled = Pending(node.name, source, channel_scale=op.parameter)
            self._elementwise(node, scaled, source.one_pixel, value.rank)
        return None

    def _add_norm(self, node: fx.Node, op: Op) -> str | None:
        statistics = op.statistics
        assert statistics is not None
        rank = 4 if statistics.groups > 0 else PIXELS
        if op.inputs[0] not in self._values or self._rank_of(op.inputs[0]) != rank:
            return "normalises what is computed elsewhere, or over other dimensions than channels"
        source = self._read_real(op.inputs[0], rank)
        known = statistics.channels
        if source is None or (known is not None and not source.expect(known)):
            return "normalises no feature map of as many channels as it takes"
        if source.channels is None or (statistics.groups and source.channels % statistics.groups):
            return "normalises groups of an unknown number of channels"
        pending = Pending(op.name or node.name, source, statistics=statistics)
        self._elementwise(node, pending, source.one_pixel, rank)
        return None

    def _add_permute(self, node: fx.Node, op: Op) -> str | None:
        value = self._values.get(op.inputs[0])
        if value is None or value.rank != (4 if op.to_pixels else PIXELS):
            return "permutes what is computed elsewhere"
        rank = PIXELS if op.to_pixels else 4
        if value.pending is not None and _data_users(op.inputs[0]) == 1:
            self._values[node] = dataclasses.replace(value, rank=rank)
        else:
            buffer = self._rounded(value)
            self._values[node] = Value(node, rank, buffer, one_pixel=value.one_pixel)
        return None

    def _add_max_pool(self, node: fx.Node, op: Op) -> str | None:
        return self._emit_pool(node, op, one_pixel=False)

    def _add_avg_pool(self, node: fx.Node, op: Op) -> str | None:
        return self._emit_pool(node, op, one_pixel=False)

    def _add_global_avg_pool(self, node: fx.Node, op: Op) -> str | None:
        return self._emit_pool(node, op, one_pixel=True)

    def _add_concat(self, node: fx.Node, op: Op) -> str | None:
        if not any(source in self._values for source in op.inputs):
            return "joins what is computed elsewhere"
        found = [self._read_real(source, rank=4) for source in op.inputs]
        buffers = [buffer for buffer in found if buffer is not None]
        if len(buffers) < len(found):
            return "joins other than feature maps"
        parts = self._longest(tuple(buffers))
        if parts not in self._joined:
            one_pixel = all(part.one_pixel for part in parts)
            self._joined[parts] = Buffer(None, one_pixel=one_pixel, parts=parts)
            self._emitted.append(Emitted("concat", node, parts[0], self._joined[parts], parts=parts))
        buffer = self._joined[parts]
        self._values[node] = Value(node, 4, buffer, one_pixel=buffer.one_pixel)
        return None

    def _longest(self, parts: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        """The same channels in fewer parts: slices that are all of a buffer are that, and what was joined before need
        not be joined again.
        """
        for begin in range(len(parts)):
            source = self._slices.get(parts[begin], (None, (0, 0)))[0]
            channel = 0
            for end in range(begin, len(parts) if source is not None else 0):
                other, (first, count) = self._slices.get(parts[end], (None, (0, 0)))
                if other is not source or first != channel:
                    break
                channel += count
                if source is not None and channel == source.channels:
                    return self._longest((*parts[:begin], source, *parts[end + 1 :]))
        for end in range(len(parts) - 1, 0, -1):
            if parts[:end] in self._joined:
                return self._longest((self._joined[parts[:end]], *parts[end:]))
        return parts

    def _add_slice(self, node: fx.Node, op: Op) -> str | None:
        if op.inputs[0] not in self._values and op.inputs[0] not in self._inputs:
            return "takes channels of what is computed elsewhere"
        source = self._read_real(op.inputs[0], rank=4)
        if source is None or source.channels is None or op.channels is None:
            return "takes channels of no feature map, or one of an unknown number of them"
        channels = op.channels.among(source.channels)
        if channels is None:
            return f"takes channels that a feature map of {source.channels} has not"
        buffer = Buffer(channels[1], one_pixel=source.one_pixel)
        self._slices[buffer] = source, channels
        self._emitted.append(Emitted("slice", node, source, buffer, channels=channels))
        self._values[node] = Value(node, 4, buffer, one_pixel=source.one_pixel)
        return None

    def _add_pad(self, node: fx.Node, op: Op) -> str | None:
        if self.nodes and op.inputs[0] not in self._values and op.inputs[0] not in self._inputs:
            return "pads what is computed elsewhere"  # of so many channels as nobody may say
        source = self._read_real(op.inputs[0], rank=4)
        if source is None:
            return "pads no feature map"
        self._values[node] = Value(node, 4, source, padding=op.padding)
        return None

    def _add_depth_to_space(self, node: fx.Node, op: Op) -> str | None:
        if op.inputs[0] not in self._values:
            return "makes pixels of channels that are computed elsewhere"
        source = self._read_real(op.inputs[0], rank=4)
        phases = op.block[0] * op.block[1]
        if source is None or source.channels is None or source.channels % phases:
            return "makes pixels of channels of no feature map, or of an unknown number of them"
        buffer = Buffer(source.channels // phases)
        self._emitted.append(Emitted("depth_to_space", node, source, buffer, padding=op.padding, block=op.block))
        self._values[node] = Value(node, 4, buffer)
        return None

    def _add_channel_shuffle(self, node: fx.Node, op: Op) -> str | None:
        if op.inputs[0] not in self._values:
            return "shuffles channels that are computed elsewhere"
        source = self._read_real(op.inputs[0], rank=4)
        if source is None or source.channels is None or source.channels % op.groups:
            return "shuffles channels of no feature map, or of an unknown number of them"
        if op.mean and source.channels == op.groups:
            return "groups of one channel, whose views copy nothing"
        buffer = Buffer(None, like=source)
        self._emitted.append(Emitted("channel_shuffle", node, source, buffer, groups=op.groups, mean=op.mean))
        self._values[node] = Value(node, 4, buffer)
        return None

    def _add_resize(self, node: fx.Node, op: Op) -> str | None:
        if op.inputs[0] not in self._values:
            return "resamples what is computed elsewhere"
        source = self._read_real(op.inputs[0], rank=4)
        like = self._extent_of(op.inputs[1]) if len(op.inputs) > 1 else None
        if source is None or (len(op.inputs) > 1 and like is None):
            return "resamples no feature map, or to the size of none"
        buffer = Buffer(None, like=source)
        self._emitted.append(Emitted("resize", node, source, buffer, resize=op.resize, like=like))
        self._values[node] = Value(node, 4, buffer)
        return None

    def _extent_of(self, node: fx.Node) -> Buffer | None:
        """A buffer of a node's height and width; a layer that may still grow stays so where there is another one."""
        value = self._values.get(node)
        if value is not None and value.pending is not None and value.padding is None:
            conv = value.pending.conv
            if conv is None or conv.pointwise:
                return value.pending.input
        return self._read(node, rank=4)

    def _add_flatten(self, node: fx.Node, op: Op) -> str | None:
        value = self._values.get(op.inputs[0])
        if value is None or not value.one_pixel:
            return "flattens more than one pixel"
        self._values[node] = Value(node, 2, self._materialize(value), one_pixel=True, rounds=value.rounds)
        return None

    def _add_round(self, node: fx.Node, op: Op) -> str | None:
        source, range = op.inputs[0], op.range
        value = self._values.get(source)
        if value is None:
            if self.nodes and source not in self._inputs:
                return "rounds what is computed elsewhere"  # of so many channels as nobody may say
            value = Value(source, 4, self._read(source, rank=4))
        elif len(source.users) == 1 and self._write_bytes(value, range):
            self._join(node, source)
            return None
        buffer, rounds = self._materialize(value), value.rounds
        if buffer.range is None and rounds in (None, range):
            rounds = range
        else:
            buffer, rounds = self._converted(node, self._rounded(value), range), None
        self._values[node] = Value(node, value.rank, buffer, one_pixel=value.one_pixel, rounds=rounds)
        return None

    # Helpers.

    def _write_bytes(self, value: Value, range: Range | None) -> bool:
        """Has the layer that makes a value write bytes, if it can."""
        pending, emitted = value.pending, value.emitted
        if pending is not None:
            if pending.activation == "softmax" or (pending.conv is not None and not pending.computes_bytes):
                return False
            if pending.statistics is not None or pending.product is not None:
                return False
            pending.writes = range
            self._materialize(value)
            return True
        if emitted is None or emitted.kind == "max_pool" or emitted.input.range is None or emitted.writes is not None:
            return False
        emitted.writes = emitted.output.range = range
        return True

    def _converted(self, node: fx.Node, buffer: Buffer, range: Range | None) -> Buffer:
        """The same numbers as bytes of a range, or (None) as real ones, by a layer of its own."""
        if buffer.range == range:
            return buffer
        key = (buffer, range)
        if key not in self._conversions:
            pending = Pending(node.name, buffer, writes=range)
            self._conversions[key] = pending.makes(buffer.one_pixel)
            self._emitted.append(Emitted("affine", node, buffer, self._conversions[key], pending))
        return self._conversions[key]

    def _rounded(self, value: Value) -> Buffer:
        """The buffer of a value, rounded if it is to be."""
        buffer = self._materialize(value)
        return buffer if value.rounds is None else self._converted(value.node, buffer, value.rounds)

    def _with_padding_of(self, node: fx.Node, conv: Conv) -> Conv:
        """A convolution that pads as a value does that it reads, where that is the value's only use."""
        value = self._values.get(node)
        if value is None or value.padding is None or len(node.users) > 1 or conv.padding is None or conv.bytes:
            return conv
        source = value.buffer
        if source is None or not source.expect(conv.in_channels) or any(pad < 0 for pad in value.padding):
            return conv
        padding = tuple(a + b for a, b in zip(conv.padding, value.padding, strict=True))
        value.padding = None
        return dataclasses.replace(conv, padding=padding)  # type: ignore[arg-type]

    def _read_for(self, conv: Conv, node: fx.Node) -> tuple[Buffer | None, Range | None]:
        """What a convolution reads, and how it rounds it; without bytes of weights it reads real numbers."""
        rank = self._rank_of(node) if conv.linear else 4
        value = self._values.get(node)
        if conv.bytes is None:
            return self._read_real(node, rank), None
        if value is None or value.rank != rank:
            return self._read(node, rank), None
        return self._materialize(value), value.rounds

    def _read_real(self, node: fx.Node, rank: int) -> Buffer | None:
        """As `_read`, of real numbers."""
        buffer = self._read(node, rank)
        return None if buffer is None else self._converted(node, buffer, None)

    def _emit_pool(self, node: fx.Node, op: Op, one_pixel: bool) -> str | None:
        if self.nodes and op.inputs[0] not in self._values and op.inputs[0] not in self._inputs:
            return "pools what is computed elsewhere"  # of so many channels as nobody may say
        source = self._read(op.inputs[0], rank=4)
        if source is None:
            return "its input is no feature map"
        held = source.range if op.kind == "max_pool" else None
        buffer = Buffer(None, like=source, one_pixel=one_pixel, range=held)
        emitted = Emitted(op.kind, node, source, buffer, pool=op.pool, mean=op.mean)
        self._emitted.append(emitted)
        self._values[node] = Value(node, 4 if op.keepdim else 2, buffer, one_pixel=one_pixel, emitted=emitted)
        return None

    def _elementwise(self, node: fx.Node, pending: Pending, one_pixel: bool = False, rank: int = 4) -> None:
        self._values[node] = Value(node, rank, None, pending, one_pixel)

    def _rank_of(self, node: fx.Node) -> int:
        """Of a node's value; what comes from outside is a feature map."""
        return self._values[node].rank if node in self._values else 4

    def _is_unit(self, node: fx.Node) -> bool:
        return node in self._values and self._values[node].one_pixel

    def _alike(self, residual: Buffer, pending: Pending) -> bool:
        if pending.conv is not None:
            return residual.expect(pending.conv.out_channels)
        return self._same_channels(residual, pending.input)

    @staticmethod
    def _same_channels(a: Buffer, b: Buffer) -> bool:
        if a.channels is not None:
            return b.expect(a.channels)
        return b.channels is not None and a.expect(b.channels)

    def _read(self, node: fx.Node, rank: int) -> Buffer | None:
        """The buffer of a node's value, computed here or brought in from outside."""
        value = self._values.get(node)
        if value is not None:
            return self._rounded(value) if value.rank == rank else None
        if rank != 4:
            return None
        if node not in self._inputs:
            self._inputs[node] = Buffer(None)
        return self._inputs[node]

    def _joinable(self, node: fx.Node, own: bool = False) -> Pending | None:
        """The pending layer behind a node whose value nobody else wants as it is now."""
        value = self._values.get(node)
        if value is None or value.pending is None or value.pending.activation != "none":
            return None
        return value.pending if own or _data_users(node) == 1 else None

    def _join(self, node: fx.Node, source: fx.Node) -> None:
        value = self._values[source]
        value.node = node
        self._values[node] = value

    def _materialize(self, value: Value) -> Buffer:
        if value.padding is not None:
            source, padding = value.buffer, value.padding
            assert source is not None
            value.buffer, value.padding = Buffer(None, like=source), None
            self._emitted.append(Emitted("pad", value.node, source, value.buffer, padding=padding))
        if value.buffer is None:
            pending = value.pending
            assert pending is not None
            value.buffer = pending.makes(value.one_pixel)
            kind = "affine" if pending.conv is None else "conv"
            self._emitted.append(Emitted(kind, value.node, pending.input, value.buffer, pending))
            value.pending = None
        return value.buffer

    # Closing.

    def parts_for_others(self) -> list[fx.Node]:
        """Parts of feature maps that are read outside: views there, which native nodes make of the whole."""
        return [node for node in self.nodes if self._is_part_for_others(node, set(self.nodes))]

    def _is_part_for_others(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        if self._values[node].buffer not in self._slices:
            return False
        return any(user not in inside or self._is_part_for_others(user, inside) for user in node.users)

    def _leaves(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether a node's value is an output: others read it, or a part of it."""
        if self._is_part_for_others(node, inside):
            return False
        return any(user not in inside or self._is_part_for_others(user, inside) for user in node.users)

    def close(self) -> ProgramStep | str:
        """The program, or why these nodes make none."""
        inside = set(self.nodes)
        outputs: list[tuple[fx.Node, int, Buffer]] = []
        for node in self.nodes:
            if self._leaves(node, inside):
                value = self._values[node]
                outputs.append((node, value.rank, self._converted(node, self._rounded(value), None)))
        if not any(e.kind in _LAYERS for e in self._emitted):
            return "no convolution beside it to be fused with"
        if any(buffer.channels is None for buffer in self._inputs.values()):
            return "the number of channels of its input is not known"
        if any(buffer in self._inputs.values() for _, _, buffer in outputs):
            return "hands an input through"
        if any(rank == PIXELS for _, rank, _ in outputs):
            return "hands on a feature map whose channels come last"
        try:
            return self._step(outputs)
        except ValueError:  # of JSON
            return "a number of its layers is not finite"

    def _step(self, outputs: list[tuple[fx.Node, int, Buffer]]) -> ProgramStep:
        numbers: dict[Buffer, int] = {buffer: i for i, buffer in enumerate(self._inputs.values())}
        parameters: list[Parameter] = []
        layers: list[LayerSpec] = []
        for emitted in self._emitted:
            numbers[emitted.output] = len(numbers)
            layers.append(layer_spec(emitted, numbers, parameters, self._algorithm))
        wanted: dict[tuple[int, int], fx.Node] = {}
        aliases: list[tuple[fx.Node, fx.Node]] = []
        for node, rank, buffer in outputs:
            first = wanted.setdefault((numbers[buffer], rank), node)
            if first is not node:
                aliases.append((node, first))
        spec = ProgramSpec(
            tuple(int(b.channels or 0) for b in self._inputs.values()),
            tuple(layers),
            tuple(OutputSpec(*key) for key in wanted),
        )
        return ProgramStep(
            spec=spec,
            text=spec.to_text(),
            inputs=tuple(self._inputs),
            outputs=tuple(wanted.values()),
            aliases=tuple(aliases),
            parameters=tuple(parameters),
            norms=tuple(norm_mode(e.pending.norm if e.pending else None) for e in self._emitted),
            nodes=tuple(e.node for e in self._emitted),
            all_nodes=tuple(self.nodes),
        )


def _data_users(node: fx.Node) -> int:
    """How many nodes read a node's elements, and not its size alone."""
    return sum(not _reads_size_alone(user, node) for user in node.users)


def _reads_size_alone(user: fx.Node, node: fx.Node) -> bool:
    return isinstance(user.target, ResizedLike) and user.args[0] is not node
