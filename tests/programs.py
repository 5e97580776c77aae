"""Programs of a few layers, inputs in every layout, and the comparison with fp64."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from resfuse.engine.executor import Executor
from resfuse.engine.spec import (
    AffineSpec,
    ConvSpec,
    OutputSpec,
    ProgramSpec,
)
from tests.conftest import ISAS
from tests.reference import assert_accurate, run_reference

isas = st.sampled_from(ISAS)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "transposed")


def make_input(shape: tuple[int, int, int, int], layout: str, generator: torch.Generator) -> torch.Tensor:
    """A random tensor with one of several memory layouts."""
    n, c, h, w = shape
    if layout == "sliced":
        return torch.randn(n, c + 1, h + 2, 2 * w, generator=generator)[:, 1:, 1:-1, ::2]
    if layout == "expanded":
        return torch.randn(1, c, h, 1, generator=generator).expand(n, c, h, w)
    if layout == "transposed":
        return torch.randn(w, h, c, n, generator=generator).permute(3, 2, 1, 0)
    x = torch.randn(n, c, h, w, generator=generator)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


def check(
    spec: ProgramSpec, isa: str, inputs: list[torch.Tensor], parameters: list[torch.Tensor], factor: float = 4.0
) -> None:
    got = Executor(spec, isa).run(inputs, parameters)
    exact = run_reference(spec, inputs, parameters, torch.float64)
    eager = run_reference(spec, inputs, parameters, torch.float32)
    layers = max(1, sum(isinstance(layer, (ConvSpec, AffineSpec)) for layer in spec.layers))
    for g, x, e in zip(got, exact, eager, strict=True):
        assert_accurate(g, x, e, factor, layers)


def program_of(layer: ConvSpec) -> ProgramSpec:
    """A program of one convolution; a residual is its second input."""
    inputs = (layer.in_channels,) if layer.residual is None else (layer.in_channels, layer.out_channels)
    return ProgramSpec(inputs, (layer,), (OutputSpec(layer.output),))


def make_tensors(
    spec: ProgramSpec, extent: tuple[int, int], layout: str, batch: int, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs (the second one is the residual) and parameters of a program of one convolution."""
    generator = torch.Generator().manual_seed(seed)
    layer = spec.layers[0]
    assert isinstance(layer, ConvSpec)
    k = layer.out_channels
    inputs = [make_input((batch, layer.in_channels, *extent), layout, generator)]
    if layer.residual is not None:
        shape = spec.output_shapes([inputs[0].shape, (batch, k, 1, 1)])[0]
        inputs.append(make_input(tuple(shape), layout, generator))
    fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
    weight = torch.randn(k, layer.in_channels // layer.groups, *layer.kernel_size, generator=generator) / fan_in**0.5
    return inputs, [weight, *[torch.rand(k, generator=generator) + 0.5 for _ in range(5)]]


def check_three_by_three(
    isa: str, channels: int, groups: int, size: int, batch: int, stride: int, algorithm: str
) -> str:
    """A layer of a residual block with input like a ReLU's; the algorithm that computes it."""
    layer = ConvSpec(
        "conv", 0, 1, channels, channels, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1), stride=(stride, stride),
        groups=groups, algorithm=algorithm,
    )  # fmt: skip
    spec = ProgramSpec((channels,), (layer,), (OutputSpec(1),))
    x = torch.relu(torch.randn(batch, channels, size * stride, size * stride))
    weight = torch.randn(channels, channels // groups, 3, 3) * (2 * groups / (9 * channels)) ** 0.5
    check(spec, isa, [x], [weight])
    return Executor(spec, isa).plan([x]).layers()[0]["algorithm"]
