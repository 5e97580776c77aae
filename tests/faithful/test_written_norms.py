"""Batch norms that are written by hand are folded, whatever their spelling; what is none is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import resfuse
from resfuse.bench.models import torchvision_models
from tests.faithful.twins import Twins, images


class Written(nn.Module):
    def __init__(self, channels: int, formula: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels))
        self.register_buffer("mean", torch.randn(channels))
        self.register_buffer("var", torch.rand(channels) + 0.5)
        self.eps = 1e-3
        self.formula = formula

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.formula(self, x)


def _torchvision(m: Written, x: torch.Tensor) -> torch.Tensor:
    w, b = m.weight.reshape(1, -1, 1, 1), m.bias.reshape(1, -1, 1, 1)
    rv, rm = m.var.reshape(1, -1, 1, 1), m.mean.reshape(1, -1, 1, 1)
    scale = w * (rv + m.eps).rsqrt()
    bias = b - rm * scale
    return x * scale + bias


def _detectron(m: Written, x: torch.Tensor) -> torch.Tensor:
    scale = m.weight * (m.var + m.eps).rsqrt()
    bias = m.bias - m.mean * scale
    return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + bias.reshape(1, -1, 1, 1).to(x.dtype)


def _normalised(m: Written, x: torch.Tensor) -> torch.Tensor:
    return (x - m.mean[:, None, None]) / torch.sqrt(m.var[:, None, None] + m.eps) * m.weight[:, None, None] + m.bias[
        None, :, None, None
    ]


def _addcmul(m: Written, x: torch.Tensor) -> torch.Tensor:
    scale = (m.weight / (m.eps + m.var).sqrt()).view(1, -1, 1, 1)
    return torch.addcmul((-m.mean[None, :, None, None]) * scale + m.bias.unsqueeze(-1).unsqueeze(-1), x, scale)


def _power(m: Written, x: torch.Tensor) -> torch.Tensor:
    scale = (m.var + m.eps) ** -0.5
    return torch.add(torch.mul(scale[:, None, None], x), (m.bias + (-m.mean) * scale)[:, None, None])


def _without_bias(m: Written, x: torch.Tensor) -> torch.Tensor:
    return (x - m.mean.view(1, -1, 1, 1)) * (m.weight * torch.rsqrt(m.var + m.eps)).view(1, -1, 1, 1)


SPELLINGS = [_torchvision, _detectron, _normalised, _addcmul, _power, _without_bias]


def _no_eps(m: Written, x: torch.Tensor) -> torch.Tensor:
    return x * (m.weight * m.var.rsqrt())[:, None, None] + m.bias[:, None, None]


def _twice(m: Written, x: torch.Tensor) -> torch.Tensor:
    return _torchvision(m, x) * 2.0


def _wrong_sign(m: Written, x: torch.Tensor) -> torch.Tensor:
    scale = (m.weight * (m.var + m.eps).rsqrt())[:, None, None]
    return x * scale + (m.bias[:, None, None] + m.mean[:, None, None] * scale)


def _other_scale(m: Written, x: torch.Tensor) -> torch.Tensor:
    scale = (m.weight * (m.var + m.eps).rsqrt())[:, None, None]
    return x * scale + (m.bias[:, None, None] - m.mean[:, None, None] * (scale * 1.5))


def _of_rows(m: Written, x: torch.Tensor) -> torch.Tensor:
    """The last dimension, which has as many values."""
    return (x - m.mean) * (m.weight * (m.var + m.eps).rsqrt()) + m.bias


class Net(nn.Module):
    def __init__(self, formula: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), Written(8, formula)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), Written(8, formula)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + y)


@pytest.mark.parametrize("formula", SPELLINGS)
def test_spellings_are_folded(formula: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
    twins = Twins(Net(formula).eval())
    report = resfuse.report(twins.fused)
    assert not report.native, report.native
    assert len(report.fused) == 2
    twins.call(images())
    twins.call(images(), backward=True)
    twins.do(lambda m: m.bn1.mean.add_(1.0)).call(images())
    twins.do(lambda m: setattr(m.bn2, "eps", 0.5)).call(images())
    twins.do(lambda m: m.train()).call(images(), backward=True)
    twins.call(images().double())
    twins.do(lambda m: m.double()).call(images().double())


@pytest.mark.parametrize("formula", [_no_eps, _twice, _wrong_sign, _other_scale, _of_rows])
def test_what_is_none_computes_what_it_says(formula: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
    twins = Twins(Net(formula).eval())
    twins.call(images(2, 3, 8, 8))
    twins.call(images(2, 3, 8, 8), backward=True)


@pytest.mark.parametrize("formula", [_torchvision, _normalised])
def test_under_compile(formula: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
    torch._dynamo.reset()
    model = Net(formula).eval()
    compiled = torch.compile(model, backend="resfuse")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_a_whole_network() -> None:
    models = torchvision_models()
    if models is None:
        pytest.skip("torchvision is not installed")

    class Frozen(Written):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, _torchvision)

    model = models.resnet18(norm_layer=Frozen).eval()
    fast = resfuse.fuse(copy.deepcopy(model))
    assert not resfuse.report(fast).native
    with torch.no_grad():
        torch.testing.assert_close(fast(images(1, 3, 64, 64)), model(images(1, 3, 64, 64)), rtol=1e-3, atol=1e-2)
