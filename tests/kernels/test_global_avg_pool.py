"""The kernel of global average pooling on every ISA: each mean is exact but for one rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from resfuse import _core
from resfuse.engine.pooling import _DTYPES
from tests.conftest import ISAS, examples

# Half a unit in the last place of each type, relative.
DTYPES = list(_DTYPES)
ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced", "sliced_channels", "expanded", "repeated")
sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 14, 17, 33, 56])
shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 70), sizes, sizes),
    st.tuples(st.integers(1, 3), st.sampled_from([256, 700, 1025, 2048, 2100]), st.integers(1, 8), st.integers(1, 8)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(100, 700), st.integers(300, 700)),
)


def make_images(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape

    def randn(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) + 0.5).to(dtype)

    if layout == "channels_last":
        return randn(n, c, h, w).to(memory_format=torch.channels_last)
    if layout == "permuted":
        order = torch.randperm(4, generator=generator).tolist()
        return randn(*[shape[i] for i in order]).permute([order.index(i) for i in range(4)])
    if layout == "sliced":
        return randn(n, c + 1, h + 2, 2 * w)[:, 1:, 1:-1, ::2]
    if layout == "sliced_channels":
        return randn(n, 2 * c, h + 2, w + 1).to(memory_format=torch.channels_last)[:, ::2, 1:-1, 1:]
    if layout == "expanded":
        return randn(1, c, h, 1).expand(n, c, h, w)
    if layout == "repeated":
        return randn(n, 1, 1, 1).expand(n, c, h, w)
    return randn(n, c, h, w)


def pool_on(isa: str, x: torch.Tensor, threads: int = 2) -> torch.Tensor:
    y = torch.empty(x.shape[:2], dtype=x.dtype)
    _core.global_avg_pool(x.data_ptr(), _DTYPES[x.dtype], x.shape, x.stride(), y.data_ptr(), threads, isa)
    return y


def spread_on(isa: str, grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    dx = torch.empty_like(like)
    _core.global_avg_pool_backward(
        grad.data_ptr(), grad.stride(), dx.data_ptr(), _DTYPES[grad.dtype], dx.shape, dx.stride(), 2, isa
    )
    return dx


# ---- the kernel ----


@given(st.sampled_from(ISAS), shapes, st.sampled_from(LAYOUTS), st.sampled_from(DTYPES), st.integers(0, 2**31 - 1))
@settings(max_examples=examples(400))
def test_mean_is_exact_but_for_one_rounding(isa, shape, layout, dtype, seed) -> None:
    x = make_images(shape, layout, dtype, seed)
    exact = x.double().mean((2, 3))
    got = pool_on(isa, x)
    # One rounding of the result, and a few of the sums; torch.float64's own reference has as many.
    sums = 6 * ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32] * x.double().abs().mean((2, 3))
    assert torch.all((got.double() - exact).abs() <= exact.abs() * ROUNDING[dtype] * 1.001 + sums)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 512, 7, 7), (2, 64, 112, 112), (8, 3, 400, 500), (4, 256, 28, 28)])
def test_error_is_not_above_torch(isa: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    x = make_images(shape, layout, dtype, 1)
    exact = x.double().numpy().astype(np.longdouble).mean((2, 3))

    def error(y: torch.Tensor) -> float:
        return float(np.sqrt(np.square(y.flatten(1).double().numpy() - exact).mean() / np.square(exact).mean()))

    ours, theirs = error(pool_on(isa, x)), error(F.adaptive_avg_pool2d(x, 1))
    # Below half a unit in the last place the one rounding of the result is all there is, and who is luckier is chance.
    assert ours <= max(1.05 * theirs, ROUNDING[dtype] / 2), f"ours {ours:.2e}, torch's {theirs:.2e}"


@given(st.sampled_from(ISAS), shapes, st.sampled_from(LAYOUTS), st.sampled_from(DTYPES))
@settings(max_examples=examples(100))
def test_gradient_of_every_pixel(isa, shape, layout, dtype) -> None:
    x = make_images(shape, layout, dtype, 0)
    for grad in (torch.randn(shape[:2]).to(dtype), torch.randn(shape[0], 1).to(dtype).expand(shape[:2])):
        want = (grad.double() / (shape[2] * shape[3])).to(dtype)[:, :, None, None].expand(shape)
        got = spread_on(isa, grad, x)
        assert torch.allclose(got.double(), want.double(), rtol=2 * ROUNDING[dtype], atol=1e-7)
        assert torch.equal(got, got[:, :, :1, :1].expand(shape))


@given(shapes, st.sampled_from(["contiguous", "channels_last", "sliced"]), st.sampled_from(DTYPES))
@settings(max_examples=examples(60))
def test_same_bits_on_any_number_of_threads(shape, layout, dtype) -> None:
    x = make_images(shape, layout, dtype, 3)
    one = pool_on(ISAS[-1], x, threads=1)
    assert all(torch.equal(one, pool_on(ISAS[-1], x, threads=t)) for t in (2, 3, 5))


def test_nan_and_inf(isa: str) -> None:
    for dtype in DTYPES:
        for layout in ("contiguous", "channels_last"):
            x = make_images((2, 40, 7, 7), layout, dtype, 0)
            x[0, 1, 2, 3], x[0, 2, 6, 6], x[1, 39, 0, 0] = float("nan"), float("inf"), float("-inf")
            x[1, 0, 0, 0], x[1, 0, 1, 1] = float("inf"), float("-inf")
            got, want = pool_on(isa, x), x.double().mean((2, 3))
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.isinf(), want.isinf())
            assert torch.equal(got[got.isinf()].double(), want[want.isinf()])


def test_every_half_survives(isa: str) -> None:
    """All 65536 values of both 16-bit types, denormals, infinities and NaN included, through load and rounding."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        for images in (x.view(16, 4096, 1, 1), x.view(1, 65536, 1, 1), x.view(16, 4096, 1, 1).expand(-1, -1, 2, 4)):
            got = pool_on(isa, images).flatten()
            same = (got == x) | (got.isnan() & x.isnan())
            # A sum of equal numbers may overflow or round in fp32 only at the very ends of bf16's range.
            assert bool(same[x.float().abs() < 4e37].all())
            if images.shape[2] == 1:
                assert bool(same.all())


def test_rounding_to_half_is_to_nearest_even(isa: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        scales = 2.0 ** torch.arange(-28, 13).repeat_interleave(200)
        x = (torch.randn(2, scales.numel()) * scales).to(dtype)
        images = x.T.reshape(1, -1, 1, 2).contiguous()  # means of two numbers are often ties
        assert torch.equal(pool_on(isa, images).flatten(), ((x[0].double() + x[1].double()) / 2).to(dtype))
