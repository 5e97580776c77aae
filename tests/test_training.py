"""Training with fused kernels: the gradients, statistics and memory of torch's own, whatever users do around them."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse import _core
from resfuse.bench.models import make_model, randomize_batch_norm
from resfuse.data import load_digits
from resfuse.runtime.memory import empty
from resfuse.runtime.spec import ConvSpec, MaxPoolSpec
from resfuse.training import batch_norm, convolution, pooling
from resfuse.training.batch_norm import Norm
from resfuse.training.split import split
from tests.conftest import ISAS
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
    digits = load_digits(size=16)
    runs: dict[str, list[torch.Tensor]] = {"fused": [], "eager": []}
    for name, seed in itertools.product(runs, range(3)):
        torch.manual_seed(0)
        plain = resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=10, stem="cifar")
        model = (resfuse.fuse(plain) if name == "fused" else plain).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        order = torch.Generator().manual_seed(seed)
        losses = []
        for _ in range(300):
            batch = torch.randint(len(digits.train_x), (32,), generator=order)
            loss = F.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs[name].append(torch.tensor(losses).reshape(-1, 50).mean(1))
    fused, eager = torch.stack(runs["fused"]).mean(0), torch.stack(runs["eager"])
    low, high = eager.min(0).values, eager.max(0).values
    slack = 0.5 * (high - low) + 0.02
    assert ((fused > low - slack) & (fused < high + slack)).all(), runs
    assert fused[-1] < 0.2  # from ln 10


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


def test_training_empty_batch() -> None:
    fast = resfuse.fuse(small().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = fast(torch.randn(0, 3, 32, 32, requires_grad=True))
    assert y.shape == (0, 5)
    y.sum().backward()


def test_training_autocast_converges() -> None:
    """bf16 autocast runs the original modules; the loss falls."""
    fast = resfuse.fuse(small("basic", width=16))
    optimizer = torch.optim.SGD(fast.parameters(), 0.05, momentum=0.9)
    x = torch.randn(16, 3, 32, 32)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(fast, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


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


def test_training_layers() -> None:
    """The layers of resfuse.nn train fused by themselves."""
    from resfuse.models import blocks as plain

    for fast, model, channels in [
        (resfuse.nn.BasicBlock(8, 8), plain.BasicBlock(8, 8), 8),
        (resfuse.nn.Bottleneck(32, 8), plain.Bottleneck(32, 8), 32),
        (resfuse.nn.ConvBNReLU2d(8, 16, 3, stride=2), plain.ConvBNReLU2d(8, 16, 3, stride=2), 8),
    ]:
        model.load_state_dict(fast.state_dict())
        xs = [torch.randn(3, channels, 9, 11).requires_grad_()]
        xs.append(xs[0].detach().clone().requires_grad_())
        for m, x in ((fast, xs[0]), (model, xs[1])):
            m.train()(x).square().sum().backward()
        torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-3, atol=1e-5)
        for (name, a), b in zip(fast.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)
        assert fast.fusion().fused_calls == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "relu": False}, {"padding": (1, 1), "groups": 2}])
def test_training_conv_bn_relu(training: bool, options: dict[str, object]) -> None:
    options = dict(options)
    relu = bool(options.pop("relu", True))
    x, weight = torch.randn(3, 8, 9, 10), torch.randn(12, 8 // int(options.get("groups", 1)), 3, 3)  # type: ignore[call-overload]
    vectors = [torch.randn(12), torch.rand(12) + 0.5, torch.randn(12), torch.randn(12)]
    results = []
    for fused in (True, False):
        tensors = [t.clone().requires_grad_() for t in (x, weight, *vectors[2:])]
        mean, var = vectors[0].clone(), vectors[1].clone()
        shape = F.conv2d(x, weight, None, **options).shape
        residual = torch.ones(shape).requires_grad_()
        if fused:
            y = resfuse.nn.functional.conv_bn_relu(
                tensors[0], tensors[1], mean, var, *tensors[2:], residual=residual, training=training, relu=relu,
                **options,
            )  # fmt: skip
        else:
            y = F.batch_norm(F.conv2d(*tensors[:2], None, **options), mean, var, *tensors[2:], training) + residual
            y = y.relu() if relu else y
        y.square().sum().backward()
        results.append([y.detach(), mean, var, residual.grad, *(t.grad for t in tensors)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    if not training:
        with torch.no_grad():
            y = resfuse.nn.functional.conv_bn_relu(x, weight, *vectors, residual=residual, relu=relu, **options)
        torch.testing.assert_close(y, results[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": 3}, TypeError, "x: got int"),
        ({"x": torch.randn(2, 5, 4, 4)}, ValueError, r"x: got shape \[2, 5, 4, 4\], want \[N, 8, H, W\]"),
        ({"weight": torch.randn(4, 8)}, ValueError, r"weight: got shape \[4, 8\]"),
        ({"running_mean": torch.randn(3)}, ValueError, r"running_mean: got shape \[3\], want \[4\]"),
        ({"bn_bias": torch.randn(3)}, ValueError, "bn_bias: got shape"),
        ({"residual": torch.randn(1, 4, 4, 4)}, ValueError, r"residual: got shape \[1, 4, 4, 4\], want \[2, 4, 4, 4\]"),
        ({"stride": "2"}, ValueError, "stride: got '2'"),
        ({"padding": (1, 2, 3)}, ValueError, "padding: got"),
    ],
)
def test_training_conv_bn_relu_bad_input(change: dict[str, object], error: type[Exception], text: str) -> None:
    good = {"x": torch.randn(2, 8, 4, 4), "weight": torch.randn(4, 8, 3, 3), "running_mean": torch.zeros(4),
            "running_var": torch.ones(4), "padding": 1}  # fmt: skip
    resfuse.nn.functional.conv_bn_relu(**good)
    with pytest.raises(error, match=text):
        resfuse.nn.functional.conv_bn_relu(**{**good, **change})


def _blocks(block: str) -> list[tuple[object, list[torch.Tensor], list[torch.Tensor]]]:
    fast = resfuse.fuse(small(block))
    bound = fast.fusion().binding.programs[0]
    cases = []
    for part in bound.blocks():
        if part.spec is not None:
            inputs = [torch.randn(2, channels, 7, 6) for channels in part.spec.inputs]
            cases.append((part, inputs, [bound.parameters()[p].detach().clone() for p in part.parameters]))
    return cases


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_training_operators_opcheck(block: str) -> None:
    for part, inputs, parameters in _blocks(block):
        arguments = [t.requires_grad_() for t in inputs], [t.requires_grad_() for t in parameters], part.text
        torch.library.opcheck(torch.ops.resfuse.block.default, arguments)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_training_operators_gradcheck(block: str) -> None:
    for part, inputs, parameters in _blocks(block):
        tensors = [t.double().requires_grad_() for t in (*inputs, *parameters)]
        case = (part.text, len(inputs), len(part.spec.outputs))

        def run(*tensors: torch.Tensor, case=case) -> list[torch.Tensor]:
            text, n, outputs = case
            return torch.ops.resfuse.block(list(tensors[:n]), list(tensors[n:]), text)[:outputs]

        assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_training_blocks_end_at_sums_and_pools() -> None:
    fast = resfuse.fuse(small("bottleneck"))
    spec = fast.fusion().binding.programs[0].step.spec
    parts = split(spec, tuple(True for _ in spec.layers))
    assert [len(part.layers) for part in parts] == [2, 4, 4, 1, 1]  # stem, two blocks, pool, linear
    assert [i for part in parts for i in part.layers] == list(range(len(spec.layers)))


# --- the kernels, on every instruction set -------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ConvSpec, tuple[int, int, int, int], torch.Size]:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    if draw(st.booleans()):
        kernel = draw(st.sampled_from([(1, 1), (3, 3)]))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3))) if draw(st.booleans()) else (1, 1)
    dilation = (1, 1) if stride != (1, 1) or draw(st.booleans()) else (draw(st.integers(1, 2)), 1)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = tuple(draw(st.integers(0, spans[i % 2])) for i in range(4))
    size = [draw(st.integers(max(1, spans[i] + 1 - pads[i] - pads[i + 2]), spans[i] + 14)) for i in (0, 1)]
    channels = draw(st.sampled_from([1, 3, 8, 17, 32, 40, 64]))
    out_channels = draw(st.sampled_from([1, 5, 16, 33, 48]))
    layer = ConvSpec(
        "", 0, 1, channels, out_channels, 0, kernel_size=kernel, stride=stride, dilation=dilation, padding=pads,
        algorithm=draw(st.sampled_from(["auto", "direct", "winograd", "strassen"])),
    )  # fmt: skip
    return layer, pads, torch.Size([draw(st.integers(1, 4)), channels, *size])


@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=120)
@hypothesis.given(case=convolutions(), accumulate=st.booleans())
def test_training_convolution_gradients(isa: str, case, accumulate: bool) -> None:
    """Weight and input gradients against fp64, on odd shapes, strides, dilations and paddings."""
    torch.manual_seed(0)
    layer, pads, shape = case
    top, left, bottom, right = pads
    x = torch.randn(shape).relu()
    weight = torch.randn(layer.out_channels, layer.in_channels, *layer.kernel_size)
    results = {}
    for dtype in (torch.float64, torch.float32):
        xs, ws = x.clone().to(dtype).requires_grad_(), weight.clone().to(dtype).requires_grad_()
        y = F.conv2d(F.pad(xs, (left, right, top, bottom)), ws, None, layer.stride, 0, layer.dilation)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results[dtype] = (y, *torch.autograd.grad(y, (xs, ws), grad.to(dtype)))
    more = torch.randn(shape) if accumulate else None
    with _isa(isa):
        dw = convolution.weight_gradient(grad, x, weight, layer, pads)
        dx = convolution.input_gradient(grad, weight, layer, pads, x, None if more is None else more.clone())
        y = convolution.forward(x, weight, None, layer, pads)
    if more is not None:
        results = {dtype: (r[0], r[1] + more, r[2]) for dtype, r in results.items()}
    for got, exact, eager in zip((y, dx, dw), results[torch.float64], results[torch.float32], strict=True):
        # What sums of so many products of size 1 may lose; eager may be lucky where there are few results.
        terms = {y: weight[0].numel(), dx: weight[:, 0].numel(), dw: y[:, 0].numel()}[got]
        assert rms(got.double() - exact) <= max(4 * rms(eager.double() - exact), 1e-6 * terms**0.5)


@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=120)
@hypothesis.given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 16, 19, 40, 64]), st.integers(1, 12), st.integers(2, 40)),
    relu=st.booleans(),
    with_residual=st.booleans(),
    batch_statistics=st.booleans(),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_training_batch_norm_kernels(isa, shape, relu, with_residual, batch_statistics, offset) -> None:
    """Statistics, application and gradients against fp64; also far from zero."""
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape) + offset
    residual = torch.randn(shape) if with_residual else None
    weight, bias, grad = torch.randn(channels), torch.randn(channels), torch.randn(shape)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact_residual = None if residual is None else residual.double().requires_grad_()
    mean, var = (x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0))
    with _isa(isa):
        got_mean, got_var = batch_norm.statistics(x)
    assert (got_mean - mean).abs().max() <= 1e-6 * (1 + offset)
    assert ((got_var - var).abs() <= 1e-5 * var + 1e-6).all()
    want = F.batch_norm(exact[0], mean, var, exact[1], exact[2], batch_statistics, eps=1e-3)
    want = want if exact_residual is None else want + exact_residual
    wanted = want.relu() if relu else want
    sources = [*exact, *([] if exact_residual is None else [exact_residual])]
    exact_grads = torch.autograd.grad(wanted, sources, grad.double())
    if not batch_statistics:
        got_mean, got_var = mean.float(), var.float()
    norm = Norm(got_mean, got_var, weight, bias, 1e-3, batch_statistics)
    with _isa(isa):
        y = batch_norm.apply(x, residual, norm, relu)
        g = batch_norm.backward(grad, x, None if residual is None else y, norm, relu, with_residual, False)
        overwritten = batch_norm.backward(
            empty(shape).copy_(grad), x, None if residual is None else y, norm, relu, with_residual, True
        )
    near_zero = bool(relu and (want.abs() < 1e-3 * (1 + offset)).any())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=2e-5 * (1 + offset))
    if near_zero:  # a sign may differ
        return
    for got, want_grad in zip((g.x, g.weight, g.bias, g.residual), exact_grads, strict=False):
        assert got is not None
        assert rms(got.double() - want_grad) <= 1e-4 * max(1.0, rms(want_grad)) * (1 + offset / 10)
    assert torch.equal(overwritten.x, g.x)
    assert torch.equal(overwritten.weight, g.weight)
    if with_residual:
        assert torch.equal(overwritten.residual, g.residual)


@pytest.mark.parametrize("isa", ISAS)
@hypothesis.settings(max_examples=120)
@hypothesis.given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 16, 33]), st.integers(4, 13), st.integers(4, 13)),
    ceil_mode=st.booleans(),
    ties=st.booleans(),
)
def test_training_max_pool_kernels(isa, kernel, stride, shape, ceil_mode, ties) -> None:
    """Values and gradients are torch's own, also where values are equal."""
    torch.manual_seed(0)
    x = torch.randint(0, 3, shape).float() if ties else torch.randn(shape)
    padding = (kernel[0] // 2, kernel[1] // 2)
    xs = x.clone().requires_grad_()
    want = F.max_pool2d(xs, kernel, stride, padding, 1, ceil_mode)
    grad = torch.randn(want.shape)
    layer = MaxPoolSpec("", 0, 1, kernel, stride, (1, 1), (*padding, *padding), ceil_mode)
    with _isa(isa):
        y, taps = pooling.forward(x, layer, layer.padding, tuple(want.shape[2:]))
        dx = pooling.backward(grad, taps, layer, layer.padding, x)
    assert torch.equal(y, want)
    torch.testing.assert_close(dx, torch.autograd.grad(want, xs, grad)[0], rtol=1e-5, atol=1e-6)


def test_training_max_pool_keeps_nan() -> None:
    x = torch.randn(1, 16, 8, 8)
    x[0, 3, 2, 2] = float("nan")
    layer = MaxPoolSpec("", 0, 1, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), False)
    y, _ = pooling.forward(x, layer, (1, 1, 1, 1), (4, 4))
    torch.testing.assert_close(y, F.max_pool2d(x, 3, 2, 1), equal_nan=True)


