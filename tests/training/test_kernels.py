"""The kernels of training on every instruction-set level against fp64."""

from __future__ import annotations

import functools

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from resfuse import _core
from resfuse.engine.memory import empty
from resfuse.engine.spec import ConvSpec, MaxPoolSpec
from resfuse.training import batch_norm, convolution, pooling
from resfuse.training.batch_norm import Norm
from tests.conftest import ISAS, examples
from tests.reference import rms

HALVES = [torch.bfloat16, torch.float16]


def assert_rounded_once(got: torch.Tensor, exact: torch.Tensor, slack: float, name: str = "") -> None:
    """Within half a unit in the last place of fp64's result, and what fp32 arithmetic may lose."""
    kind = torch.finfo(got.dtype)
    allowed = exact.abs() * kind.eps * 0.51 + slack + kind.smallest_normal * kind.eps
    error = (got.double() - exact).abs()
    assert (error <= allowed).all(), f"{name}: {float((error / allowed).max()):.2f} x what is allowed"


# --- the kernels, on every instruction set -------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ConvSpec, tuple[int, int, int, int], torch.Size]:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    if draw(st.booleans()):
        kernel = draw(st.sampled_from([(1, 1), (3, 3)]))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3))) if draw(st.booleans()) else (1, 1)
    dilation = (1, 1) if stride != (1, 1) or draw(st.booleans()) else (draw(st.integers(1, 2)), 1)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = tuple(draw(st.integers(0, spans[i % 2])) for i in range(4))
    size = [draw(st.integers(max(1, spans[i] + 1 - pads[i] - pads[i + 2]), spans[i] + 14)) for i in (0, 1)]
    channels = draw(st.sampled_from([1, 3, 8, 17, 32, 40, 64]))
    out_channels = draw(st.sampled_from([1, 5, 16, 33, 48]))
    layer = ConvSpec(
        "", 0, 1, channels, out_channels, 0, kernel_size=kernel, stride=stride, dilation=dilation, padding=pads,
        algorithm=draw(st.sampled_from(["auto", "direct", "winograd", "strassen"])),
    )  # fmt: skip
    return layer, pads, torch.Size([draw(st.integers(1, 4)), channels, *size])


@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=examples(120))
@hypothesis.given(case=convolutions(), accumulate=st.booleans())
def test_training_convolution_gradients(isa: str, case, accumulate: bool) -> None:
    """Weight and input gradients against fp64, on odd shapes, strides, dilations and paddings."""
    torch.manual_seed(0)
    layer, pads, shape = case
    top, left, bottom, right = pads
    x = torch.randn(shape).relu()
    weight = torch.randn(layer.out_channels, layer.in_channels, *layer.kernel_size)
    results = {}
    for dtype in (torch.float64, torch.float32):
        xs, ws = x.clone().to(dtype).requires_grad_(), weight.clone().to(dtype).requires_grad_()
        y = F.conv2d(F.pad(xs, (left, right, top, bottom)), ws, None, layer.stride, 0, layer.dilation)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results[dtype] = (y, *torch.autograd.grad(y, (xs, ws), grad.to(dtype)))
    more = torch.randn(shape) if accumulate else None
    with _isa(isa):
        dw = convolution.weight_gradient(grad, x, weight, layer, pads)
        dx = convolution.input_gradient(grad, weight, layer, pads, x, None if more is None else more.clone())
        y = convolution.forward(x, weight, None, layer, pads)
    if more is not None:
        results = {dtype: (r[0], r[1] + more, r[2]) for dtype, r in results.items()}
    for got, exact, eager in zip((y, dx, dw), results[torch.float64], results[torch.float32], strict=True):
        # What sums of so many products of size 1 may lose; eager may be lucky where there are few results.
        terms = {y: weight[0].numel(), dx: weight[:, 0].numel(), dw: y[:, 0].numel()}[got]
        assert rms(got.double() - exact) <= max(4 * rms(eager.double() - exact), 1e-6 * terms**0.5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=examples(60))
@hypothesis.given(case=convolutions(), accumulate=st.booleans())
def test_training_convolution_gradients_of_halves(isa: str, dtype: torch.dtype, case, accumulate: bool) -> None:
    """Of feature maps of 16 bits and fp32 weights: results in the same types, each value rounded once."""
    torch.manual_seed(0)
    layer, pads, shape = case
    top, left, bottom, right = pads
    x = torch.randn(shape).relu().to(dtype)
    # Products of bf16 round their weights, as torch's do.
    weight = torch.randn(layer.out_channels, layer.in_channels, *layer.kernel_size).to(dtype).float()
    xs, ws = x.double().requires_grad_(), weight.double().requires_grad_()
    want = F.conv2d(F.pad(xs, (left, right, top, bottom)), ws, None, layer.stride, 0, layer.dilation)
    grad = torch.randn(want.shape).to(dtype)
    want_dx, want_dw = torch.autograd.grad(want, (xs, ws), grad.double())
    more = torch.randn(shape).to(dtype) if accumulate else None
    with _isa(isa):
        dw = convolution.weight_gradient(grad, x, weight, layer, pads)
        dx = convolution.input_gradient(grad, weight, layer, pads, x, None if more is None else more.clone())
        y = convolution.forward(x, weight, None, layer, pads)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, torch.float32)
    slacks = {"y": weight[0].numel(), "dx": weight[:, 0].numel(), "dw": want[:, 0].numel()}
    slack = {name: 1e-5 * terms**0.5 for name, terms in slacks.items()}
    assert_rounded_once(y, want.detach(), slack["y"], "y")
    assert_rounded_once(dx, want_dx if more is None else want_dx + more, slack["dx"], "dx")
    assert (dw.double() - want_dw).abs().max() <= slack["dw"]


