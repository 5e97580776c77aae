"""Pools, elementwise layers, activations and heads on every instruction-set level against fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse.engine.executor import Executor
from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    BatchNormSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    MaxPoolSpec,
    NormSpec,
    OutputSpec,
    ProgramSpec,
)
from tests.conftest import examples
from tests.programs import LAYOUTS, check, isas, make_input
from tests.reference import run_reference


@given(
    isas,
    st.integers(1, 40),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.sampled_from(LAYOUTS),
)
@settings(max_examples=examples(60))
def test_max_pool(isa, channels, kernel, stride, dilation, pad, ceil_mode, layout) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2) * 2 if pad else (0, 0, 0, 0)
    layer = MaxPoolSpec("pool", 0, 1, kernel, stride, (dilation, dilation), padding, ceil_mode)
    spec = ProgramSpec((channels,), (layer,), (OutputSpec(1),))
    x = make_input((2, channels, 11, 9), layout, torch.Generator().manual_seed(channels))
    got = Executor(spec, isa).run([x], [])[0]
    assert torch.equal(got, run_reference(spec, [x], [], torch.float32)[0])


@given(
    isas, st.integers(1, 70), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 3]), st.sampled_from(LAYOUTS)
)
@settings(max_examples=examples(60))
def test_global_avg_pool_and_linear(isa, channels, height, width, batch, layout) -> None:
    layers = (GlobalAvgPoolSpec("pool", 0, 1), ConvSpec("fc", 1, 2, channels, 7, 0, 1, activation="tanh"))
    spec = ProgramSpec((channels,), layers, (OutputSpec(1, rank=2), OutputSpec(2, rank=2)))
    x = make_input((batch, channels, height, width), layout, torch.Generator().manual_seed(height)) + 1
    check(spec, isa, [x], [torch.randn(7, channels) / channels**0.5, torch.randn(7)])


def test_nan_and_inf_propagate_as_in_torch(isa: str) -> None:
    layers = (
        ConvSpec(
            "conv", 0, 1, 4, 20, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1), activation="relu", algorithm="direct"
        ),
        MaxPoolSpec("pool", 1, 2, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), False),
    )
    spec = ProgramSpec((4,), layers, (OutputSpec(1), OutputSpec(2)))
    x = torch.randn(2, 4, 9, 9)
    x[0, 1, 4, 4], x[1, 2, 0, 0], x[1, 3, 8, 8] = float("nan"), float("inf"), float("-inf")
    weight = torch.randn(20, 4, 3, 3)
    results = Executor(spec, isa).run([x], [weight])
    for got, want in zip(results, run_reference(spec, [x], [weight], torch.float32), strict=True):
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.isinf(), want.isinf())
    pooled = Executor(ProgramSpec((4,), layers, (OutputSpec(2),)), isa).run([x], [weight])[0]
    assert torch.equal(pooled.nan_to_num(7.0), results[1].nan_to_num(7.0))


@given(
    isas,
    st.integers(1, 40),
    st.tuples(st.integers(3, 9), st.integers(3, 9)),  # of a few values all may be cancellation
    st.sampled_from(["batch_norm", "gate", "neither"]),
    st.booleans(),
    st.sampled_from(
        [
            "none",
            "relu",
            "tanh",
            "sigmoid",
            "silu",
            "gelu",
            "leaky_relu",
            "relu6",
            "hardsigmoid",
            "hardswish",
            "mish",
            "elu",
        ]
    ),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=examples(200))
def test_elementwise(
    isa: str, channels: int, extent: tuple[int, int], scaled: str, residual: bool, activation: str, batch: int,
    layout: str, seed: int,
) -> None:  # fmt: skip
    """Behind a pool, as a gate is made, and before a convolution."""
    generator = torch.Generator().manual_seed(seed)
    gate = GlobalAvgPoolSpec("gate", 0, 2)
    norm = BatchNormSpec(0, 1, 2, 3, 1e-3) if scaled == "batch_norm" else None
    layer = AffineSpec("x", 0, 3, norm, 2 if scaled == "gate" else None, 1 if residual else None, activation, 0.1)
    after = ConvSpec("after", 3, 4, channels, 3, 4)
    spec = ProgramSpec((channels, channels), (gate, layer, after), (OutputSpec(2), OutputSpec(3), OutputSpec(4)))
    # A gate near zero would be all cancellation.
    inputs = [make_input((batch, channels, *extent), layout, generator) + 1.5 * (1 - 2 * i) for i in range(2)]
    statistics = [torch.rand(channels, generator=generator) + 0.5 for _ in range(4)]
    check(spec, isa, inputs, [*statistics, torch.randn(3, channels, 1, 1, generator=generator)])


@given(
    isas,
    st.integers(1, 40),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
    st.booleans(),
    st.data(),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=examples(200))
def test_avg_pool(
    isa: str, channels: int, kernel: tuple[int, int], stride: tuple[int, int], ceil_mode: bool, counts: bool,
    data: st.DataObject, layout: str, seed: int,
) -> None:  # fmt: skip
    pad_h, pad_w = (data.draw(st.integers(0, k // 2)) for k in kernel)
    extent = data.draw(st.integers(kernel[0], 12)), data.draw(st.integers(kernel[1], 12))
    layer = AvgPoolSpec("pool", 0, 1, kernel, stride, (pad_h, pad_w, pad_h, pad_w), ceil_mode, counts)
    x = make_input((2, channels, *extent), layout, torch.Generator().manual_seed(seed))
    check(ProgramSpec((channels,), (layer,), (OutputSpec(1),)), isa, [x], [])


@pytest.mark.parametrize("slopes", [1, 37])
@pytest.mark.parametrize("algorithm", ["direct", "winograd_f2", "winograd_f4"])
def test_prelu_in_every_kernel(isa: str, algorithm: str, slopes: int) -> None:
    window = {"kernel_size": (3, 3), "padding": (1, 1, 1, 1), "activation": "prelu", "slopes": 3}
    layers = (
        ConvSpec("window", 0, 1, 37, 37, 0, algorithm=algorithm, residual=0, **window),
        ConvSpec("depthwise", 1, 2, 37, 37, 1, groups=37, **window),
        ConvSpec("pointwise", 2, 3, 37, 37, 2, activation="prelu", slopes=3),
        NormSpec("norm", 3, 4, None, None, 1e-5, 1, activation="prelu", slopes=3),
        AffineSpec("alone", 4, 5, activation="prelu", slopes=3),
    )
    x = torch.randn(2, 37, 9, 11)
    parameters = [torch.randn(*size) * 0.1 for size in ((37, 37, 3, 3), (37, 1, 3, 3), (37, 37, 1, 1))]
    parameters.append(torch.randn(slopes))
    check(ProgramSpec((37,), layers, tuple(OutputSpec(i) for i in range(1, 6))), isa, [x], parameters)


def test_prelu_of_what_is_not_finite(isa: str) -> None:
    values = [float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1.0, -1.0]
    x = torch.tensor(values).reshape(1, 1, 1, -1).expand(1, 3, 1, 7).contiguous()
    spec = ProgramSpec((3,), (AffineSpec("x", 0, 1, activation="prelu", slopes=0),), (OutputSpec(1),))
    slopes = torch.tensor([0.0, float("nan"), -2.0])
    (y,) = Executor(spec, isa).run([x], [slopes])
    torch.testing.assert_close(y, torch.nn.functional.prelu(x, slopes), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "activation", ["silu", "gelu", "tanh", "sigmoid", "leaky_relu", "relu6", "hardsigmoid", "hardswish", "mish", "elu"]
)
def test_activations_over_their_whole_range(isa: str, activation: str) -> None:
    """Far from zero, at infinities and NaN as well: absolute errors of a few ulp of the argument at most."""
    x = torch.cat(
        [torch.linspace(-100, 100, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, float("inf"), float("nan")])]
    )
    spec = ProgramSpec((1,), (AffineSpec("x", 0, 1, activation=activation, slope=0.2),), (OutputSpec(1),))
    (y,) = Executor(spec, isa).run([x[None, None, None]], [])
    exact = run_reference(spec, [x[None, None, None]], [], torch.float64)[0]
    error = (y.double() - exact).abs().flatten()
    finite = torch.isfinite(x)
    assert bool((error[finite] <= 3e-7 * (1 + x[finite].abs())).all())
    torch.testing.assert_close(y.flatten()[~finite].double(), exact.flatten()[~finite], equal_nan=True)
