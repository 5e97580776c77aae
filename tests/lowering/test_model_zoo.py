"""Networks as people have them: fused, the same numbers, and what stays native is named."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from benchmarks.zoo import ZOO, Entry, Plain, fused_share
from torch import nn

import resfuse
from resfuse.bench.models import make_model, randomize_batch_norm
from resfuse.quantization.sensitivity import tensors_of


def _parameters() -> list[Any]:
    return [pytest.param(entry, id=name, marks=[pytest.mark.slow] if entry.deep else []) for name, entry in ZOO.items()]


def _make(entry: Entry) -> nn.Module:
    missing = [name for name in entry.libraries if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    model = entry.make().eval()
    randomize_batch_norm(model)
    return model


@pytest.mark.parametrize("entry", _parameters())
def test_models_are_fused_and_verified(entry: Entry) -> None:
    model = _make(entry)
    fast = resfuse.fuse(model)
    batches = {1: (64, 64), 3: (64, 96) if entry.even else (57, 70), 16: (32, 32) if entry.even else (33, 40)}
    for batch, size in batches.items():
        x = torch.randn(batch, 3, *size)
        x = x.to(memory_format=torch.channels_last) if batch == 3 else x
        resfuse.verify(model, fast, x)
        with torch.no_grad():
            expected, got = tensors_of(model(x)), tensors_of(fast(x))
        assert len(got) == len(expected) > 0
        for e, g in zip(expected, got, strict=True):
            scale = float(e.square().mean().sqrt())
            torch.testing.assert_close(g, e, rtol=1e-3, atol=2e-4 * max(scale, 1e-6))
    with torch.no_grad():
        fast(x)  # what keeps state has settled
    report = resfuse.report(fast)
    assert report.native_calls == 0
    assert len(report.native) <= entry.natives, [row.what for row in report.native]
    assert 0.99 <= fused_share(model, fast, x) <= 1.01


@pytest.mark.parametrize("name", ["timm seresnet50", "timm resnetv2_50", "timm resnet18d", "timm resnet18 silu"])
def test_models_of_other_structures_train(name: str) -> None:
    """One step on frozen statistics: gradients as far from fp64's as eager's, give or take.

    Where an input of a ReLU is so near zero that rounding decides its sign, one of the two may be off by 1e-3; that
    does not happen to the same model three times.
    """

    def gradients(module: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        module(inputs).square().mean().backward()
        return {key: p.grad.double() for key, p in module.named_parameters() if p.grad is not None}

    worst = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = _make(ZOO[name])
        fast, exact = resfuse.fuse(copy.deepcopy(model)), copy.deepcopy(model).double()
        x = torch.randn(4, 3, 64, 64)
        with pytest.warns(resfuse.GradientsEnabledWarning):
            ours = gradients(fast, x)
        assert resfuse.report(fast).fused_calls == 1
        want, eager = gradients(exact, x.double()), gradients(model, x)
        assert ours.keys() == want.keys()
        errors = {
            key: [float((found[key] - want[key]).norm() / want[key].norm().clamp_min(1e-12)) for found in (ours, eager)]
            for key in want
        }
        assert all(mine < 1e-2 for mine, _ in errors.values())
        worst.append(max(mine / max(theirs, 1e-6) for mine, theirs in errors.values()))
    assert min(worst) <= 8, worst


def test_models_with_stochastic_depth_follow_the_mode() -> None:
    model = _make(ZOO["timm resnet18 drop_path"])
    fast = resfuse.fuse(model)
    assert not resfuse.report(fast).native
    x = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    fast.train()
    for module in fast.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        torch.manual_seed(5)
        got = fast(x)
        torch.manual_seed(5)
        expected = fast.native_forward(x)
        assert (got - fast.eval()(x)).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    fast.train()(x).sum().backward()
    report = resfuse.report(fast)
    assert report.native_calls == 0
    assert {row.what for row in report.native} <= {
        "drops at random in train mode",
        "sum of tensors that are computed elsewhere",
    }


def test_models_with_normalised_weights() -> None:
    """Parametrized weights are computed when parameters change."""
    model = nn.Sequential(Plain(8), Plain(8), Plain(8)).eval()
    nn.utils.parametrizations.weight_norm(model[1].body[0])
    nn.utils.parametrizations.spectral_norm(model[1].body[3])
    fast = resfuse.fuse(model)
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        model[1].body[0].parametrizations.weight.original0.mul_(2.0)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    report = resfuse.report(fast)
    assert report.native_calls == 0
    assert sum("conv" in row.what for row in report.fused) == 6
    assert not report.native


def test_models_that_change_tensors_in_place_for_others() -> None:
    """An in-place ReLU whose input is read again, and one that writes to the caller's tensor, keep their effects."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = self.relu(y)
            x += 1.0
            return self.conv(z) + y

    block = Block().eval()
    fast = resfuse.fuse(block)
    x = torch.randn(2, 4, 6, 6)
    ours, theirs = x.clone(), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(fast(ours), block(theirs))
    torch.testing.assert_close(ours, theirs)


def test_models_return_the_same_tensor_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.same = nn.Conv2d(3, 4, 1, bias=False), nn.Identity()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.norm(self.conv(x))
            return y, self.same(y)

    model = Twice().eval()
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(resfuse.fuse(model)(x), model(x))


def test_models_exported_are_fused() -> None:
    """torch.export and back: the exported graph's calls are recognised as a model's own."""
    model = make_model("resnet18").eval() if importlib.util.find_spec("torchvision") else make_model("seed").eval()
    randomize_batch_norm(model)
    x = torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (x,)).module()
    fast = resfuse.fuse(exported)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-3)
    report = resfuse.report(fast)
    assert report.native_calls == 0
    assert 0.99 <= fused_share(model, fast, x) <= 1.01


def test_models_of_hugging_face_have_class_activation_maps() -> None:
    model = _make(ZOO["ResNetForImageClassification"])
    x = torch.randn(2, 3, 96, 64)
    maps = resfuse.class_activation_map(resfuse.fuse(model), x, 1)
    with torch.no_grad():
        features = model.resnet(x).last_hidden_state
        logits = model(x).logits
    expected = torch.einsum("k,nkhw->nhw", model.classifier[1].weight.detach()[1], features)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        maps.mean((1, 2)), logits[:, 1] - model.classifier[1].bias.detach()[1], rtol=1e-3, atol=1e-4
    )
