"""Training with fused kernels: gradients, steps, memory and bits against torch's own."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse import _core
from resfuse.bench.models import make_model, randomize_batch_norm
from tests.reference import rms
from tests.training.gradients import (
    assert_gradients,
    assert_within_spread,
    classifier,
    gradients,
    loss_of,
    small,
    train,
)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("options", [{}, {"stem": "cifar", "padding": "same"}, {"head_activation": "tanh"}])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_gradients(block: str, options: dict[str, object], memory_format: torch.memory_format) -> None:
    model = small(block, **options).to(memory_format=memory_format)
    assert_gradients(model, (6, 3, 33, 40), memory_format=memory_format)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_gradients_of_real_models(name: str) -> None:
    """Mean squared errors from fp64 over five inputs.

    Which ReLUs change sign by rounding is chance. Near the output they are so few that one side may have none, hence
    an allowance of one an input: it moves a gradient by about 1 / sqrt(elements) of its rms.
    """
    torch.manual_seed(0)
    model = make_model(name).train()
    randomize_batch_norm(model)
    inputs = 5
    squares: dict[str, dict[str, float]] = {"resfuse": {}, "eager": {}}
    for seed in range(inputs):
        x = torch.randn((4, 3, 224, 224), generator=torch.Generator().manual_seed(seed))
        exact = gradients(copy.deepcopy(model).double(), x.double())
        found = {
            "resfuse": gradients(resfuse.fuse(copy.deepcopy(model)), x),
            "eager": gradients(copy.deepcopy(model).to(memory_format=torch.channels_last), x),
        }
        for who, grads in found.items():
            for parameter, _ in model.named_parameters():
                error = rms(grads[parameter].double() - exact[parameter]) / rms(exact[parameter])
                squares[who][parameter] = squares[who].get(parameter, 0.0) + error**2 / inputs
    last_relu = 4 * 7 * 7 * model.fc.in_features
    for parameter, square in squares["resfuse"].items():
        eager = max(squares["eager"][parameter], 1e-12)
        flipped = 0.0 if parameter.startswith("fc.") else 1 / last_relu
        assert square <= 9 * eager + flipped, f"{parameter}: {(square / eager) ** 0.5:.1f} x eager's error"


def test_training_runs_fused_and_follows_torch_for_steps() -> None:
    """Ten optimizer steps: the losses of both stay together, and eval mode then agrees."""
    reference = small("bottleneck")
    fast = resfuse.fuse(copy.deepcopy(reference))
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (reference, fast)]
    for step in range(10):
        x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        losses = []
        for model, optimizer in zip((reference, fast), optimizers, strict=True):
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    report = resfuse.report(fast)
    assert (report.fused_calls, report.native_calls) == (10, 0)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast.eval()(x), reference.eval()(x), rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_training_300_steps_on_real_images() -> None:
    """The loss, averaged over three orders of the data, stays within the spread of plain torch's three runs.

    Averaged: in one run, rounding alone decides whether one of the last batches is an outlier.
    """
    runs = [train(resfuse.fuse(classifier(16)), 300, seed) for seed in range(3)]
    fused = assert_within_spread(runs, [train(classifier(16), 300, seed) for seed in range(3)]).mean(0)
    assert fused[-1] < 0.2  # from ln 10


def test_training_accumulates_gradients() -> None:
    fast = resfuse.fuse(small())
    a, b = torch.randn(2, 4, 3, 32, 32)
    separate = [gradients(copy.deepcopy(fast), x) for x in (a, b)]
    loss_of(fast, a).backward()
    state = {n: buffer.clone() for n, buffer in fast.named_buffers()}
    loss_of(fast, b).backward()
    assert any(not torch.equal(state[n], buffer) for n, buffer in fast.named_buffers())
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, separate[0][name] + separate[1][name], rtol=1e-4, atol=1e-6)


def test_training_is_bitwise_repeatable() -> None:
    """From run to run, and for any number of threads. Without the head, whose sums are torch's."""
    model = small("bottleneck", width=16)
    model.fc = nn.Identity()
    x = torch.randn(6, 3, 64, 64)
    results = []
    for threads in (2, 2, 1, 3):
        torch.set_num_threads(threads)
        fast, inputs = resfuse.fuse(copy.deepcopy(model)), x.clone().requires_grad_()
        features = fast(inputs)
        features.backward(torch.linspace(-1, 1, features.numel()).view_as(features))
        found = {name: p.grad for name, p in fast.named_parameters()} | dict(fast.named_buffers())
        results.append(found | {"x": inputs.grad, "features": features.detach()})
    assert len(results[0]) > 20
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(other[name], value), name


def test_training_empty_batch() -> None:
    fast = resfuse.fuse(small().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = fast(torch.randn(0, 3, 32, 32, requires_grad=True))
    assert y.shape == (0, 5)
    y.sum().backward()


def test_training_compiled_empty_batch() -> None:
    """Of a network with strided convolutions and shortcuts."""
    fast = resfuse.fuse(small("bottleneck"))
    compiled = torch.compile(fast, backend="eager")
    with torch.no_grad():
        fast.eval()(torch.randn(1, 3, 32, 32))
    x = torch.randn(0, 3, 32, 32, requires_grad=True)
    compiled(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_training_compiles_without_graph_breaks() -> None:
    model = small("bottleneck")
    fast = resfuse.fuse(copy.deepcopy(model))
    compiled = torch.compile(fast, fullgraph=True)
    x = torch.randn(4, 3, 40, 40)
    for _ in range(2):
        target = torch.arange(4) % 5
        F.cross_entropy(compiled(x), target).backward()
        F.cross_entropy(model(x), target).backward()
    for (name, a), b in zip(fast.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)
    for a, b in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_training_memory_is_given_back() -> None:
    fast = resfuse.fuse(small("bottleneck", width=16))
    x = torch.randn(8, 3, 64, 64)
    for _ in range(3):
        loss_of(fast, x).backward()
    used, mapped = _core.heap_bytes()
    for _ in range(5):
        loss_of(fast, x).backward()
    assert _core.heap_bytes() == (used, mapped)


def test_training_through_a_native_sum_in_place() -> None:
    """It overwrites what a fused block's backward would read again (found by the fuzzer)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.first(x))
            z = y * 2.0
            y += torch.cos(x)
            return self.second(y) + z

    model = Net().train()
    fast = resfuse.fuse(copy.deepcopy(model))
    x = torch.randn(3, 4, 6, 6)
    for module in (model, fast):
        module(x).square().sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_training_gives_no_gradient_where_torch_gives_none() -> None:
    """A layer whose result nobody uses: None and not zeros, which an optimizer with momentum would act on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.unused(x)
            return torch.relu(self.used(x) + x)

    fast = resfuse.fuse(Net().train())
    fast(torch.randn(2, 4, 6, 6)).sum().backward()
    assert fast.used.weight.grad is not None
    assert fast.unused.weight.grad is None
