"""Every kernel on every instruction-set level against fp64, over shapes that hypothesis makes up."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse import _core
from resfuse.runtime.executor import Executor
from resfuse.runtime.spec import (
    AffineSpec,
    AvgPoolSpec,
    BatchNormSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    MaxPoolSpec,
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
        in_channels = out_channels = groups * draw(st.sampled_from([1, 1, 2, 4, 8]))
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


@given(isas, convolutions(), st.sampled_from([1, 2, 3, 5]), st.integers(0, 2**31 - 1))
@settings(max_examples=300)
def test_convolution(isa: str, case: tuple[ProgramSpec, tuple[int, int], str], batch: int, seed: int) -> None:
    spec, extent, layout = case
    layer = spec.layers[0]
    assert isinstance(layer, ConvSpec)
    inputs, parameters = make_tensors(spec, extent, layout, batch, seed)
    check(spec, isa, inputs, parameters, factor=6.0 if layer.algorithm.startswith("winograd") else 4.0)


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
    st.sampled_from(["strassen", "paired"]),
    st.integers(1, 6),
    st.integers(1, 4),
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1)]),
    st.sampled_from(["none", "relu"]),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=200)
def test_pointwise_algorithms(
    isa: str,
    algorithm: str,
    in_units: int,
    out_units: int,
    extent: tuple[int, int],
    batch: int,
    stride: tuple[int, int],
    activation: str,
    residual: bool,
    layout: str,
    seed: int,
) -> None:
    in_channels, out_channels = 32 * in_units, 64 * out_units
    if algorithm == "paired":
        in_channels, out_channels = 16 * in_units, 21 * out_units
    layer = ConvSpec(
        "conv", 0, 2 if residual else 1, in_channels, out_channels, 0, bias=5,
        batch_norm=BatchNormSpec(1, 2, 3, 4, 1e-3), kernel_size=(1, 1), stride=stride, activation=activation,
        residual=1 if residual else None, algorithm=algorithm,
    )  # fmt: skip
    spec = program_of(layer)
    inputs, parameters = make_tensors(spec, extent, layout, batch, seed)
    # Products in pairs are of one level only; the others fall back to direct ones.
    expected = "direct" if algorithm == "paired" and isa != "zen4" else algorithm
    assert Executor(spec, isa).plan(inputs).layers()[0]["algorithm"] == expected
    check(spec, isa, inputs, parameters)


POINTWISE = [
    (1, 256, 128, 56, 1, 1), (1, 128, 512, 28, 2, 1), (1, 256, 512, 56, 1, 2), (1, 1024, 256, 14, 3, 1),
    (1, 512, 2048, 7, 2, 1),
]  # fmt: skip
WINDOWS = [(3, 512, 512, 4, 1, 1), (3, 256, 512, 8, 3, 2), (3, 64, 128, 32, 1, 2), (5, 48, 72, 9, 2, 3)]


@pytest.mark.parametrize(
    ("algorithm", "kernel", "in_channels", "out_channels", "size", "batch", "stride"),
    [*[("strassen", *shape) for shape in POINTWISE], *[("paired", *shape) for shape in POINTWISE + WINDOWS]],
)
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_balanced_algorithms_are_within_four_times_the_error_of_torch(
    isa: str, algorithm: str, spread: float, kernel: int, in_channels: int, out_channels: int, size: int, batch: int,
    stride: int,
) -> None:  # fmt: skip
    """With input like a ReLU's, output channels of very different weights, and input channels that differ by some
    powers of two, which their weights take back."""
    pad = kernel // 2
    layer = ConvSpec(
        "conv", 0, 1, in_channels, out_channels, 0, batch_norm=BatchNormSpec(1, 2, 3, 4, 0.0),
        kernel_size=(kernel, kernel), stride=(stride, stride), padding=(pad, pad, pad, pad), algorithm=algorithm,
    )  # fmt: skip
    spec = ProgramSpec((in_channels,), (layer,), (OutputSpec(1),))
    channels = 2.0 ** (spread * torch.randn(in_channels))[:, None, None]
    x = torch.relu(torch.randn(batch, in_channels, size, size)) * channels
    magnitudes = 10.0 ** torch.empty(out_channels).uniform_(-3, 3)
    weight = torch.randn(out_channels, in_channels, kernel, kernel) * magnitudes[:, None, None, None] / channels
    ones, zeros = torch.ones(out_channels), torch.zeros(out_channels)
    check(spec, isa, [x], [weight, ones, zeros, zeros, in_channels * kernel**2 * magnitudes**2])


def run_apart(executor: Executor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The result, which has the same bits by any number of threads, for images alone and together."""

    def alone() -> torch.Tensor:
        return torch.cat([executor.run([image], [weight])[0] for image in x.split(1)])

    result = alone()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(executor.run([x], [weight])[0], result)
        assert torch.equal(alone(), result)
    return result


