"""A 1x1 convolution and the depthwise one behind it, as one step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse.engine.executor import Executor
from resfuse.engine.spec import AffineSpec, ConvSpec, GlobalAvgPoolSpec, LayerSpec, OutputSpec, ProgramSpec
from tests.conftest import examples
from tests.programs import check, isas, make_input
from tests.reference import run_reference

ACTIVATIONS = ("none", "relu", "silu", "hardswish", "prelu")


def program(
    channels: int, wide: int, kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int, int, int],
    activations: tuple[str, str] = ("relu", "relu"), residual: bool = False,
) -> tuple[ProgramSpec, list[torch.Tensor]]:  # fmt: skip
    generator = torch.Generator().manual_seed(channels * wide)

    def parameter(*size: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * scale

    slopes = [5 if activation == "prelu" else None for activation in activations]
    layers: tuple[LayerSpec, ...] = (
        ConvSpec("first", 0, 1, channels, channels, 0),
        ConvSpec("expand", 1, 2, channels, wide, 1, 2, activation=activations[0], slopes=slopes[0]),
        ConvSpec("depthwise", 2, 3, wide, wide, 3, 4, kernel_size=kernel, stride=stride, padding=pads, groups=wide,
                 activation=activations[1], slopes=slopes[1]),
        ConvSpec("project", 3, 4, wide, channels, 6, residual=1 if residual else None),
    )  # fmt: skip
    parameters = [
        parameter(channels, channels, 1, 1, scale=channels**-0.5), parameter(wide, channels, 1, 1, scale=channels**-0.5),
        parameter(wide), parameter(wide, 1, *kernel, scale=(kernel[0] * kernel[1]) ** -0.5), parameter(wide),
        parameter(wide, scale=0.3), parameter(channels, wide, 1, 1, scale=wide**-0.5),
    ]  # fmt: skip
    return ProgramSpec((channels,), layers, (OutputSpec(4),)), parameters


lengths = st.tuples(st.integers(1, 7), st.integers(1, 7))
strides = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=examples(60), deadline=None)
@given(isas, st.data())
def test_any_window(isa: str, data: st.DataObject) -> None:
    channels = data.draw(st.integers(1, 20))
    wide = data.draw(st.integers(channels + 1, 90))
    kernel, stride = data.draw(lengths), data.draw(strides)
    pads = tuple(data.draw(st.integers(0, length)) for length in (*kernel, *kernel))
    height, width = data.draw(st.integers(kernel[0], 12)), data.draw(st.integers(14, 40))
    activations = data.draw(st.tuples(st.sampled_from(ACTIVATIONS), st.sampled_from(ACTIVATIONS)))
    spec, parameters = program(channels, wide, kernel, stride, pads, activations)  # type: ignore[arg-type]
    batch = data.draw(st.integers(1, 3))
    layout = data.draw(st.sampled_from(["contiguous", "channels_last"]))
    x = make_input((batch, channels, height, width), layout, torch.Generator().manual_seed(0))
    check(spec, isa, [x], parameters)
    executor = Executor(spec, isa)
    plan = executor.plan([x])
    assert plan.layers()[1]["algorithm"] == "in depthwise"


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_same_bits_with_any_number_of_threads(isa: str, threads: int) -> None:
    spec, parameters = program(8, 70, (3, 3), (1, 1), (1, 1, 1, 1), residual=True)
    x = torch.randn(1, 8, 28, 30, generator=torch.Generator().manual_seed(1))
    executor, before = Executor(spec, isa), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        (want,) = executor.run([x], parameters)
        torch.set_num_threads(threads)
        (got,) = executor.run([x], parameters)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, want)


def gated(channels: int, wide: int) -> tuple[ProgramSpec, list[torch.Tensor]]:
    """An inverted residual with squeeze-and-excitation."""
    spec, parameters = program(channels, wide, (3, 3), (1, 1), (1, 1, 1, 1), ("silu", "silu"))
    first, expand, depthwise, _ = spec.layers
    layers = (
        first, expand, depthwise,
        GlobalAvgPoolSpec("mean", 3, 4), ConvSpec("squeeze", 4, 5, wide, 4, 7, activation="silu"),
        ConvSpec("excite", 5, 6, 4, wide, 8, activation="sigmoid"), AffineSpec("gate", 3, 7, gate=6),
        ConvSpec("project", 7, 8, wide, channels, 6, residual=1),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    squeeze = torch.randn(4, wide, 1, 1, generator=generator) * wide**-0.5
    parameters += [squeeze, torch.randn(wide, 4, 1, 1, generator=generator)]
    return ProgramSpec((channels,), layers, (OutputSpec(8),)), parameters


@pytest.mark.parametrize("size", [(1, 8, 15, 17), (3, 8, 9, 40), (2, 8, 1, 14)])
def test_pool_of_a_gate_is_gathered(isa: str, size: tuple[int, int, int, int]) -> None:
    spec, parameters = gated(8, 70)
    x = torch.randn(size, generator=torch.Generator().manual_seed(1))
    check(spec, isa, [x], parameters)
    executor, before = Executor(spec, isa), torch.get_num_threads()
    assert executor.plan([x]).layers()[3]["algorithm"] == "in depthwise"
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results += executor.run([x], parameters)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)
    whole = spec.with_outputs((OutputSpec(8), OutputSpec(4, 2)))  # whose pool the caller sees as well
    check(whole, isa, [x], parameters)


def test_what_the_step_reads_beside_its_rows_is_kept(isa: str) -> None:
    """The depthwise layer's residual, and a pool that the caller gets in planes, while other layers come between."""
    window = {"kernel_size": (3, 3), "padding": (1, 1, 1, 1)}
    layers = (
        ConvSpec("first", 0, 1, 8, 8, 0), ConvSpec("residual", 1, 2, 8, 70, 1), ConvSpec("other", 1, 3, 8, 70, 2),
        ConvSpec("expand", 1, 4, 8, 70, 3), ConvSpec("depthwise", 4, 5, 70, 70, 4, groups=70, residual=2, **window),
        ConvSpec("between", 3, 6, 70, 70, 5), ConvSpec("more", 6, 7, 70, 70, 5, residual=5),
        GlobalAvgPoolSpec("mean", 5, 8), ConvSpec("last", 7, 9, 70, 8, 6),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    sizes = ((8, 8, 1, 1), (70, 8, 1, 1), (70, 8, 1, 1), (70, 8, 1, 1), (70, 1, 3, 3), (70, 70, 1, 1), (8, 70, 1, 1))
    parameters = [torch.randn(size, generator=generator) * size[1] ** -0.5 for size in sizes]
    spec = ProgramSpec((8,), layers, (OutputSpec(9), OutputSpec(8)))
    x = torch.randn(1, 8, 16, 24, generator=generator)
    check(spec, isa, [x], parameters)
    executor = Executor(spec, isa)
    exact = run_reference(spec, [x], parameters, torch.float64)
    for got, want in zip(executor.run([x], parameters, planes=(0, 1)), exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert executor.plan([x]).layers()[3]["algorithm"] == "in depthwise"


def test_is_apart_where_others_read_what_lies_between(isa: str) -> None:
    spec, parameters = program(8, 70, (3, 3), (1, 1), (1, 1, 1, 1))
    spec = spec.with_outputs((OutputSpec(4), OutputSpec(2)))
    x = torch.randn(1, 8, 20, 30)
    check(spec, isa, [x], parameters)
    assert Executor(spec, isa).plan([x]).layers()[1]["algorithm"] != "in depthwise"


def test_values_that_are_not_finite(isa: str) -> None:
    """Pixels beyond the window's reach stay as they are: what lies behind channels and rows does not leak."""
    spec, parameters = program(3, 5, (3, 3), (1, 1), (1, 1, 1, 1))
    x = torch.randn(1, 3, 14, 18)
    x[0, 1, 7, 9] = float("nan")
    (y,) = Executor(spec, isa).run([x], parameters)
    reached = torch.zeros(14, 18, dtype=torch.bool)
    reached[6:9, 8:11] = True
    assert y[0, 0].isnan().equal(reached)
