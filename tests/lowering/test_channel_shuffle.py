"""Channel shuffles: as a module, as a call, and written as views, in every mode and type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.bench.models import randomize_batch_norm, torchvision_models
from tests.reference import rms

Shuffle = Callable[[torch.Tensor, int], torch.Tensor]


def by_size(x: torch.Tensor, groups: int) -> torch.Tensor:
    """As torchvision writes it."""
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(n, c, h, w)


def by_shape(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, _, h, w = x.shape
    x = x.reshape(n, groups, x.shape[1] // groups, h, w)
    return x.permute(0, 2, 1, 3, 4).reshape(n, -1, h, w)


def by_flatten(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.view(x.size(0), groups, -1, x.size(2), x.size(3)).transpose(2, 1).flatten(1, 2)


def by_call(x: torch.Tensor, groups: int) -> torch.Tensor:
    return F.channel_shuffle(x, groups)


def by_module(x: torch.Tensor, groups: int) -> torch.Tensor:
    return nn.ChannelShuffle(groups)(x)


WAYS: tuple[Shuffle, ...] = (by_size, by_shape, by_flatten, by_call)


class Unit(nn.Module):
    """A part of a ShuffleNet: half of the channels pass, the others go through convolutions."""

    def __init__(self, shuffle: Shuffle, groups: int = 2, returns: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(6, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last = nn.Conv2d(12, 5, 3, padding=1)
        self.shuffle, self.groups, self.returns = shuffle, groups, returns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(2):
            passed, y = x.chunk(2, dim=1)
            y = torch.relu(self.depthwise(torch.relu(self.first(y))))
            x = self.shuffle(torch.cat((passed, y), dim=1), self.groups)
        return x if self.returns else torch.tanh(self.last(x))


def unit(shuffle: Shuffle, groups: int = 2, returns: bool = False) -> Unit:
    torch.manual_seed(0)
    return Unit(shuffle, groups, returns).eval()


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert got.shape == want.shape
    assert got.dtype is want.dtype
    assert rms(got.double() - want.double()) <= tolerance * rms(want)


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("shuffle", WAYS)
def test_is_one_program(shuffle: Shuffle, groups: int) -> None:
    model = unit(shuffle, groups)
    fast = resfuse.fuse(model)
    with torch.no_grad():
        for size in ((2, 3, 7, 10), (1, 3, 4, 4)):
            x = torch.randn(size)
            assert_near(fast(x), model(x))
    assert len(fast.fusion().binding.programs) == 1
    assert not fast.fusion().binding.lowered.natives


@pytest.mark.parametrize("shuffle", [*WAYS, by_module])
@pytest.mark.parametrize("groups", [1, 2, 12])
def test_memory_format(shuffle: Shuffle, groups: int) -> None:
    model = unit(shuffle, groups, returns=True)
    fast = resfuse.fuse(model)
    with torch.no_grad():
        for size in ((2, 3, 7, 10), (1, 3, 1, 1), (2, 3, 1, 1), (1, 3, 1, 4)):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(size).to(memory_format=memory_format)
                got, want = fast(x), model(x)
                assert got.stride() == want.stride()
                assert_near(got, want)


def test_what_is_no_shuffle_runs_as_torch_does() -> None:
    def transposed_height(x: torch.Tensor, groups: int) -> torch.Tensor:
        n, c, h, w = x.size()
        return x.view(n, groups, c // groups, h, w).transpose(1, 3).contiguous().view(n, c, h, w)

    def other_lengths(x: torch.Tensor, groups: int) -> torch.Tensor:
        n, c, h, w = x.size()
        return x.view(n, groups, c // groups, w, h).transpose(1, 2).contiguous().view(n, c, h, w)

    def seen_between(x: torch.Tensor, groups: int) -> torch.Tensor:
        n, c, h, w = x.size()
        turned = x.view(n, groups, c // groups, h, w).transpose(1, 2)
        return turned.contiguous().view(n, c, h, w) * turned.amax()

    x = torch.randn(2, 3, 6, 8)
    for shuffle in (transposed_height, other_lengths, seen_between):
        model = unit(shuffle)
        with torch.no_grad():
            assert_near(resfuse.fuse(model)(x), model(x))


def test_a_view_of_what_is_not_copied_fails_as_in_torch() -> None:
    def uncopied(x: torch.Tensor, groups: int) -> torch.Tensor:
        n, c, h, w = x.size()
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).view(n, c, h, w)

    model, x = unit(uncopied), torch.randn(1, 3, 6, 8)
    with torch.no_grad():
        for m in (model, resfuse.fuse(model)):
            with pytest.raises(RuntimeError, match="view"):
                m(x)


def test_groups_that_do_not_divide_fail_as_in_torch() -> None:
    model, x = unit(by_size, 5), torch.randn(1, 3, 6, 8)
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            model(x)
        with pytest.raises(RuntimeError):
            resfuse.fuse(model)(x)


@pytest.mark.parametrize("shuffle", [by_size, by_call])
def test_trains_as_torch_does(shuffle: Shuffle) -> None:
    model = unit(shuffle).train()
    fast, x = resfuse.fuse(copy.deepcopy(model)), torch.randn(2, 3, 8, 8)
    for m in (model, fast):
        m(x).square().mean().backward()
    for (name, want), got in zip(model.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = unit(by_size).to(dtype)
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 9, 7).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert rms(fast(x).double() - exact) <= 2 * rms(model(x).double() - exact)


def test_int8() -> None:
    model, x = unit(by_size), torch.randn(8, 3, 9, 7)
    fast = resfuse.quantize(model, [x], progress=False)
    with torch.no_grad():
        assert rms(fast(x) - model(x)) <= 0.1 * rms(model(x))


def test_saved_model(tmp_path: Path) -> None:
    model, x = unit(by_size), torch.randn(2, 3, 9, 7)
    resfuse.save(resfuse.fuse(model), tmp_path / "unit.resfuse", x)
    with torch.no_grad():
        assert_near(resfuse.load(tmp_path / "unit.resfuse")(x), model(x))


@pytest.mark.parametrize("shuffle", WAYS)
def test_through_compile_and_export(shuffle: Shuffle) -> None:
    model, x = unit(shuffle), torch.randn(2, 3, 9, 7)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(torch.compile(model, backend="resfuse")(x), model(x))
        exported = torch.export.export(model, (x,)).module()
        fast = resfuse.fuse(exported)
        assert_near(fast(x), model(x))
    # Exported graphs hold the lengths that views had, for which nobody vouches here.
    assert shuffle is not by_call or not fast.fusion().binding.lowered.natives


def test_shufflenet_is_one_program() -> None:
    torch.manual_seed(0)
    model = torchvision_models().shufflenet_v2_x0_5().eval()
    randomize_batch_norm(model)
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_near(fast(x), model(x), 1e-5)
    assert len(fast.fusion().binding.programs) == 1
    assert not fast.fusion().binding.lowered.natives
