"""Small models, their gradients' errors against fp64, and how their losses fall."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.bench.digits import load_digits
from resfuse.bench.models import randomize_batch_norm
from tests.reference import rms


def small(block: str = "basic", **options: object) -> nn.Module:
    torch.manual_seed(3)
    model = resfuse.models.ResNet(block, [1, 1], **{"width": 8, "num_classes": 5, "stem": "imagenet", **options})
    randomize_batch_norm(model)
    return model.train()


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    target = torch.arange(x.shape[0]) % 5
    return F.cross_entropy(model(x), target)


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of one step, with the input's, and the state after it."""
    x = x.detach().clone().requires_grad_()
    loss = loss_of(model, x)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found | {"x": x.grad, "loss": loss.detach(), **{f"buffer {n}": b.clone() for n, b in model.named_buffers()}}


def errors(model: nn.Module, x: torch.Tensor, fused: bool) -> dict[str, float]:
    """Of every gradient and running statistic, over what 3 x eager's error from fp64 allows."""
    exact = gradients(copy.deepcopy(model).double(), x.double())
    eager = gradients(copy.deepcopy(model), x)
    fast = resfuse.fuse(copy.deepcopy(model))
    got = gradients(fast, x)
    report = resfuse.report(fast)
    assert (report.fused_calls, report.native_calls) == ((1, 0) if fused else (0, 1)), report.last_native_reason
    assert got.keys() == eager.keys()
    found = {}
    for name, want in exact.items():
        if not want.is_floating_point():
            assert torch.equal(got[name], want)
            continue
        scale = max(rms(want), 1e-12)
        allowed = 3 * max(rms(eager[name].double() - want) / scale, 1e-6)
        error = rms(got[name].double() - want) / scale
        assert error <= max(allowed, 5e-2), f"{name}: error {error:.2e}"
        found[name] = error / allowed
    return found


def assert_gradients(model: nn.Module, shape: tuple[int, ...], fused: bool = True, **options: object) -> None:
    """Within 3 x eager's error from fp64 for one of four inputs.

    A ReLU whose input is within an ulp of zero may have another sign in any two computations, which changes all
    gradients before it by far more than rounding; so not every input will do, but a wrong kernel fails for all.
    """
    worst = []
    for seed in range(4):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)  # type: ignore[call-overload]
        found = errors(model, x, fused)
        name = max(found, key=lambda n: found[n])
        if found[name] <= 1:
            return
        worst.append(f"{name}: {found[name]:.1f} x what is allowed")
    pytest.fail("; ".join(worst))


def classifier(width: int) -> nn.Module:
    """A network for the digits; the same one each time."""
    torch.manual_seed(0)
    return resfuse.models.ResNet("basic", [1, 1], width=width, num_classes=10, stem="cifar").train()


def train(model: nn.Module, steps: int, seed: int, autocast: torch.dtype | None = None) -> torch.Tensor:
    """Losses of some steps on real images, in an order that the seed gives, in the type of the model's parameters."""
    digits, parameters = load_digits(size=16), list(model.parameters())
    optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(digits.train_x), (32,), generator=order)
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            y = model(digits.train_x[batch].to(parameters[0].dtype))
            loss = F.cross_entropy(y.float(), digits.train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def assert_within_spread(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """Our losses, averaged over our runs, are within the spread of theirs; gives our runs' means of 50 steps each."""
    fused, eager = (torch.stack(runs).reshape(len(runs), -1, 50).mean(2) for runs in (ours, theirs))
    low, high = eager.min(0).values, eager.max(0).values
    slack = 0.5 * (high - low) + 0.02
    assert ((fused.mean(0) > low - slack) & (fused.mean(0) < high + slack)).all(), (fused, eager)
    return fused