@pytest.mark.parametrize(("size", "stride"), [(6, 1), (7, 1), (9, 2), (13, 2)])
@pytest.mark.parametrize(("algorithm", "kernel"), [("strassen", 1), ("paired", 1), ("paired", 3)])
def test_balanced_algorithms_keep_images_apart_and_threads_equal(
    isa: str, algorithm: str, kernel: int, size: int, stride: int
) -> None:
    """A NaN stays in its image, and an image alone or among others, by any number of threads, has the same bits."""
    pad = kernel // 2
    layer = ConvSpec(
        "conv", 0, 1, 128, 192, 0, kernel_size=(kernel, kernel), stride=(stride, stride),
        padding=(pad, pad, pad, pad), algorithm=algorithm,
    )  # fmt: skip
    executor = Executor(program_of(layer), isa)
    x, weight = torch.randn(5, 128, size, size), torch.randn(192, 128, kernel, kernel)
    alone = run_apart(executor, x, weight)
    x[1, 3, size // 2 // stride * stride, 0] = float("nan")
    got = executor.run([x], [weight])[0]
    others = [0, 2, 3, 4]
    assert torch.equal(got[others], alone[others])
    assert got[1].isnan().any()


def test_products_in_pairs_take_pixels_of_any_magnitude(isa: str) -> None:
    """Each pixel has the precision of its own magnitude; zeros give the bias, and what is not finite stays so."""
    layer = ConvSpec("conv", 0, 1, 96, 64, 0, bias=1, algorithm="paired")
    executor = Executor(program_of(layer), isa)
    x, weight = torch.randn(1, 96, 1, 9), torch.randn(64, 96, 1, 1) / 10
    magnitudes = torch.tensor([1e-45, 1e-30, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e30, 0.0])
    bias = torch.zeros(64)
    x *= magnitudes
    got = executor.run([x], [weight, bias])[0]
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    eager = torch.nn.functional.conv2d(x, weight)
    for pixel in range(1, 8):
        assert_accurate(got[..., pixel] / magnitudes[pixel], exact[..., pixel] / magnitudes[pixel].double(),
                        eager[..., pixel] / magnitudes[pixel])  # fmt: skip
    assert torch.isfinite(got).all()
    bias.normal_()
    assert torch.equal(executor.run([x], [weight, bias])[0][0, :, 0, 8], bias)
    x[0, 5, 0, 2], x[0, 7, 0, 3], x[0, 90, 0, 4] = float("inf"), float("-inf"), float("nan")
    got = executor.run([x], [weight, bias])[0]
    assert not torch.isfinite(got[..., 2:5]).any()
    assert torch.isfinite(got[..., 5:]).all()
    assert torch.isfinite(got[..., :2]).all()


@pytest.mark.parametrize(
    ("channels", "groups", "size", "batch"), [(512, 32, 14, 5), (1024, 32, 7, 3), (120, 5, 13, 1), (96, 2, 28, 1)]
)
@pytest.mark.parametrize("algorithm", ["winograd_f2", "winograd_f4"])
def test_winograd_in_groups_is_within_four_times_the_error_of_torch(
    isa: str, channels: int, groups: int, size: int, batch: int, algorithm: str
) -> None:
    assert check_three_by_three(isa, channels, groups, size, batch, 1, algorithm) == algorithm


@pytest.mark.parametrize(
    ("channels", "groups", "size", "batch"), [(128, 32, 56, 1), (256, 32, 28, 2), (84, 21, 13, 3), (40, 20, 15, 1)]
)
def test_small_groups_are_within_four_times_the_error_of_torch(
    isa: str, channels: int, groups: int, size: int, batch: int
) -> None:
    """ResNeXt's first stages, and channels and extents that no vector and no tile divides."""
    algorithms = [check_three_by_three(isa, channels, groups, size, batch, 1, a) for a in ("winograd_f2", "direct")]
    lanes = {"generic": 4, "avx2": 8, "avx512": 16, "zen4": 16}[isa]
    if channels // groups < lanes:
        assert algorithms == ["grouped_f2", "grouped"]


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("size", [9, 16])
def test_small_groups_keep_images_apart_and_threads_equal(isa: str, algorithm: str, size: int) -> None:
    """As many bands of rows as threads: the same bits."""
    layer = ConvSpec("conv", 0, 1, 48, 48, 0, kernel_size=(3, 3), padding=(1,) * 4, groups=24, algorithm=algorithm)
    executor = Executor(ProgramSpec((48,), (layer,), (OutputSpec(1),)), isa)
    x, weight = torch.randn(3, 48, size, size), torch.randn(48, 2, 3, 3)
    run_apart(executor, x, weight)


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
@settings(max_examples=100)
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
@settings(max_examples=100)
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
@settings(max_examples=60)
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
@settings(max_examples=60)
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


def test_empty_batch(isa: str) -> None:
    layer = ConvSpec("conv", 0, 1, 3, 8, 0, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    spec = ProgramSpec((3,), (layer,), (OutputSpec(1),))
    got = Executor(spec, isa).run([torch.empty(0, 3, 9, 8)], [torch.randn(8, 3, 3, 3)])[0]
    assert got.shape == (0, 8, 5, 4)


@given(isas, st.data())
@settings(max_examples=25)
def test_residual_stage(isa: str, data: st.DataObject) -> None:
    """Blocks with shared buffers, several batch sizes (waves) and every buffer as an output too."""
    channels, size, batch = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 17)), data.draw(st.integers(1, 40))
    stride = data.draw(st.integers(1, 2))
    algorithm = data.draw(st.sampled_from(["auto", "direct", "winograd"]))
    options = {"kernel_size": (3, 3), "padding": (1, 1, 1, 1), "activation": "relu", "algorithm": algorithm}
    layers = (
        ConvSpec("a", 0, 1, channels, channels, 0, stride=(stride, stride), **options),
        ConvSpec("down", 0, 2, channels, channels, 1, stride=(stride, stride)),
        ConvSpec("b", 1, 3, channels, channels, 2, residual=2, **options),
        ConvSpec("c", 3, 4, channels, channels, 3, **options),
        ConvSpec("d", 4, 5, channels, channels, 4, residual=3, **options),
        GlobalAvgPoolSpec("pool", 5, 6),
    )
    outputs = tuple(OutputSpec(i) for i in range(1, 7)) if data.draw(st.booleans()) else (OutputSpec(6, rank=2),)
    parameters = [torch.randn(channels, channels, k, k) / (channels * k * k) ** 0.5 for k in (3, 1, 3, 3, 3)]
    x = make_input((batch, channels, size, size), data.draw(st.sampled_from(LAYOUTS)), torch.Generator().manual_seed(0))
    check(ProgramSpec((channels,), layers, outputs), isa, [x], parameters, factor=6.0)


