"""Convolutions on every instruction-set level against fp64, over shapes that hypothesis makes up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse.engine.executor import Executor
from resfuse.engine.spec import (
    BatchNormSpec,
    ConvSpec,
    MaxPoolSpec,
    OutputSpec,
    ProgramSpec,
)
from tests.conftest import examples
from tests.programs import LAYOUTS, check, check_three_by_three, isas, make_input, make_tensors, program_of


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ProgramSpec, tuple[int, int], str]:
    """A program of one convolution, an image extent that fits it, a layout."""
    kind = draw(
        st.sampled_from(
            ["dense", "grouped", "small_groups", "pointwise", "paired", "winograd", "winograd_groups",
             "winograd_small_groups"]
        )
    )  # fmt: skip
    groups = draw(st.integers(2, 5)) if kind in ("grouped", "winograd_groups") else 1
    in_channels = groups * draw(st.integers(8, 40) if kind == "winograd_groups" else st.integers(1, 20))
    out_channels = groups * draw(st.integers(1, 40))
    if kind == "paired":
        in_channels = 16 * draw(st.integers(1, 5))
    if kind.endswith("small_groups"):
        groups = draw(st.integers(2, 40))
        in_channels = out_channels = groups * draw(st.sampled_from([1, 1, 2, 4, 8, 16]))
    kernel, stride, dilation = (1, 1), (1, 1), (1, 1)
    padding: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    if kind.startswith("winograd"):
        kernel = (3, 3)
        stride = draw(st.sampled_from([(1, 1), (2, 2)])) if kind == "winograd" else (1, 1)
        padding = draw(st.sampled_from([(1, 1, 1, 1), (0, 0, 0, 0), (2, 0, 1, 3), (0, 0, 1, 1), None]))
    elif kind != "pointwise":
        kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        if kind != "paired":
            dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        padding = draw(st.none() | st.tuples(*[st.integers(0, 3)] * 4))
    algorithms = ["auto", "auto_once", "direct", "winograd", "winograd_f2", "winograd_f4", "paired"]
    algorithm = "paired" if kind == "paired" else draw(st.sampled_from(algorithms))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    extent = (
        draw(st.integers(1, 20) if padding is None else st.integers(max(1, spans[0] - padding[0] - padding[2]), 20)),
        draw(st.integers(1, 20) if padding is None else st.integers(max(1, spans[1] - padding[1] - padding[3]), 20)),
    )
    residual = draw(st.booleans())
    bias, batch_norm = draw(st.booleans()), draw(st.booleans())
    output = 2 if residual else 1
    layer = ConvSpec(
        "conv",
        0,
        output,
        in_channels,
        out_channels,
        weight=0,
        bias=5 if bias else None,
        batch_norm=BatchNormSpec(1, 2, 3, 4, 1e-3) if batch_norm else None,
        kernel_size=kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        activation=draw(st.sampled_from(["none", "relu", "tanh", "sigmoid"])),
        residual=1 if residual else None,
        algorithm=algorithm,
    )
    return program_of(layer), extent, draw(st.sampled_from(LAYOUTS))


@given(isas, convolutions(), st.sampled_from([1, 2, 3, 5]), st.integers(0, 2**31 - 1))
@settings(max_examples=examples(300))
def test_convolution(isa: str, case: tuple[ProgramSpec, tuple[int, int], str], batch: int, seed: int) -> None:
    spec, extent, layout = case
    layer = spec.layers[0]
    assert isinstance(layer, ConvSpec)
    inputs, parameters = make_tensors(spec, extent, layout, batch, seed)
    check(spec, isa, inputs, parameters, factor=6.0 if layer.algorithm.startswith("winograd") else 4.0)


@pytest.mark.parametrize(
    ("channels", "size", "batch"), [(64, 56, 1), (128, 28, 2), (256, 14, 1), (512, 7, 2), (33, 14, 3), (96, 13, 1)]
)
@pytest.mark.parametrize(
    ("stride", "algorithm"),
    [(1, "auto"), (1, "direct"), (1, "winograd_f2"), (1, "winograd_f4"), (1, "paired"),
     (2, "auto"), (2, "direct"), (2, "winograd"), (2, "paired")],
)  # fmt: skip
def test_residual_layer_shapes_are_within_four_times_the_error_of_torch(
    isa: str, channels: int, size: int, batch: int, stride: int, algorithm: str
) -> None:
    check_three_by_three(isa, channels, 1, size, batch, stride, algorithm)


@given(
    isas,
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([(7, 2), (3, 1), (3, 2), (1, 1)]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(8, 50), st.integers(8, 130)),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["auto", "direct"]),
)
@settings(max_examples=examples(100))
def test_convolution_and_max_pool(
    isa, in_channels, channels, convolution, kernel, stride, pad, ceil_mode, extent, layout, algorithm
) -> None:
    """The stem: the pooling of rows that the convolution has just made."""
    size, step = convolution
    padding = (kernel[0] // 2, kernel[1] // 2) * 2 if pad else (0, 0, 0, 0)
    layers = (
        ConvSpec(
            "conv", 0, 1, in_channels, channels, 0, 1, kernel_size=(size, size), stride=(step, step),
            padding=(size // 2,) * 4, activation="relu", algorithm=algorithm,
        ),
        MaxPoolSpec("pool", 1, 2, kernel, stride, (1, 1), padding, ceil_mode),
    )  # fmt: skip
    x = make_input((3, in_channels, *extent), layout, torch.Generator().manual_seed(channels))
    parameters = [torch.randn(channels, in_channels, size, size) / size, torch.rand(channels)]
    alone = ProgramSpec((in_channels,), layers, (OutputSpec(2),))
    check(alone, isa, [x], parameters)
    both = ProgramSpec((in_channels,), layers, (OutputSpec(1), OutputSpec(2)))
    assert torch.equal(Executor(alone, isa).run([x], parameters)[0], Executor(both, isa).run([x], parameters)[1])


@given(
    isas,
    st.integers(1, 4),
    st.integers(1, 70),
    st.tuples(st.integers(1, 7), st.integers(1, 3)),
    st.tuples(st.integers(7, 20), st.integers(118, 140)),
    st.tuples(*[st.integers(0, 4)] * 4),
    st.sampled_from(["none", "relu"]),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=examples(100))
def test_stem(
    isa, in_channels, channels, kernel_and_stride, extent, padding, activation, residual, layout, seed
) -> None:
    """Rows of seven taps with stride 2, of odd and even width."""
    kernel, stride = kernel_and_stride
    layer = ConvSpec(
        "conv", 0, 2 if residual else 1, in_channels, channels, 0, bias=5,
        batch_norm=BatchNormSpec(1, 2, 3, 4, 1e-3), kernel_size=(kernel, 7), stride=(stride, 2), padding=padding,
        activation=activation, residual=1 if residual else None,
    )  # fmt: skip
    spec = program_of(layer)
    inputs, parameters = make_tensors(spec, extent, layout, 2, seed)
    assert Executor(spec, isa).plan(inputs).layers()[0]["algorithm"] == "winograd_rows"
    check(spec, isa, inputs, parameters)
