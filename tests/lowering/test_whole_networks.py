"""Networks that join, cut, resample and normalise feature maps: one program through every door, in every type."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.faithful.twins import Twins, conv_norm_relu


class Joins(nn.Module):
    """A small network with all kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv_norm_relu(3, 16), conv_norm_relu(16, 16), conv_norm_relu(32, 16)
        self.narrow, self.last = conv_norm_relu(8, 8), conv_norm_relu(32, 16)
        self.norm, self.head = nn.GroupNorm(4, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.second(x)
        z = self.third(torch.cat([x, y], 1))
        one, two = z.chunk(2, 1)
        small = F.interpolate(F.max_pool2d(y, 2), size=y.shape[-2:], mode="bilinear")
        w = self.last(torch.cat([self.narrow(one), two, small], 1)) * z
        return self.head(F.relu(self.norm(w) + x).clamp(min=0, max=6).mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    """With linear layers over the last dimension and a layer scale (Liu et al., 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.expand = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 4 * channels)
        self.project, self.gamma = nn.Linear(4 * channels, channels), nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.project(F.gelu(self.expand(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


def _convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 4, 4), ConvNeXtBlock(12), ConvNeXtBlock(12))


NETWORKS = pytest.mark.parametrize("make", [Joins, _convnext])


def _distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@NETWORKS
@torch.no_grad()
def test_whole_networks_are_one_program(make) -> None:
    twins = Twins(make().eval())
    for shape in [(1, 3, 16, 16), (3, 3, 24, 20)]:
        twins.call(torch.randn(shape))
        twins.call(torch.randn(shape).to(memory_format=torch.channels_last))
    report = resfuse.report(twins.fused)
    assert not report.native
    assert report.native_calls == 0


@NETWORKS
def test_whole_networks_train(make) -> None:
    twins = Twins(make().train())
    twins.call(torch.randn(2, 3, 16, 16, requires_grad=True), backward=True)
    assert resfuse.report(twins.fused).native_calls == 0


@NETWORKS
@torch.no_grad()
def test_whole_networks_through_compile_and_export(make) -> None:
    model, x = make().eval(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(copy.deepcopy(model), backend="resfuse")
    assert _distance(compiled(x), model(x)) < 1e-5
    exported = resfuse.fuse(torch.export.export(model, (x,)).module())
    assert _distance(exported(x), model(x)) < 1e-5
    assert not resfuse.report(exported).native


@NETWORKS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_whole_networks_in_half_precision(make, dtype) -> None:
    model, x = make().eval(), torch.randn(2, 3, 16, 16)
    exact = copy.deepcopy(model).double()(x.double())
    half = copy.deepcopy(model).to(dtype)
    fast = resfuse.fuse(half)
    assert _distance(fast(x.to(dtype)), exact) <= 2 * _distance(half(x.to(dtype)), exact)
    assert resfuse.report(fast).native_calls == 0


@NETWORKS
@torch.no_grad()
def test_whole_networks_under_autocast(make) -> None:
    """Times a parameter of float32 torch gives float32."""
    model, x = make().eval(), torch.randn(2, 3, 16, 16)
    fast = resfuse.fuse(model)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = fast(x), model(x)
    assert got.dtype is want.dtype
    assert _distance(got, want) < 2e-2


@NETWORKS
@torch.no_grad()
def test_whole_networks_of_bytes(make) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(8, 3, 32, 32)
    fast = resfuse.quantize(model, [x])
    assert _distance(fast(x), model(x)) < 0.05
    computes = {row.precision for row in resfuse.report(fast).rows}
    assert "int8" in computes
    assert "fp32" in computes


@torch.no_grad()
def test_parts_that_others_read_are_views_as_in_torch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv_norm_relu(3, 8), conv_norm_relu(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.first(x)
            return y[:, :4], self.second(y[:, 4:])

    twins = Twins(Model().eval())
    twins.call(torch.randn(2, 3, 9, 7))
    assert [row.what for row in resfuse.report(twins.fused).native] == ["a part of a feature map, which others read"]


@torch.no_grad()
def test_what_does_not_fit_runs_as_torch_does() -> None:
    """Sums, products and concatenations that broadcast, or whose sizes differ."""

    class Model(nn.Module):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.first, self.second, self.what = conv_norm_relu(3, 8), conv_norm_relu(3, 8, 2), what
            self.row = nn.Parameter(torch.randn(8, 1, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            if self.what == "row":
                return y * self.row
            if self.what == "wide":
                return torch.cat([y, y], 3)
            return torch.cat([y, self.second(x)], 1)

    for what in ("row", "wide"):
        Twins(Model(what).eval()).call(torch.randn(2, 3, 6, 5))
    fast = resfuse.fuse(Model("sizes").eval())
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        fast(torch.randn(2, 3, 6, 5))