@pytest.mark.parametrize("size", [5, 17])
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "strassen", "paired"])
def test_pixels_a_page_long_are_spaced(isa: str, algorithm: str, size: int) -> None:
    """Buffers whose pixels are padded, through every step that reads or writes one."""
    three = {"kernel_size": (3, 3), "padding": (1, 1, 1, 1), "algorithm": algorithm}
    layers = (
        ConvSpec("expand", 0, 1, 16, 1024, 0, activation="relu", algorithm=algorithm),
        ConvSpec("reduce", 1, 2, 1024, 16, 1, activation="relu"),
        ConvSpec("expand and add", 2, 3, 16, 1024, 0, residual=1, activation="relu", algorithm=algorithm),
        ConvSpec("3x3", 3, 4, 1024, 16, 2, **three),
        ConvSpec("back and add", 4, 5, 16, 1024, 3, residual=3, **three),
        ConvSpec("strided", 5, 6, 1024, 1024, 4, stride=(2, 2), algorithm=algorithm),
        ConvSpec("dilated", 6, 7, 1024, 16, 2, kernel_size=(3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
        ConvSpec("groups of 4, and add", 6, 8, 1024, 1024, 5, kernel_size=(3, 3), padding=(1, 1, 1, 1), groups=256),
        MaxPoolSpec("max-pool", 6, 9, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), False),
        GlobalAvgPoolSpec("pool", 6, 10),
        ConvSpec("fc", 10, 11, 1024, 7, 6),
    )
    generator = torch.Generator().manual_seed(size)
    shapes = [(1024, 16, 1), (16, 1024, 1), (16, 1024, 3), (1024, 16, 3), (1024, 1024, 1), (1024, 4, 3), (7, 1024, 1)]
    parameters = [torch.randn(k, c, r, r, generator=generator) / (c * r * r) ** 0.5 for k, c, r in shapes]
    spec = ProgramSpec((16,), layers, tuple(OutputSpec(i) for i in (2, 4, 7, 8, 9, 11)))
    check(spec, isa, [torch.randn(3, 16, size, size, generator=generator)], parameters)


@given(
    isas,
    st.integers(1, 40),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["batch_norm", "gate", "neither"]),
    st.booleans(),
    st.sampled_from(["none", "relu", "tanh", "sigmoid", "silu", "gelu", "leaky_relu"]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=200)
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
@settings(max_examples=200)
def test_avg_pool(
    isa: str, channels: int, kernel: tuple[int, int], stride: tuple[int, int], ceil_mode: bool, counts: bool,
    data: st.DataObject, layout: str, seed: int,
) -> None:  # fmt: skip
    pad_h, pad_w = (data.draw(st.integers(0, k // 2)) for k in kernel)
    extent = data.draw(st.integers(kernel[0], 12)), data.draw(st.integers(kernel[1], 12))
    layer = AvgPoolSpec("pool", 0, 1, kernel, stride, (pad_h, pad_w, pad_h, pad_w), ceil_mode, counts)
    x = make_input((2, channels, *extent), layout, torch.Generator().manual_seed(seed))
    check(ProgramSpec((channels,), (layer,), (OutputSpec(1),)), isa, [x], [])


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh", "sigmoid", "leaky_relu"])
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


def residual_chain(kernel_size: int, read_again: bool) -> tuple[ProgramSpec, list[torch.Tensor]]:
    """Two sums one after the other; the last layer reads the second one, or also the first one's residual."""
    conv = functools.partial(
        ConvSpec, in_channels=24, out_channels=24, kernel_size=(kernel_size,) * 2, padding=(kernel_size // 2,) * 4
    )
    layers = [
        conv("a", 0, 1, weight=0),
        conv("b", 1, 2, weight=1),
        conv("sum", 2, 3, weight=2, residual=1, activation="relu"),
        conv("c", 3, 4, weight=3),
        conv("sum of sums", 4, 5, weight=4, residual=3),
        conv("last", 5, 6, weight=5, residual=1 if read_again else None),
    ]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(24, 24, kernel_size, kernel_size, generator=generator) / 12 for _ in layers]
    return ProgramSpec((24,), tuple(layers), (OutputSpec(6),)), weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("read_again", [False, True])
def test_sums_overwrite_residuals_that_nothing_reads_behind_them(isa: str, kernel_size: int, read_again: bool) -> None:
    spec, weights = residual_chain(kernel_size, read_again)
    check(spec, isa, [torch.randn(3, 24, 14, 14)], weights, factor=6.0)


def test_sums_that_overwrite_residuals_take_less_memory() -> None:
    images = torch.randn(1, 24, 64, 64)
    sizes = []
    for read_again in (False, True):
        spec, weights = residual_chain(1, read_again)
        executor = Executor(spec)
        executor.run([images], weights)
        assert executor.last_plan is not None
        sizes.append(executor.last_plan.workspace_bytes)
    assert sizes[1] - sizes[0] > 0.9 * images.numel() * 4


@pytest.mark.parametrize("isa", ISAS)
@given(n=st.integers(1, 3), c=st.integers(1, 40), h=st.integers(1, 12), w=st.integers(1, 12), threads=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_copies_to_planes(isa: str, n: int, c: int, h: int, w: int, threads: int) -> None:
    memory = torch.arange(n * h * w * c + 1).float()
    x = memory[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    y = torch.full((n * c * h * w + 2,), -1.0)
    _core.copy_to_planes(x.numpy(), y[1:-1].view(n, c, h, w).numpy(), threads, isa)
    assert torch.equal(y[1:-1].view(n, c, h, w), x)
    assert y[0] == y[-1] == -1.0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("channels", [3, 24, 40])
def test_outputs_in_planes(isa: str, kernel_size: int, channels: int) -> None:
    """An output that later layers read as well, a pooled one, and one whose layer is pooled away."""
    layers = (
        ConvSpec("a", 0, 1, channels, 24, 0, kernel_size=(kernel_size,) * 2, activation="relu"),
        ConvSpec("b", 1, 2, 24, channels, 1),
        MaxPoolSpec("pool", 2, 3, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0), False),
        GlobalAvgPoolSpec("gap", 3, 4),
    )
    spec = ProgramSpec((channels,), layers, (OutputSpec(1), OutputSpec(3), OutputSpec(4)))
    inputs = [torch.randn(5, channels, 9, 7)]
    parameters = [torch.randn(24, channels, kernel_size, kernel_size), torch.randn(channels, 24, 1, 1)]
    executor = Executor(spec, isa)
    expected = executor.run(inputs, parameters)
    for planes in ((0,), (1,), (0, 1, 2)):
        for i, (got, want) in enumerate(zip(executor.run(inputs, parameters, planes), expected, strict=True)):
            assert torch.equal(got, want)
            assert got.is_contiguous(memory_format=torch.contiguous_format if i in planes else torch.channels_last)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel"), [(48, 71, 1), (19, 40, 1), (16, 33, 3), (130, 5, 2)]
)
@pytest.mark.parametrize("algorithm", ["direct", "paired"])
def test_weights_of_any_strides_are_packed_alike(
    isa: str, algorithm: str, in_channels: int, out_channels: int, kernel: int
) -> None:
    """Contiguous, channels_last, and views with channels exchanged and taps reversed, as the input gradient takes them."""
    layer = ConvSpec("conv", 0, 1, in_channels, out_channels, 0, kernel_size=(kernel, kernel), algorithm=algorithm)
    executor = Executor(program_of(layer), isa)
    x = torch.randn(2, in_channels, 6, 5)
    weight = torch.randn(out_channels, in_channels, kernel, kernel)
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    expected = executor.run_once([x], weight.numpy(), [])
    assert_accurate(expected, exact, torch.nn.functional.conv2d(x, weight))
    exchanged = weight.transpose(0, 1).contiguous().transpose(0, 1)
    reversed_taps = np.ascontiguousarray(weight.numpy()[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    for view in (weight.to(memory_format=torch.channels_last).numpy(), exchanged.numpy(), reversed_taps):
        assert torch.equal(executor.run_once([x], view, []), expected)