class _isa:
    """Runs the training kernels of one instruction set."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._originals: dict[str, object] = {}

    def __enter__(self) -> None:
        names = ["norm_statistics", "norm_forward", "norm_backward", "weight_gradient", "input_gradient",
                 "max_pool_forward", "max_pool_backward"]  # fmt: skip
        for name in names:
            self._originals[name] = getattr(_core, name)
            setattr(_core, name, functools.partial(getattr(_core, name), isa=self._name))
        convolution._executor.cache_clear()
        self._originals["Program"] = _core.Program
        _core.Program = lambda isa=None: self._originals["Program"](isa or self._name)  # type: ignore[operator]

    def __exit__(self, *exception: object) -> None:
        for name, original in self._originals.items():
            setattr(_core, name, original)
        convolution._executor.cache_clear()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: _core.norm_statistics(torch.randn(2, 3).numpy(), None, None, 1), "x"),
        (lambda: _core.empty((1, -2, 3, 4)), "shape"),
        (lambda: convolution.weight_gradient(torch.randn(1, 4, 5, 5), torch.randn(1, 2, 9, 9), torch.randn(4, 2, 3, 3),
                                             ConvSpec("", 0, 1, 2, 4, 0, kernel_size=(3, 3)), (0,) * 4), "no one convolution"),
    ],
)  # fmt: skip
def test_training_bad_calls_of_the_core(call, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()


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
