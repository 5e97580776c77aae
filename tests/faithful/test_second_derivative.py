"""``create_graph=True`` through fused blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.training import block
from tests.faithful.twins import conv_norm_relu, images


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm_relu(3, 6, 2)[:2], nn.SiLU(), nn.MaxPool2d(3, 2, 1))
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 8, 1, 2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = self.b(self.a(y)) + y
        return self.fc(self.down(y).mean((2, 3)))


def pair(training: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Net().train(training)
    return model, resfuse.fuse(copy.deepcopy(model))


@pytest.mark.filterwarnings("ignore::resfuse.GradientsEnabledWarning")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradient_penalty(training: bool) -> None:
    found = []
    for model in pair(training):
        x = images(3, 3, 16, 16).requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append([x.grad, gradient.detach(), *(p.grad for p in model.parameters())])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            assert (theirs - ours).norm() <= 1e-3 * theirs.norm().clamp_min(1e-3)


@pytest.mark.filterwarnings("ignore::resfuse.GradientsEnabledWarning")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_hessian_vector_product(training: bool) -> None:
    found = []
    for model in pair(training):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(model(images(3, 3, 16, 16)).square().sum(), parameters, create_graph=True)
        product = sum((g * torch.linspace(-1, 1, g.numel()).view(g.shape)).sum() for g in gradients)
        found.append(torch.autograd.grad(product, parameters))
    scale = max(float(theirs.norm()) for theirs in found[0])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs - ours).norm() <= 1e-3 * scale


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradgradcheck(training: bool) -> None:
    """In fp64, through the operator itself."""
    fast = resfuse.fuse(
        nn.Sequential(nn.Conv2d(2, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 1)).eval()
    )
    (bound,) = fast.fusion().binding.programs
    blocks = bound._split(tuple(norm is not None and training for norm in bound._norms))
    parameters = [p.detach().double().clone().requires_grad_(p.is_floating_point()) for p in bound.parameters()]
    (first, *_) = blocks
    own = [parameters[p] for p in first.parameters]
    variances = [norm.running_var for layer in first.spec.layers if (norm := layer.batch_norm) is not None]
    for place in variances:
        if place is not None and place >= 0:
            own[place] = own[place].detach()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        return torch.ops.resfuse.block([x], list(own), first.text)[0]

    running = set(variances) | {n.running_mean for layer in first.spec.layers if (n := layer.batch_norm)}
    own = [p.detach() if i in running else p for i, p in enumerate(own)]
    assert torch.autograd.gradcheck(run, (x, *own))
    assert torch.autograd.gradgradcheck(run, (x, *own))


def test_a_tensor_that_is_read_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = conv_norm_relu(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.a(self.a(x)) + x)

    model = Twice().train()
    found = []
    for m in (model, resfuse.fuse(copy.deepcopy(model))):
        x = images(2, 4, 6, 6).requires_grad_()
        (gradient,) = torch.autograd.grad(m(x * 2.0).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [x, *m.parameters()]))
    for theirs, ours in zip(*found, strict=True):
        assert (theirs - ours).norm() <= 2e-3 * theirs.norm().clamp_min(1e-2)


def test_without_create_graph_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    original = block.Backward.run
    monkeypatch.setattr(block.Backward, "run", lambda self, grads: runs.append(1) or original(self, grads))
    _, fast = pair(True)
    fast(images(3, 3, 16, 16)).sum().backward()
    assert runs
    runs.clear()
    loss = fast(images(3, 3, 16, 16)).sum()
    loss.backward(create_graph=True)
    assert not runs