@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=examples(120))
@hypothesis.given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 16, 19, 40, 64]), st.integers(1, 12), st.integers(2, 40)),
    relu=st.booleans(),
    with_residual=st.booleans(),
    batch_statistics=st.booleans(),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_training_batch_norm_kernels(isa, shape, relu, with_residual, batch_statistics, offset) -> None:
    """Statistics, application and gradients against fp64; also far from zero."""
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape) + offset
    residual = torch.randn(shape) if with_residual else None
    weight, bias, grad = torch.randn(channels), torch.randn(channels), torch.randn(shape)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact_residual = None if residual is None else residual.double().requires_grad_()
    mean, var = (x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0))
    with _isa(isa):
        got_mean, got_var = batch_norm.statistics(x)
    assert (got_mean - mean).abs().max() <= 1e-6 * (1 + offset)
    assert ((got_var - var).abs() <= 1e-5 * var + 1e-6).all()
    want = F.batch_norm(exact[0], mean, var, exact[1], exact[2], batch_statistics, eps=1e-3)
    want = want if exact_residual is None else want + exact_residual
    wanted = want.relu() if relu else want
    sources = [*exact, *([] if exact_residual is None else [exact_residual])]
    exact_grads = torch.autograd.grad(wanted, sources, grad.double())
    if not batch_statistics:
        got_mean, got_var = mean.float(), var.float()
    norm = Norm(got_mean, got_var, weight, bias, 1e-3, batch_statistics)
    with _isa(isa):
        y = batch_norm.apply(x, residual, norm, relu)
        g = batch_norm.backward(grad, x, None if residual is None else y, norm, relu, with_residual, False)
        overwritten = batch_norm.backward(
            empty(shape).copy_(grad), x, None if residual is None else y, norm, relu, with_residual, True
        )
    near_zero = bool(relu and (want.abs() < 1e-3 * (1 + offset)).any())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=2e-5 * (1 + offset))
    if near_zero:  # a sign may differ
        return
    for got, want_grad in zip((g.x, g.weight, g.bias, g.residual), exact_grads, strict=False):
        assert got is not None
        assert rms(got.double() - want_grad) <= 1e-4 * max(1.0, rms(want_grad)) * (1 + offset / 10)
    assert torch.equal(overwritten.x, g.x)
    assert torch.equal(overwritten.weight, g.weight)
    if with_residual:
        assert torch.equal(overwritten.residual, g.residual)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=examples(60))
@hypothesis.given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 16, 19, 40, 64]), st.integers(1, 12), st.integers(2, 40)),
    relu=st.booleans(),
    with_residual=st.booleans(),
    batch_statistics=st.booleans(),
    offset=st.sampled_from([0.0, 10.0]),
)
def test_training_batch_norm_kernels_of_halves(
    isa, dtype, shape, relu, with_residual, batch_statistics, offset
) -> None:
    """Feature maps of 16 bits; statistics, parameters and their gradients in fp32."""
    torch.manual_seed(0)
    channels = shape[1]
    x, grad = (torch.randn(shape) + offset).to(dtype), torch.randn(shape).to(dtype)
    residual = torch.randn(shape).to(dtype) if with_residual else None
    weight, bias = torch.randn(channels), torch.randn(channels)
    with _isa(isa):
        mean, var = batch_norm.statistics(x)
    exact_mean, exact_var = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    assert mean.dtype is var.dtype is torch.float32
    assert (mean - exact_mean).abs().max() <= 1e-6 * (1 + offset)
    assert ((var - exact_var).abs() <= 1e-5 * exact_var + 1e-6).all()
    norm = Norm(mean, var, weight, bias, 1e-3, batch_statistics)
    with _isa(isa):
        y = batch_norm.apply(x, residual, norm, relu)
        g = batch_norm.backward(grad, x, None if residual is None else y, norm, relu, with_residual, False)
    row = [t.double()[None, :, None, None] for t in (mean, (var.double() + 1e-3).rsqrt(), weight, bias)]
    normal = (x.double() - row[0]) * row[1]
    want = normal * row[2] + row[3] + (0 if residual is None else residual.double())
    slack = 2e-5 * (1 + offset)
    assert_rounded_once(y, want.relu() if relu else want, slack, "y")
    # A ReLU's sign is that of what was stored, or computed in fp32.
    if relu and residual is None and (want.abs() < 1e-4 * (1 + offset)).any():
        return
    behind = torch.where((y if residual is not None else want) <= 0, 0.0, grad.double()) if relu else grad.double()
    dbias, dweight = behind.sum((0, 2, 3)), (behind * normal).sum((0, 2, 3))
    dx, count = behind, x.numel() // channels
    if batch_statistics:
        dx = behind - (dbias[None, :, None, None] + normal * dweight[None, :, None, None]) / count
    scale = (row[1] * row[2]).abs().max().item()
    assert_rounded_once(g.x, dx * row[1] * row[2], slack * 10 * max(scale, 1.0), "dx")
    assert (g.weight - dweight).abs().max() <= 1e-5 * (1 + offset) * max(1.0, float(dweight.abs().max()), count**0.5)
    assert (g.bias - dbias).abs().max() <= 1e-5 * max(1.0, float(dbias.abs().max()), count**0.5)
    if with_residual:
        assert g.residual is not None
        assert torch.equal(g.residual.double(), behind)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=examples(120))
