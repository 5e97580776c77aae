"""Calls like the last one begin before it is known that they are."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import resfuse
from resfuse.fused.repeat import Repeat, Result
from tests.faithful.twins import conv_norm_relu, images


class Repeats:
    """How many calls of all models were begun so, and how many of these were such calls."""

    begun, done = 0, 0


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repeats]:
    counted, run = Repeats(), Repeat.run

    def counting(self: Repeat, x: torch.Tensor) -> Result | None:
        result = run(self, x)
        counted.begun += 1
        counted.done += result is not None
        return result

    monkeypatch.setattr(Repeat, "run", counting)
    with torch.no_grad():
        yield counted


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        conv_norm_relu(3, 8), conv_norm_relu(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


def test_calls_are_repeated(repeats: Repeats) -> None:
    plain = network()
    fast = resfuse.fuse(plain)
    for number in range(4):
        x = images() + number
        torch.testing.assert_close(fast(x), plain(x))
    assert (repeats.begun, repeats.done) == (3, 3)
    assert resfuse.report(fast).fused_calls == 4


def test_results_are_of_one_call_each(repeats: Repeats) -> None:
    fast = resfuse.fuse(network())
    first = fast(images())
    kept = first.clone()
    fast(images() + 1)
    assert repeats.done == 1
    assert torch.equal(first, kept)


@pytest.mark.parametrize("write", ["counted", "data", "replaced", "removed", "norm"])
def test_changed_weights_end_it(repeats: Repeats, write: str) -> None:
    plain = network()
    fast = resfuse.fuse(plain)
    x = images()
    fast(x)
    fast(x)
    conv = plain[0][0]
    if write == "counted":
        conv.weight.mul_(2)
    elif write == "data":
        conv.weight.data.numpy()[...] *= 2
    elif write == "replaced":
        plain[0][0].weight = fast[0][0].weight = nn.Parameter(conv.weight * 2)
    elif write == "removed":
        for model in (plain, fast):
            del model[0][1]
    else:
        plain[0][1].running_mean += 1
    torch.testing.assert_close(fast(x), plain(x))
    assert (repeats.begun, repeats.done) == (2, 1)
    torch.testing.assert_close(fast(x), plain(x))
    assert repeats.done == 2


@pytest.mark.parametrize("change", ["train", "hook", "attribute", "forward"])
def test_changed_modules_end_it(repeats: Repeats, change: str) -> None:
    plain = network()
    fast = resfuse.fuse(plain)
    x = images()
    fast(x)
    seen: list[int] = []
    for model in (plain, fast):
        if change == "train":
            model.train()
        elif change == "hook":
            model[1].register_forward_hook(lambda *_: seen.append(1))
        elif change == "attribute":
            model[0][0].stride = (2, 2)
        else:
            model[1].forward = lambda y: y * 2
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)
    assert (repeats.begun, repeats.done) == (1, 0)
    assert len(seen) == 2 * (change == "hook")


def test_other_arguments_are_not_begun(repeats: Repeats) -> None:
    plain = network()
    fast = resfuse.fuse(plain)
    x = images()
    others = [
        x[:, :, 1:], x[:1], x.to(memory_format=torch.channels_last), x.mT, x.double().float()[:, :, ::2], nn.Parameter(x)
    ]  # fmt: skip
    for other in others:
        fast(x)
        torch.testing.assert_close(fast(other), plain(other))
    assert repeats.begun == 0
    with pytest.raises(RuntimeError):
        fast(x.double())
    with pytest.raises(RuntimeError):
        fast(x.to_sparse())


def test_what_is_switched_on_in_a_thread_is_seen(repeats: Repeats) -> None:
    plain = network()
    fast = resfuse.fuse(plain)
    x = images()

    class Mode(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Mode.seen += 1
            return func(*args, **(kwargs or {}))

    fast(x)
    with Mode():
        fast(x)
    assert Mode.seen > 5
    fast(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype is torch.bfloat16
    fast(x)
    with torch.enable_grad(), pytest.warns(resfuse.GradientsEnabledWarning):
        assert fast(nn.Parameter(x)).requires_grad
    fast(x)
    assert len(resfuse.profile(fast, x).layers) > 2
    with torch.profiler.profile() as profile:
        fast(x)
    assert any("resfuse" in event.key for event in profile.key_averages())
    threads = torch.get_num_threads()
    fast(x)
    torch.set_num_threads(1)
    try:
        torch.testing.assert_close(fast(x), plain(x))
    finally:
        torch.set_num_threads(threads)


def test_quantised_models_are_repeated(repeats: Repeats) -> None:
    fast = resfuse.fuse(network())
    x = images()
    fast(x)
    exact = fast(x)
    fast = resfuse.quantize(fast, [x])
    repeats.begun = repeats.done = 0
    first, second = fast(x), fast(x)
    assert torch.equal(first, second)
    assert not torch.equal(first, exact)
    assert repeats.done == 1


def test_packed_weights_die_with_a_replaced_head(repeats: Repeats) -> None:
    fast = resfuse.fuse(network())
    fast(images())
    fast(images())
    weights = fast.fusion().repeat._weights
    assert weights() is not None
    fast[4] = nn.Linear(8, 4)
    fast(images())
    gc.collect()
    assert weights() is None
