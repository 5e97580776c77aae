"""Clamps: as functions, methods and modules, of one bound or two, with torch's results and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.reference import rms

Clamp = Callable[[torch.Tensor], torch.Tensor]
WAYS: dict[str, Clamp] = {
    "clamp": lambda x: torch.clamp(x, -0.5, 0.7),
    "keywords": lambda x: x.clamp(max=0.2, min=-1),
    "below": lambda x: x.clamp(min=-0.1),
    "above": lambda x: torch.clip(x, max=0.4),
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: torch.clamp(x, 0, 6),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp_max": lambda x: torch.clamp_max(x, 0.1),
    "in place": lambda x: x.clamp_(-0.3, 0.3),
    "wrong order": lambda x: torch.clamp(x, 0.5, -0.5),
    "hardtanh": F.hardtanh,
    "hardtanh of bounds": lambda x: F.hardtanh(x, -0.25, 0.5, inplace=True),
    "module": nn.Hardtanh(-0.4, 0.9),
}


class Net(nn.Module):
    def __init__(self, clamp: Clamp) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.second = nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.third = nn.Conv2d(20, 8, 1)
        if isinstance(clamp, nn.Module):
            self.module = clamp
        self.clamp = clamp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.clamp(self.first(x))
        y = self.clamp(self.second(x) + x)
        out: torch.Tensor = self.clamp(self.third(y))
        return out


def net(name: str) -> Net:
    torch.manual_seed(0)
    return Net(WAYS[name]).eval()


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert got.dtype is want.dtype
    assert got.stride() == want.stride()
    assert rms(got.double() - want.double()) <= tolerance * rms(want)


@pytest.mark.parametrize("name", WAYS)
def test_is_one_program(name: str) -> None:
    model = net(name)
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 9, 11)
    with torch.no_grad():
        assert_near(fast(x), model(x))
    assert len(fast.fusion().binding.programs) == 1
    assert not fast.fusion().binding.lowered.natives


@pytest.mark.parametrize("name", WAYS)
def test_gradients_at_the_bounds_are_torchs(name: str) -> None:
    model = net(name).train()
    with torch.no_grad():
        for conv in (model.first, model.second, model.third):
            conv.weight.copy_((conv.weight * 8).round() / 8)  # so that sums meet bounds exactly
            conv.bias.zero_()
    fast, x = resfuse.fuse(copy.deepcopy(model)), (torch.randn(2, 3, 9, 11) * 2).round() / 2
    for m in (model, fast):
        m(x).square().sum().backward()
    for (path, want), got in zip(model.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4, msg=path)


def test_values_that_are_not_finite() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.conv(x.clamp(-1, 2)), x.clamp(-1, 2), x.clamp(max=0.5), F.hardtanh(x)

    model = Alone().eval()
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30]
    x = torch.tensor(values).reshape(1, 1, 2, 3)
    with torch.no_grad():
        for got, want in zip(resfuse.fuse(model, algorithm="direct")(x), model(x), strict=True):
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = net("clamp").to(dtype)
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 9, 7).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert rms(fast(x).double() - exact) <= 2 * rms(model(x).double() - exact)


def test_int8_and_saved_model(tmp_path: Path) -> None:
    model, x = net("keywords"), torch.randn(8, 3, 9, 7)
    fast = resfuse.quantize(model, [x], progress=False)
    with torch.no_grad():
        assert rms(fast(x) - model(x)) <= 0.1 * rms(model(x))
        for kind, tolerance in ((resfuse.fuse(model), 2e-6), (fast, 0.1)):
            resfuse.save(kind, tmp_path / "net.resfuse", x)
            got = resfuse.load(tmp_path / "net.resfuse")(x)
            assert rms(got - model(x)) <= tolerance * rms(model(x))


def test_bounds_that_are_no_numbers_run_natively() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.low = nn.Parameter(torch.tensor(-0.1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(torch.relu(self.conv(x)), self.low, self.low + 0.5)

    model, x = Bounded().eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert_near(resfuse.fuse(model)(x), model(x))


def test_bounds_in_the_wrong_order_fail_as_in_torch() -> None:
    fast, x = resfuse.fuse(net("module")), torch.randn(1, 3, 8, 8)
    fast.module.min_val = 3.0
    with torch.no_grad(), pytest.raises(ValueError, match="min_val cannot be greater"):
        fast(x)


def test_through_compile_and_export() -> None:
    model, x = net("keywords"), torch.randn(2, 3, 9, 7)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(torch.compile(model, backend="resfuse")(x), model(x))
        fast = resfuse.fuse(torch.export.export(model, (x,)).module())
        assert_near(fast(x), model(x))
    assert not fast.fusion().binding.lowered.natives
