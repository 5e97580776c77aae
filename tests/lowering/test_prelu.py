"""PReLU: in epilogues, by channel or one slope for all, its slopes followed like weights, in every mode and type."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.reference import rms


class Block(nn.Module):
    """Of the residual networks that recognise faces: batch norm, 3x3, batch norm, PReLU, 3x3, batch norm, sum."""

    def __init__(self, channels: int, slopes: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.act = nn.PReLU(slopes)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.third_norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.second_norm(self.first(self.first_norm(x))))
        out: torch.Tensor = self.third_norm(self.second(y)) + x
        return out


class Faces(nn.Module):
    def __init__(self, slopes: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.act = nn.PReLU(slopes)
        self.blocks = nn.Sequential(Block(24, slopes), Block(24, slopes))
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.narrow = nn.Conv2d(24, 10, 1)
        self.weight = nn.Parameter(torch.rand(10))
        self.fc = nn.Linear(10, 5)
        self.last = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.blocks(x)
        x = F.prelu(self.narrow(torch.prelu(self.depthwise(x), self.act.weight)), self.weight)
        out: torch.Tensor = self.last(self.fc(x.mean((2, 3))))
        return out


def faces(slopes: int = 24) -> Faces:
    torch.manual_seed(0)
    model = Faces(slopes).eval()
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.9)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert got.shape == want.shape
    assert got.dtype is want.dtype
    assert rms(got.double() - want.double()) <= tolerance * rms(want)


@pytest.mark.parametrize("slopes", [1, 24])
def test_is_one_program(slopes: int) -> None:
    model = faces(slopes)
    fast = resfuse.fuse(model)
    with torch.no_grad():
        for size in ((2, 3, 17, 20), (1, 3, 8, 8)):
            x = torch.randn(size)
            assert_near(fast(x), model(x))
    assert len(fast.fusion().binding.programs) == 1
    assert not fast.fusion().binding.lowered.natives


def test_changed_slopes_are_followed() -> None:
    fast, x = resfuse.fuse(faces()), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        before = fast(x)
        fast.act.weight.mul_(-1.0)
        assert_near(fast(x), fast.native_forward(x))
        fast.blocks[0].act.weight.data.fill_(2.0)
        assert_near(fast(x), fast.native_forward(x))
        fast.act.weight = nn.Parameter(torch.tensor([0.3]))  # one slope for all
        assert_near(fast(x), fast.native_forward(x))
        assert rms(fast(x) - before) > 0.01 * rms(before)
        fast.act.weight = nn.Parameter(torch.rand(7))  # which fits nothing
        with pytest.raises(RuntimeError, match="channel size"):
            fast(x)


def test_one_slope_for_each_channel_of_the_second_dimension() -> None:
    class Turned(nn.Module):
        def __init__(self, slopes: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.act = nn.PReLU(slopes)
            self.fc = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(self.conv(x).permute(0, 2, 3, 1))
            out: torch.Tensor = self.fc(x).permute(0, 3, 1, 2)
            return out

    model, x = Turned(1).eval(), torch.randn(1, 3, 6, 5)
    with torch.no_grad():
        assert_near(resfuse.fuse(model)(x), model(x))
    with pytest.raises(resfuse.UnsupportedModelError):
        resfuse.fuse(Turned(6).eval())  # which are the rows' slopes, where channels come last


@pytest.mark.parametrize("slopes", [1, 24])
def test_trains_as_torch_does(slopes: int) -> None:
    model = faces(slopes).train()
    twin, fast = copy.deepcopy(model), resfuse.fuse(copy.deepcopy(model))
    optimizers = [torch.optim.SGD(m.parameters(), 0.02) for m in (twin, fast)]
    for _ in range(3):
        x = torch.randn(4, 3, 10, 10)
        for m, optimizer in zip((twin, fast), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    for (name, want), got in zip(twin.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-6, msg=name)
        torch.testing.assert_close(got.grad, want.grad, rtol=2e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = faces().to(dtype)
    x = torch.randn(2, 3, 14, 14).to(dtype)
    fast = resfuse.fuse(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        want, got = model(x), fast(x)
        assert got.dtype is dtype
        assert rms(got.double() - exact) <= 2 * rms(want.double() - exact)


def test_under_autocast() -> None:
    model = faces()
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 14, 14)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, want = fast(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert got.dtype is want.dtype
    assert rms(got.double() - exact) <= 2 * rms(want.double() - exact)


@pytest.mark.parametrize("size", [(1, 6, 1, 1), (2, 6, 1, 5), (1, 1, 4, 4), (1, 1, 1, 1), (2, 6, 4, 4), (2, 6, 1, 1)])
def test_memory_format(size: tuple[int, ...]) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(size[1], size[1], 3, padding=1)
            self.act = nn.PReLU(size[1])
            self.norm = nn.BatchNorm2d(size[1])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = self.conv(self.act(x))
            return self.act(self.conv(x)), self.act(self.norm(self.conv(x))), self.act(y), self.act(y + x), y

    model = Small().eval()
    fast = resfuse.fuse(model)
    for x in (torch.randn(size), torch.randn(size).to(memory_format=torch.channels_last)):
        with torch.no_grad():
            for got, want in zip(fast(x), model(x), strict=True):
                assert got.stride() == want.stride()
                assert_near(got, want)


def test_int8() -> None:
    model, x = faces(), torch.randn(8, 3, 14, 14)
    fast = resfuse.quantize(model, [x], progress=False)
    with torch.no_grad():
        assert rms(fast(x) - model(x)) <= 0.1 * rms(model(x))
        with torch.no_grad():
            fast.act.weight.fill_(0.9)
        assert rms(fast(x) - model(x)) <= 0.1 * rms(model(x))


def test_saved_model(tmp_path: Path) -> None:
    model, x = faces(), torch.randn(2, 3, 14, 14)
    resfuse.save(resfuse.fuse(model), tmp_path / "faces.resfuse", x)
    loaded = resfuse.load(tmp_path / "faces.resfuse")
    with torch.no_grad():
        assert_near(loaded(x), model(x))


def test_through_compile_and_export() -> None:
    model, x = faces(), torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        assert_near(torch.compile(model, backend="resfuse")(x), model(x))
        exported = torch.export.export(model, (x,)).module()
        assert_near(torch.compile(exported, backend="resfuse")(x), model(x))
