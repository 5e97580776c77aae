"""Transposed convolutions: as modules and as calls, followed like any layer, in every mode and type."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.reference import assert_accurate, rms


class Decoder(nn.Module):
    """What decoders do: a block, upsampling by a transposed convolution, a skip connection, another block."""

    def __init__(self, norm: bool = True, skip: bool = False, **how: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, **how)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.last = nn.Conv2d(14 if skip else 6, 5, 3, padding=1)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.up(x)))
        if self.skip:
            y = torch.cat([y, F.interpolate(x, scale_factor=2.0)], 1)
        out: torch.Tensor = self.last(y)
        return out


class Calls(nn.Module):
    """The same by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(8, 6, 4, 4) * 0.1)
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = F.conv_transpose2d(x, self.weight, self.bias, 2, padding=1).relu()
        return x + torch.conv_transpose2d(x, self.weight[:6, :, 1:2, 1:2])


def decoder(**how: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"kernel_size": 2, "stride": 2, **how}).eval()


lengths = st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5)))


@settings(max_examples=60, deadline=None)
@given(
    lengths,
    st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    st.integers(0, 3),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
def test_any_shape(kernel_size: Any, stride: Any, padding: int, more: int, bias: bool, norm: bool) -> None:
    model = decoder(kernel_size=kernel_size, stride=stride, padding=padding, output_padding=more, bias=bias, norm=norm)
    x = torch.randn(2, 3, 6, 9)
    with torch.no_grad():
        try:
            want = model(x)
        except RuntimeError:  # no output, or more output padding than the stride allows
            assume(False)
        fast = resfuse.fuse(model)
        got = fast(x)
        assert got.stride() == want.stride()
        assert_accurate(got, copy.deepcopy(model).double()(x.double()), want, layers=4)
        assert all(row.fused for row in resfuse.report(fast).rows)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::resfuse.GradientsEnabledWarning")
def test_gradients(training: bool) -> None:
    model = decoder(kernel_size=4, padding=1).train(training)
    fast, exact = resfuse.fuse(copy.deepcopy(model)), copy.deepcopy(model).double()
    found = []
    for network, dtype in ((model, torch.float32), (fast, torch.float32), (exact, torch.float64)):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 3, 8, 8, generator=generator).to(dtype).requires_grad_()
        network(x).square().mean().backward()
        found.append([x.grad, *(p.grad for p in network.parameters())])
    for plain, got, want in zip(*found, strict=True):
        assert_accurate(got, want, plain, 6.0, layers=8)


def test_calls_of_functions() -> None:
    torch.manual_seed(0)
    model = Calls().eval()
    fast = resfuse.fuse(model)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = decoder(skip=True)
    exact = copy.deepcopy(model).double()
    half = model.to(dtype)
    x = torch.randn(1, 3, 16, 16).to(dtype)
    with torch.no_grad():
        fast = resfuse.fuse(half)
        got, plain, want = fast(x), half(x), exact(x.double())
    assert all(row.fused for row in resfuse.report(fast).rows)
    assert got.dtype == dtype
    assert rms(got - want) <= 2 * rms(plain - want)


def test_channels_last() -> None:
    model = decoder(kernel_size=3, padding=1, output_padding=1).to(memory_format=torch.channels_last)
    fast = resfuse.fuse(model)
    for x in (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            want, got = model(x), fast(x)
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_what_is_done_to_the_layer_is_seen() -> None:
    model = decoder()
    fast = resfuse.fuse(model)
    x = torch.randn(1, 3, 8, 8)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)

    check()
    with torch.no_grad():
        model.up.weight.mul_(2.0)
    check()
    model.up.weight = fast.up.weight = nn.Parameter(torch.randn(8, 6, 2, 2))
    check()
    for network in (model, fast):
        network.up.padding = (1, 0)
    check()
    model.up.weight = fast.up.weight = nn.Parameter(torch.randn(8, 6, 3, 4))
    model.up.bias = fast.up.bias = None
    check()
    model.up.weight.data = torch.randn(8, 6, 1, 1)
    check()
    for network in (model, fast):
        network.up = nn.ConvTranspose2d(8, 6, 3, 1)
    fast.up.load_state_dict(model.up.state_dict())
    check()
    seen = []
    fast.up.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    check()
    assert seen == [(1, 6, 10, 10)]


@pytest.mark.parametrize(("groups", "dilation"), [(2, 1), (1, 2)])
def test_other_kinds_run_as_they_did(groups: int, dilation: int) -> None:
    model = decoder(groups=groups, dilation=dilation)
    fast = resfuse.fuse(model)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)
    assert [row.part for row in resfuse.report(fast).rows if not row.fused] == ["up"]


def test_what_torch_refuses_is_refused() -> None:
    model = decoder(output_padding=2)
    x = torch.randn(1, 3, 8, 8)
    for network in (model, resfuse.fuse(model)):
        with torch.no_grad(), pytest.raises(RuntimeError, match="output padding must be smaller"):
            network(x)


def test_int8_computes_the_rest_with_bytes() -> None:
    model = decoder(skip=True)
    x = torch.randn(2, 3, 16, 16)
    quantized = resfuse.quantize(model, [x], progress=False)
    with torch.no_grad():
        want, got = model(x), quantized(x)
    assert rms(got - want) < 0.05 * rms(want)
    assert all(row.fused for row in resfuse.report(quantized).rows)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = decoder(kernel_size=4, padding=1)
    fast = resfuse.fuse(model)
    x = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        want = fast(x)
        assert torch.equal(pickle.loads(pickle.dumps(fast))(x), want)
        resfuse.save(fast, tmp_path / "decoder.safetensors", (x,))
        assert torch.equal(resfuse.load(tmp_path / "decoder.safetensors")(x), want)


def test_compiled() -> None:
    model = decoder(skip=True)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(torch.compile(model, backend="resfuse")(x), want, atol=1e-4, rtol=1e-4)
