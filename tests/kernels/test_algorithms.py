"""Each algorithm of convolutions by name, on every instruction-set level, against fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse import _core
from resfuse.engine.executor import Executor
from resfuse.engine.spec import (
    BatchNormSpec,
    ConvSpec,
    OutputSpec,
    ProgramSpec,
)
from tests.conftest import examples
from tests.programs import LAYOUTS, check, check_three_by_three, isas, make_tensors, program_of
from tests.reference import assert_accurate


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
@settings(max_examples=examples(200))
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
    ("channels", "groups", "size", "batch"), [(512, 16, 14, 5), (1024, 32, 7, 3), (120, 5, 13, 1), (96, 2, 28, 1)]
)
@pytest.mark.parametrize("algorithm", ["winograd_f2", "winograd_f4"])
def test_winograd_in_groups_is_within_four_times_the_error_of_torch(
    isa: str, channels: int, groups: int, size: int, batch: int, algorithm: str
) -> None:
    assert check_three_by_three(isa, channels, groups, size, batch, 1, algorithm) == algorithm


@pytest.mark.parametrize(
    ("channels", "groups", "size", "batch"),
    [
        (128, 32, 56, 1),
        (256, 32, 28, 2),
        (84, 21, 13, 3),
        (40, 20, 15, 1),
        (96, 6, 14, 2),
        (48, 3, 7, 3),
        (32, 2, 57, 1),
    ],
)
def test_small_groups_are_within_four_times_the_error_of_torch(
    isa: str, channels: int, groups: int, size: int, batch: int
) -> None:
    """ResNeXt's first stages, and channels and extents that no vector and no tile divides."""
    algorithms = [check_three_by_three(isa, channels, groups, size, batch, 1, a) for a in ("winograd_f2", "direct")]
    lanes = _core.kernel_table(isa)["vector_floats"]
    if channels // groups <= lanes:
        assert algorithms == ["grouped_f2", "grouped"]


@pytest.mark.parametrize("window", [(3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 3, 1), (5, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("size", [7, 30])
def test_groups_of_a_whole_vector(isa: str, window: tuple[int, int, int], size: int) -> None:
    """RegNet's groups on AVX-512; of other windows than 3x3 as well, and with a residual."""
    kernel, stride, dilation = window
    lanes = _core.kernel_table(isa)["vector_floats"]
    pad = kernel // 2 * dilation
    layer = ConvSpec(
        "conv", 0, 2, 3 * lanes, 3 * lanes, 0, bias=5, batch_norm=BatchNormSpec(1, 2, 3, 4, 1e-3),
        kernel_size=(kernel, kernel), stride=(stride, stride), padding=(pad, pad, pad, pad),
        dilation=(dilation, dilation), groups=3, activation="relu", residual=1, algorithm="direct",
    )  # fmt: skip
    spec = program_of(layer)
    inputs, parameters = make_tensors(spec, (size, size + 1), "contiguous", 2, seed=0)
    assert Executor(spec, isa).plan(inputs).layers()[0]["algorithm"] == "grouped"
    check(spec, isa, inputs, parameters)


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("size", [9, 16])
def test_small_groups_keep_images_apart_and_threads_equal(isa: str, algorithm: str, size: int) -> None:
    """As many bands of rows as threads: the same bits."""
    layer = ConvSpec("conv", 0, 1, 48, 48, 0, kernel_size=(3, 3), padding=(1,) * 4, groups=24, algorithm=algorithm)
    executor = Executor(ProgramSpec((48,), (layer,), (OutputSpec(1),)), isa)
    x, weight = torch.randn(3, 48, size, size), torch.randn(48, 2, 3, 3)
    run_apart(executor, x, weight)
