"""Batch norms in training: every mode that a user can set, frozen ones, statistics that move once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import resfuse
from resfuse.training import convolution
from tests.training.gradients import assert_gradients, loss_of, small


def _every(model: nn.Module, change: object) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            change(module)  # type: ignore[operator]


def _frozen(norm: nn.BatchNorm2d) -> None:
    norm.eval()


def _cumulative(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None


def _slow(norm: nn.BatchNorm2d) -> None:
    norm.momentum = 0.01


def _frozen_affine(norm: nn.BatchNorm2d) -> None:
    norm.weight.requires_grad_(False)
    norm.bias.requires_grad_(False)


@pytest.mark.parametrize("change", [_frozen, _cumulative, _slow, _frozen_affine])
def test_training_batch_norm_modes(change) -> None:
    model = small()
    _every(model, change)
    assert_gradients(model, (4, 3, 32, 32))


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_training_batch_norms_of_other_kinds(options: dict[str, bool]) -> None:
    """Whatever is not fused runs as it did."""
    model = small()
    model.layer1[0].bn1 = nn.BatchNorm2d(8, **options).train()
    assert_gradients(model, (4, 3, 32, 32))


def test_training_with_some_norms_frozen() -> None:
    model = small("bottleneck")
    model.layer1.eval()
    assert_gradients(model, (4, 3, 32, 32))


def test_training_sync_batch_norm_is_left_and_reported() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small())
    native = resfuse.report(resfuse.fuse(model)).native
    assert any("SyncBatchNorm" in row.what for row in native)


def test_training_one_value_per_channel() -> None:
    fast = resfuse.fuse(small())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast(torch.randn(1, 3, 8, 8))


class _Broadcasting(nn.Module):
    """A sum that broadcasts fits no program; the convolution before it does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = resfuse.models.blocks.BasicBlock(8, 8)
        self.gate = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.gate(self.block(self.stem(x))) + y)


def test_training_statistics_move_once_where_the_fused_run_fails() -> None:
    torch.manual_seed(0)
    model = _Broadcasting().train()
    fast = resfuse.fuse(copy.deepcopy(model))
    x, y = torch.randn(2, 3, 12, 12), torch.randn(2, 8, 1, 1)
    torch.testing.assert_close(fast(x, y), model(x, y), rtol=1e-4, atol=1e-5)
    for a, b in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_training_skips_frozen_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", lambda *a: calls.append(a) or original(*a))
    fast = resfuse.fuse(small())
    for name, parameter in fast.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "fc")))
    reference = copy.deepcopy(small())
    for a, b in zip(reference.parameters(), fast.parameters(), strict=True):
        a.requires_grad_(b.requires_grad)
    x = torch.randn(4, 3, 32, 32)
    loss_of(fast, x).backward()
    loss_of(reference, x).backward()
    assert len(calls) == 3  # of layer2 alone
    for (name, a), b in zip(fast.named_parameters(), reference.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_training_without_gradients_still_learns_statistics() -> None:
    """Recalibrating batch norms under no_grad."""
    model = small()
    fast = resfuse.fuse(copy.deepcopy(model))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert resfuse.report(fast).fused_calls == 1
