"""What users do around a training step: checkpointing, hooks, functional calls, parametrizations, copies."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.training.gradients import gradients, loss_of, small


def test_training_checkpoint() -> None:
    from torch.utils.checkpoint import checkpoint

    model = small()
    x = torch.randn(4, 3, 32, 32)
    plain = gradients(resfuse.fuse(copy.deepcopy(model)), x)
    fast = resfuse.fuse(copy.deepcopy(model))
    xs = x.clone().requires_grad_()
    F.cross_entropy(checkpoint(fast, xs, use_reentrant=False), torch.arange(4) % 5).backward()
    for name, parameter in fast.named_parameters():
        assert torch.equal(parameter.grad, plain[name]), name
    assert torch.equal(xs.grad, plain["x"])


def test_training_functional_call() -> None:
    model = small()
    fast = resfuse.fuse(copy.deepcopy(model))
    x = torch.randn(4, 3, 32, 32)
    state = {name: (value.detach() * 1.1).requires_grad_() for name, value in model.named_parameters()}
    losses = []
    for m in (model, fast):
        loss = F.cross_entropy(torch.func.functional_call(m, state, (x,)), torch.arange(4) % 5)
        losses.append((loss, torch.autograd.grad(loss, list(state.values()))))
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-5)
    for a, b in zip(losses[0][1], losses[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert resfuse.report(fast).fused_calls == 1


def test_training_hooks_see_their_tensors() -> None:
    fast = resfuse.fuse(small())
    seen = []
    handle = fast.layer1[0].conv1.register_forward_hook(lambda *args: seen.append(args[2].shape))
    loss_of(fast, torch.randn(4, 3, 32, 32)).backward()
    assert any("hooks" in row.what for row in resfuse.report(fast).native)
    handle.remove()
    assert seen == [torch.Size([4, 8, 8, 8])]
    assert not resfuse.report(fast).native


def test_training_gradient_hooks() -> None:
    fast = resfuse.fuse(small())
    seen = {}
    for name, parameter in fast.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            functools.partial(lambda n, p: seen.update({n: p.grad.shape}), name)
        )
    loss_of(fast, torch.randn(4, 3, 32, 32)).backward()
    assert seen == {name: parameter.shape for name, parameter in fast.named_parameters()}


def test_training_exponential_moving_average_by_deepcopy() -> None:
    fast = resfuse.fuse(small())
    average = torch.optim.swa_utils.AveragedModel(fast, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(fast.parameters(), 0.1)
    x = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(fast, x).backward()
        optimizer.step()
        average.update_parameters(fast)
    assert resfuse.report(fast).fused_calls == 2
    with torch.no_grad():
        assert average.module.eval()(x).isfinite().all()
    assert resfuse.report(average.module).fused_calls == 1


def test_training_parametrized_weights() -> None:
    model = small()
    fast = resfuse.fuse(copy.deepcopy(model))
    for m in (model, fast):
        torch.nn.utils.parametrizations.weight_norm(m.layer1[0].conv1)
    x = torch.randn(4, 3, 32, 32)
    for m in (model, fast):
        loss_of(m, x).backward()
    for (name, a), b in zip(fast.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)
    again = resfuse.fuse(copy.deepcopy(model))
    torch.testing.assert_close(loss_of(again, x), loss_of(copy.deepcopy(model), x), rtol=1e-4, atol=1e-5)


def test_training_dropout_follows_the_mode() -> None:
    """What drops at random is native in train mode and nothing in eval mode; what is around it is fused in both."""
    model = nn.Sequential(small().layer1, nn.Dropout(0.5), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)).eval()
    fast = resfuse.fuse(model)
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)  # masks are drawn in the order of memory
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
        assert not resfuse.report(fast).native
        for module in fast.modules():
            module.training = isinstance(module, nn.Dropout)
        torch.manual_seed(3)
        dropped = fast(x)
        torch.manual_seed(3)
        torch.testing.assert_close(dropped, fast.native_forward(x), rtol=1e-4, atol=1e-5)
        assert (dropped - expected).abs().max() > 1e-2
        assert [row.what for row in resfuse.report(fast).native] == ["drops at random in train mode"]
        torch.testing.assert_close(fast.eval()(x), expected, rtol=1e-4, atol=1e-5)
    fast.train()(x).sum().backward()
    report = resfuse.report(fast)
    assert (report.fused_calls, report.native_calls) == (4, 0)