@hypothesis.given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 16, 33]), st.integers(4, 13), st.integers(4, 13)),
    ceil_mode=st.booleans(),
    ties=st.booleans(),
)
def test_training_max_pool_kernels(isa, dtype, kernel, stride, shape, ceil_mode, ties) -> None:
    """Values and gradients are torch's own, also where values are equal."""
    torch.manual_seed(0)
    x = (torch.randint(0, 3, shape).float() if ties else torch.randn(shape)).to(dtype)
    padding = (kernel[0] // 2, kernel[1] // 2)
    xs = x.double().requires_grad_()
    want = F.max_pool2d(xs, kernel, stride, padding, 1, ceil_mode)
    grad = torch.randn(want.shape).to(dtype)
    layer = MaxPoolSpec("", 0, 1, kernel, stride, (1, 1), (*padding, *padding), ceil_mode)
    with _isa(isa):
        y, taps = pooling.forward(x, layer, layer.padding, tuple(want.shape[2:]))
        dx = pooling.backward(grad, taps, layer, layer.padding, x)
    assert torch.equal(y.double(), want)
    assert_rounded_once(dx, torch.autograd.grad(want, xs, grad.double())[0], 1e-6)


@pytest.mark.parametrize("padding", [(9, 9, 9, 9), (0, 2, 0, 0), (-1, 0, 0, 0)])
def test_training_max_pool_refuses_windows_of_padding(padding: tuple[int, int, int, int]) -> None:
    x = torch.randn(1, 4, 6, 6).to(memory_format=torch.channels_last)
    shape = (1, 4, 5 + padding[0] + padding[2], 5 + padding[1] + padding[3])
    y = torch.empty(shape).to(memory_format=torch.channels_last)
    taps = torch.empty(shape, dtype=torch.uint8).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="max_pool: padding must"):
        _core.max_pool_forward(x.numpy(), y.numpy(), taps.numpy(), (2, 2), (1, 1), padding, False, 1)


def test_training_max_pool_keeps_nan() -> None:
    x = torch.randn(1, 16, 8, 8)
    x[0, 3, 2, 2] = float("nan")
    layer = MaxPoolSpec("", 0, 1, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), False)
    y, _ = pooling.forward(x, layer, (1, 1, 1, 1), (4, 4))
    torch.testing.assert_close(y, F.max_pool2d(x, 3, 2, 1), equal_nan=True)


class _isa:
    """Runs the training kernels of one instruction set."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._originals: dict[str, object] = {}

    def __enter__(self) -> None:
        names = ["norm_statistics", "norm_forward", "norm_backward", "weight_gradient", "input_gradient",
                 "max_pool_forward", "max_pool_backward"]  # fmt: skip
        for name in names:
            self._originals[name] = getattr(_core, name)
            setattr(_core, name, functools.partial(getattr(_core, name), isa=self._name))
        convolution._executor.cache_clear()
        self._originals["Program"] = _core.Program
        _core.Program = lambda text, isa, dtype: self._originals["Program"](text, isa or self._name, dtype)  # type: ignore[operator]

    def __exit__(self, *exception: object) -> None:
        for name, original in self._originals.items():
            setattr(_core, name, original)
        convolution._executor.cache_clear()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: _core.norm_statistics(torch.randn(2, 3).numpy(), None, None, 1), "x"),
        (lambda: _core.empty((1, -2, 3, 4)), "shape"),
        (lambda: convolution.weight_gradient(torch.randn(1, 4, 5, 5), torch.randn(1, 2, 9, 9), torch.randn(4, 2, 3, 3),
                                             ConvSpec("", 0, 1, 2, 4, 0, kernel_size=(3, 3)), (0,) * 4), "no one convolution"),
    ],
)  # fmt: skip
def test_training_bad_calls_of_the_core(call, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()
