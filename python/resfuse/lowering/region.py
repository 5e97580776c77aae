"""Building one program from consecutive supported nodes.

Convolutions are emitted late: one stays pending while batch norm, a residual sum and an activation may still join its
epilogue, and becomes a layer when something else needs its value.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx, nn

from resfuse.lowering.describe import Op, conv_padding, pair
from resfuse.lowering.steps import ParameterPath, ProgramStep
from resfuse.runtime.spec import (
    BatchNormSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    MaxPoolSpec,
    OutputSpec,
    ProgramSpec,
)


class _Buffer:
    """A tensor of the program: an input, or the output of a layer. ``like`` shares its number of channels."""

    def __init__(self, channels: int | None, like: _Buffer | None = None, unit: bool = False) -> None:
        self._channels = channels
        self._like = like
        self.unit = unit  # known to be one pixel

    @property
    def channels(self) -> int | None:
        return self._like.channels if self._like is not None else self._channels

    def expect(self, channels: int) -> bool:
        """Settles an open number of channels; False on a contradiction."""
        if self._like is not None:
            return self._like.expect(channels)
        if self._channels is None:
            self._channels = channels
        return self._channels == channels


@dataclasses.dataclass
class _PendingConv:
    module: str
    input: _Buffer
    batch_norm: str | None = None
    residual: _Buffer | None = None
    activation: str = "none"
    linear: bool = False


@dataclasses.dataclass
class _Value:
    node: fx.Node  # the node whose result this is
    rank: int
    buffer: _Buffer | None = None
    pending: _PendingConv | None = None
    unit: bool = False


@dataclasses.dataclass
class _Emitted:
    kind: str
    node: fx.Node
    input: _Buffer
    output: _Buffer
    conv: _PendingConv | None = None
    pool: dict[str, Any] | None = None


class Region:
    """Takes nodes one by one (`add`) while they fit, then becomes a `ProgramStep` (`close`)."""

    def __init__(self, model: nn.Module, algorithm: str) -> None:
        self._model = model
        self._algorithm = algorithm
        self._values: dict[fx.Node, _Value] = {}
        self._inputs: dict[fx.Node, _Buffer] = {}
        self._emitted: list[_Emitted] = []
        self._modules: list[str] = []
        self.nodes: list[fx.Node] = []

    def add(self, node: fx.Node, op: Op) -> str | None:
        """Takes a node in; a text instead says why it does not fit."""
        reason = getattr(self, f"_add_{op.kind}")(node, op)
        if reason is None:
            self.nodes.append(node)
            if op.module:
                self._modules.append(op.module)
        return reason  # type: ignore[no-any-return]

    # One method for each kind of `Op`.

    def _add_conv(self, node: fx.Node, op: Op) -> str | None:
        conv = self._model.get_submodule(op.module)
        assert isinstance(conv, nn.Conv2d)
        source = self._read(op.inputs[0], rank=4)
        if source is None or not source.expect(conv.in_channels):
            return "its input is no feature map of as many channels as it takes"
        pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv_padding(conv) == (0, 0, 0, 0)
        self._values[node] = _Value(node, 4, pending=_PendingConv(op.module, source), unit=source.unit and pointwise)
        return None

    def _add_linear(self, node: fx.Node, op: Op) -> str | None:
        linear = self._model.get_submodule(op.module)
        assert isinstance(linear, nn.Linear)
        source = self._read(op.inputs[0], rank=2) if op.inputs[0] in self._values else None
        if source is None or not source.unit or not source.expect(linear.in_features):
            return "its input is not a global average pool"
        self._values[node] = _Value(node, 2, pending=_PendingConv(op.module, source, linear=True), unit=True)
        return None

    def _add_batch_norm(self, node: fx.Node, op: Op) -> str | None:
        pending = self._joinable(op.inputs[0])
        if pending is None or pending.linear or pending.batch_norm or pending.residual is not None:
            return "batch norm that follows no convolution of its own"
        pending.batch_norm = op.module
        self._join(node, op.inputs[0])
        return None

    def _add_activation(self, node: fx.Node, op: Op) -> str | None:
        pending = self._joinable(op.inputs[0])
        if pending is None:
            return "activation that follows no convolution of its own"
        if op.activation == "softmax" and not pending.linear:
            return "softmax that follows no linear layer of its own"
        pending.activation = op.activation
        self._join(node, op.inputs[0])
        return None

    def _add_add(self, node: fx.Node, op: Op) -> str | None:
        for main, other in (op.inputs, op.inputs[::-1]):
            pending = self._joinable(main)
            if pending is None or pending.linear or pending.residual is not None or main is other:
                continue
            if self._values[main].unit or (other in self._values and self._values[other].unit):
                continue  # might broadcast
            conv = self._model.get_submodule(pending.module)
            assert isinstance(conv, nn.Conv2d)
            residual = self._read(other, rank=4)
            if residual is None or not residual.expect(conv.out_channels):
                continue
            pending.residual = residual
            self._join(node, main)
            return None
        return "sum with no convolution of its own to join"

    def _add_max_pool(self, node: fx.Node, op: Op) -> str | None:
        return self._emit_pool(node, op, unit=False)

    def _add_global_avg_pool(self, node: fx.Node, op: Op) -> str | None:
        return self._emit_pool(node, op, unit=True)

    def _add_flatten(self, node: fx.Node, op: Op) -> str | None:
        value = self._values.get(op.inputs[0])
        if value is None or not value.unit:
            return "flattens more than one pixel"
        self._values[node] = _Value(node, 2, self._materialize(value), unit=True)
        return None

    def _add_identity(self, node: fx.Node, op: Op) -> str | None:
        value = self._values.get(op.inputs[0])
        if value is None:
            return "passes a native value on"
        if len(op.inputs[0].users) == 1:
            self._values[node] = value
            value.node = node
        else:
            self._values[node] = _Value(node, value.rank, self._materialize(value), unit=value.unit)
        return None

    # Helpers.

    def _emit_pool(self, node: fx.Node, op: Op, unit: bool) -> str | None:
        source = self._read(op.inputs[0], rank=4)
        if source is None:
            return "its input is no feature map"
        buffer = _Buffer(None, like=source, unit=unit)
        self._emitted.append(_Emitted(op.kind, node, source, buffer, pool=op.pool))
        self._values[node] = _Value(node, 4 if op.keepdim else 2, buffer, unit=unit)
        return None

    def _read(self, node: fx.Node, rank: int) -> _Buffer | None:
        """The buffer of a node's value, computed here or brought in from outside."""
        value = self._values.get(node)
        if value is not None:
            return self._materialize(value) if value.rank == rank else None
        if rank != 4:
            return None
        if node not in self._inputs:
            self._inputs[node] = _Buffer(None)
        return self._inputs[node]

    def _joinable(self, node: fx.Node) -> _PendingConv | None:
        """The pending convolution behind a node whose value nobody else wants as it is now."""
        value = self._values.get(node)
        if value is None or value.pending is None or value.pending.activation != "none" or len(node.users) != 1:
            return None
        return value.pending

    def _join(self, node: fx.Node, source: fx.Node) -> None:
        value = self._values[source]
        value.node = node
        self._values[node] = value

    def _materialize(self, value: _Value) -> _Buffer:
        if value.buffer is None:
            pending = value.pending
            assert pending is not None
            module = self._model.get_submodule(pending.module)
            channels = module.out_features if pending.linear else module.out_channels
            value.buffer = _Buffer(int(channels), unit=value.unit)  # type: ignore[arg-type]
            self._emitted.append(_Emitted("conv", value.node, pending.input, value.buffer, conv=pending))
            value.pending = None
        return value.buffer

    # Closing.

    def close(self) -> ProgramStep | str:
        """The program, or why these nodes make none."""
        inside = set(self.nodes)
        outputs: list[tuple[fx.Node, _Value]] = []
        for node in self.nodes:
            if any(user not in inside for user in node.users):
                value = self._values[node]
                self._materialize(value)
                outputs.append((node, value))
        if not any(e.kind == "conv" or e.kind == "global_avg_pool" for e in self._emitted):
            return "no convolution beside it to be fused with"
        if any(buffer.channels is None for buffer in self._inputs.values()):
            return "the number of channels of its input is not known"
        if any(value.buffer in self._inputs.values() for _, value in outputs):
            return "hands an input through"
        return self._step(outputs)

    def _step(self, outputs: list[tuple[fx.Node, _Value]]) -> ProgramStep:
        numbers: dict[_Buffer, int] = {buffer: i for i, buffer in enumerate(self._inputs.values())}
        parameters: list[ParameterPath] = []
        layers: list[LayerSpec] = []
        for emitted in self._emitted:
            numbers[emitted.output] = len(numbers)
            layers.append(self._layer(emitted, numbers, parameters))
        wanted: dict[tuple[int, int], fx.Node] = {}
        for node, value in outputs:
            assert value.buffer is not None
            wanted.setdefault((numbers[value.buffer], value.rank), node)
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
            parameters=tuple(parameters),
            nodes=tuple(e.node for e in self._emitted),
            modules=tuple(dict.fromkeys(self._modules)),
        )

    def _layer(self, e: _Emitted, numbers: dict[_Buffer, int], parameters: list[ParameterPath]) -> LayerSpec:
        source, output = numbers[e.input], numbers[e.output]
        if e.kind == "max_pool":
            assert e.pool is not None
            return MaxPoolSpec(e.node.name, source, output, **e.pool)
        if e.kind == "global_avg_pool":
            return GlobalAvgPoolSpec(e.node.name, source, output)
        assert e.conv is not None

        def parameter(module: str, name: str) -> int | None:
            if getattr(self._model.get_submodule(module), name) is None:
                return None
            parameters.append(ParameterPath(module, name))
            return len(parameters) - 1

        module = self._model.get_submodule(e.conv.module)
        weight = parameter(e.conv.module, "weight")
        assert weight is not None
        bias = parameter(e.conv.module, "bias")
        if isinstance(module, nn.Linear):
            return ConvSpec(
                e.conv.module,
                source,
                output,
                module.in_features,
                module.out_features,
                weight,
                bias,
                activation=e.conv.activation,
            )
        assert isinstance(module, nn.Conv2d)
        batch_norm = None
        if e.conv.batch_norm is not None:
            bn = self._model.get_submodule(e.conv.batch_norm)
            assert isinstance(bn, nn.BatchNorm2d)
            gamma, beta = parameter(e.conv.batch_norm, "weight"), parameter(e.conv.batch_norm, "bias")
            mean, var = parameter(e.conv.batch_norm, "running_mean"), parameter(e.conv.batch_norm, "running_var")
            assert mean is not None
            assert var is not None
            batch_norm = BatchNormSpec(gamma, beta, mean, var, bn.eps)
        return ConvSpec(
            name=e.conv.module,
            input=source,
            output=output,
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            weight=weight,
            bias=bias,
            batch_norm=batch_norm,
            kernel_size=pair(module.kernel_size),
            stride=pair(module.stride),
            dilation=pair(module.dilation),
            padding=conv_padding(module),
            groups=module.groups,
            activation=e.conv.activation,
            residual=None if e.conv.residual is None else numbers[e.conv.residual],
            algorithm=self._algorithm,
        )
