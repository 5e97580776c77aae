"""Weights that change where no version counter counts: seen some calls later, and at once after `resfuse.refresh`."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import resfuse
from resfuse import _core
from resfuse.engine.executor import executor_of
from resfuse.engine.weights import PackedWeights
from tests.faithful.twins import conv_norm_relu, images

pytestmark = pytest.mark.usefixtures("with_and_without_gradients")

CALLS = 31  # at the latest


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8)).eval()


def big() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv_norm_relu(3, 96), conv_norm_relu(96, 257), conv_norm_relu(257, 256)).eval()


@torch.no_grad()
def seen_after(fast: nn.Module, change: Callable[[nn.Module], None], refresh: bool = False) -> int:
    """After how many calls a change is seen."""
    x = images(1, 3, 8, 8)
    before = fast(x)
    change(fast)
    if refresh:
        resfuse.refresh(fast)
    plain = copy.deepcopy(fast)
    want = plain.native_forward(x)
    assert not torch.allclose(want, before, rtol=1e-3, atol=1e-3)
    for call in range(1, 2 * CALLS):
        if torch.allclose(fast(x), want, rtol=1e-3, atol=1e-3):
            return call
    return 2 * CALLS


def _through_data(fast: nn.Module) -> None:
    fast[1][0].weight.data[3, 1, 1, 1] += 10.0


def _through_numpy(fast: nn.Module) -> None:
    fast[1][0].weight.detach().numpy()[3, 1, 1, 1] += 10.0


def _buffer(fast: nn.Module) -> None:
    fast[1][1].running_mean.data[5] += 10.0


@pytest.mark.parametrize("model", [small, big])
@pytest.mark.parametrize("change", [_through_data, _through_numpy, _buffer])
def test_one_element(model: Callable[[], nn.Module], change: Callable[[nn.Module], None]) -> None:
    assert seen_after(resfuse.fuse(model()), change) <= CALLS
    assert seen_after(resfuse.fuse(model()), change, refresh=True) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every second channel", "transposed"])
@pytest.mark.parametrize("place", [0, -1, 1234, 100_001])
def test_every_element_of_every_layout(layout: str, place: int) -> None:
    model = big()
    weight = model[1][0].weight.detach()
    if layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    elif layout == "every second channel":
        weight = torch.cat([weight, weight], 1)[:, ::2]
    elif layout == "transposed":
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    model[1][0].weight = nn.Parameter(weight)
    fast = resfuse.fuse(model)

    def change(module: nn.Module) -> None:
        data = module[1][0].weight.data
        data[np.unravel_index(place % data.numel(), data.shape)] += 50.0

    assert seen_after(fast, change) <= CALLS


def _add_in_another_process(tensor: torch.Tensor) -> None:
    tensor[3, 1, 1, 1] += 10.0


def test_another_process() -> None:
    fast = resfuse.fuse(big())
    fast.share_memory()

    def change(module: nn.Module) -> None:
        process = multiprocessing.get_context("spawn").Process(
            target=_add_in_another_process, args=(module[1][0].weight.detach(),)
        )
        process.start()
        process.join()
        assert process.exitcode == 0

    assert seen_after(fast, change) <= CALLS


@torch.no_grad()
def test_nothing_is_packed_again_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    packings = []
    original = PackedWeights._read
    monkeypatch.setattr(PackedWeights, "_read", lambda self, tensors: packings.append(1) or original(self, tensors))
    fast = resfuse.fuse(big())
    for _ in range(3 * CALLS):
        fast(images(1, 3, 8, 8))
    assert len(packings) == 1
    resfuse.refresh(fast)
    resfuse.refresh(fast)
    fast(images(1, 3, 8, 8))
    assert len(packings) == 2


def test_refresh_wants_a_fused_model() -> None:
    with pytest.raises(TypeError, match="model"):
        resfuse.refresh(3)  # type: ignore[arg-type]
    with pytest.raises(resfuse.UnsupportedModelError, match="not fused"):
        resfuse.refresh(small())
    resfuse.refresh(resfuse.fuse(small()))  # nothing is packed yet


def test_refresh_of_a_model_that_lost_a_parameter() -> None:
    fast = resfuse.fuse(small())
    with torch.no_grad():
        fast(images())
    del fast[0][0]._parameters["weight"]
    resfuse.refresh(fast)
    assert executor_of(fast.fusion().graphs.kept[0].binding.programs[0].text) is not None


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=4), st.data())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_changed_word_changes_its_hash(sizes: list[int], data: st.DataObject) -> None:
    arrays = [np.random.default_rng(size).standard_normal(size).astype(np.float32) for size in sizes]
    fingerprint = _core.Fingerprint(arrays)
    fingerprint.take(2)
    assert all(fingerprint.same_slice(1) for _ in range(fingerprint.slices))
    array = arrays[data.draw(st.integers(0, len(arrays) - 1))]
    word = data.draw(st.integers(0, array.size - 1))
    bit = data.draw(st.integers(0, 31))
    array.view(np.uint32)[word] ^= np.uint32(1 << bit)
    assert sum(not fingerprint.same_slice(2) for _ in range(fingerprint.slices)) == 1
    array.view(np.uint32)[word] ^= np.uint32(1 << bit)
    assert all(fingerprint.same_slice(1) for _ in range(fingerprint.slices))


def test_signs_that_change_together_do_not_cancel_out() -> None:
    array = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    fingerprint = _core.Fingerprint([array])
    fingerprint.take(2)
    for places in ([0, 32], [5, 5 + 64], [100, 132, 164, 196], list(range(0, 1024, 32))):
        array[places] *= -1.0
        assert sum(not fingerprint.same_slice(2) for _ in range(fingerprint.slices)) == 1
        array[places] *= -1.0


@torch.no_grad()
def test_new_strides_over_the_same_memory() -> None:
    model = small()
    fast = resfuse.fuse(copy.deepcopy(model))
    fast(images())
    for m in (model, fast):
        m[1][0].weight.data = m[1][0].weight.data.transpose(2, 3)
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-3, atol=1e-4)


def test_strided_arrays_are_hashed_whole() -> None:
    whole = np.random.default_rng(0).standard_normal((6, 5, 4, 3)).astype(np.float32)
    view = whole[::2, ::-1, :, 1:]
    fingerprint = _core.Fingerprint([view])
    fingerprint.take(1)
    for index in np.ndindex(whole.shape):
        whole[index] += 1.0
        inside = index[0] % 2 == 0 and index[3] >= 1
        assert fingerprint.same_slice(1) != inside
        whole[index] -= 1.0
        fingerprint.take(1)
    with pytest.raises(TypeError, match="float32"):
        _core.Fingerprint([np.zeros(3)])
    with pytest.raises(ValueError, match="dimensions"):
        _core.Fingerprint([np.zeros((1, 1, 1, 1, 1), np.float32)])
    assert _core.Fingerprint([]).same_slice(1)
