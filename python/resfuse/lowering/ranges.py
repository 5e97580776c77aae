"""The ranges of a quantised model's feature maps, and the form of a program that computes with bytes by them."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from resfuse.engine.spec import (
    REAL,
    AffineSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    MaxPoolSpec,
    ProgramSpec,
    Range,
    reads,
)

# Sums of so many products of bytes hold in 31 bits.
_MOST_PRODUCTS = (2**31 - 1) // (255 * 128)


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What calibration found for one module that is fused as a whole.

    ``values`` and ``means``, by channel, are by the names of the graph's nodes. Layers named in ``keep`` compute with
    real numbers. ``noise`` is the signal-to-noise ratio of each layer's output on the calibration data, in decibels.
    """

    values: Mapping[str, Range]
    keep: tuple[str, ...] = ()
    method: str = ""
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    means: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def mean_tensors(self) -> Mapping[str, torch.Tensor]:
        """The means as parameters of programs: always the same tensors."""
        return {name: torch.tensor(values) for name, values in self.means.items()}

    def to_tensor(self) -> torch.Tensor:
        """As bytes: what a ``state_dict`` carries, in whatever format that is stored."""
        return torch.frombuffer(bytearray(json.dumps(dataclasses.asdict(self)).encode()), dtype=torch.uint8)

    @staticmethod
    def from_tensor(tensor: torch.Tensor) -> Ranges:
        """The inverse of `to_tensor`; raises ValueError for anything else."""
        try:
            data: dict[str, Any] = json.loads(bytes(tensor.to(torch.uint8).cpu().numpy().astype(np.uint8)).decode())
            values = {str(name): (float(scale), int(zero)) for name, (scale, zero) in data["values"].items()}
            for name, (scale, zero) in values.items():
                if not (math.isfinite(scale) and scale > 0 and 0 <= zero <= 255):
                    raise ValueError(f"{name} has scale {scale} and zero point {zero}")
            noise = {str(name): float(value) for name, value in data["noise"].items()}
            means = {str(name): tuple(map(float, found)) for name, found in data.get("means", {}).items()}
            if not all(math.isfinite(mean) for found in means.values() for mean in found):
                raise ValueError("means that are not finite")
            return Ranges(values, tuple(map(str, data["keep"])), str(data["method"]), noise, means)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"ranges: got a tensor that holds none ({error!r})") from error


def int8_spec(spec: ProgramSpec, names: Sequence[str], ranges: Ranges) -> ProgramSpec | None:
    """A program that computes with bytes wherever there are ranges for it, or None where there are none.

    Convolutions do so where their input has a range, whatever the buffers around them hold: they make bytes of real
    numbers as they read them, and write real numbers for readers that want such. A buffer holds bytes where all that
    write and read it can deal with these.

    Args:
        spec: the program of real numbers.
        names: of its buffers, as ``ranges`` has them.
        ranges: of this model.
    """
    makers: dict[int, LayerSpec] = {layer.output: layer for layer in spec.layers}

    def range_of(buffer: int) -> Range | None:
        maker = makers.get(buffer)
        if isinstance(maker, MaxPoolSpec):  # one of the numbers that it was given
            return range_of(maker.input)
        return ranges.values.get(names[buffer])

    def computes_bytes(layer: LayerSpec) -> bool:
        if not isinstance(layer, ConvSpec) or layer.name in ranges.keep:
            return False
        products = layer.kernel_size[0] * layer.kernel_size[1] * (layer.in_channels // layer.groups)
        return range_of(layer.input) is not None and products <= _MOST_PRODUCTS

    bytes_in = {layer.output for layer in spec.layers if computes_bytes(layer)}
    if not bytes_in:
        return None
    held = _buffers_of_bytes(spec, range_of, bytes_in)
    means = {buffer: spec.parameter_count + i for i, buffer in enumerate(mean_buffers(spec, names, ranges))}
    layers: list[LayerSpec] = []
    for layer in spec.layers:
        writes = range_of(layer.output) if layer.output in held else None
        if isinstance(layer, ConvSpec):
            made_of = range_of(layer.input) if layer.output in bytes_in and layer.input not in held else None
            place = means.get(layer.input) if layer.output in bytes_in else None
            layers.append(dataclasses.replace(layer, reads=made_of, writes=writes, input_means=place))
        elif isinstance(layer, (MaxPoolSpec, *REAL)):
            layers.append(layer)  # a pool's output is what its input is
        else:
            layers.append(dataclasses.replace(layer, writes=writes))
    return dataclasses.replace(spec, layers=tuple(layers))


def convolution_inputs(spec: ProgramSpec) -> list[int]:
    """The buffers that convolutions read."""
    return list(dict.fromkeys(layer.input for layer in spec.layers if isinstance(layer, ConvSpec)))


def mean_buffers(spec: ProgramSpec, names: Sequence[str], ranges: Ranges) -> list[int]:
    """The buffers that convolutions read whose means are known, in the order of their means among the parameters."""
    return [b for b in convolution_inputs(spec) if len(ranges.means.get(names[b], ())) == spec.channels(b)]


def _buffers_of_bytes(spec: ProgramSpec, range_of: Any, computes_bytes: set[int]) -> set[int]:
    """Buffers that hold bytes; ``computes_bytes`` are the outputs of convolutions of bytes."""
    real = {output.buffer for output in spec.outputs} | set(range(len(spec.inputs)))
    held = {layer.output for layer in spec.layers if layer.output not in real and range_of(layer.output) is not None}
    # A pool that alone reads a convolution's output is computed with that: no bytes come between.
    readers: dict[int, list[LayerSpec]] = {}
    for layer in spec.layers:
        for buffer in reads(layer):
            readers.setdefault(buffer, []).append(layer)
    for layer in spec.layers:
        if isinstance(layer, GlobalAvgPoolSpec) and len(readers[layer.input]) == 1:
            held.discard(layer.input)
    while True:
        refused: set[int] = set()
        for layer in spec.layers:
            if isinstance(layer, ConvSpec):
                if layer.output not in computes_bytes:
                    refused.update(reads(layer), {layer.output})
                if layer.activation in ("softmax", "prelu"):
                    refused.add(layer.output)
            elif isinstance(layer, AffineSpec) and layer.product is not None:
                refused.update(reads(layer), {layer.output})
            elif isinstance(layer, AffineSpec):
                refused.update([] if layer.gate is None else [layer.gate])
                refused.update([layer.output] if layer.activation == "prelu" else [])
            elif isinstance(layer, REAL):
                refused.update(reads(layer), {layer.output})
            elif isinstance(layer, MaxPoolSpec):
                if layer.output not in held or layer.input not in held:
                    refused.update((layer.input, layer.output))
            elif layer.input not in held:  # a pool's means of real numbers
                refused.add(layer.output)
        if held.isdisjoint(refused):
            return held
        held -= refused


def observed_buffers(spec: ProgramSpec) -> list[int]:
    """Buffers whose ranges `int8_spec` may ask for: all but the outputs of max-pools, which are their inputs'."""
    pools = {layer.output for layer in spec.layers if isinstance(layer, MaxPoolSpec)}
    wanted = dict.fromkeys(
        buffer
        for layer in spec.layers
        for buffer in ([layer.input] if isinstance(layer, GlobalAvgPoolSpec) else reads(layer))
    )
    found = []
    makers = {layer.output: layer for layer in spec.layers}
    for buffer in wanted:
        while buffer in pools:
            buffer = makers[buffer].input
        found.append(buffer)
    return list(dict.fromkeys(found))
