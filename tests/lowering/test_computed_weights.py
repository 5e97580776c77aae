"""Layers whose weights the model's code computes from parameters, and products with numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import resfuse
from resfuse.lowering import computed_weights
from tests.faithful.twins import conv_norm_relu
from tests.reference import rms


class Standardised(nn.Conv2d):
    """Qiao et al., "Weight Standardization", 2019, with a gain (Brock et al., 2021); as timm writes it."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            (self.gain * self.scale).view(-1),
            None,
            True,
            0.0,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Normalised(nn.Conv2d):
    """Salimans & Kingma, "Weight Normalization", 2016."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.g = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.g * self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Block(nn.Module):
    """A norm-free residual block: numbers before and behind its convolutions."""

    def __init__(self, kind: type[nn.Conv2d], channels: int) -> None:
        super().__init__()
        self.conv1 = kind(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = kind(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x) * 0.7
        y = torch.relu(self.norm(self.conv1(y)) / 1.5) * -0.5
        return self.conv2(y) * 0.3 + x


class Network(nn.Module):
    """Two blocks between a stem and a head whose weights are halved."""

    def __init__(self, kind: type[nn.Conv2d]) -> None:
        super().__init__()
        self.stem = kind(3, 24, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(kind, 24), Block(kind, 24))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks(self.stem(x))
        return F.linear(y.mean((2, 3)), self.fc.weight * 0.5, self.fc.bias)


def network(kind: type[nn.Conv2d]) -> nn.Module:
    torch.manual_seed(0)
    return Network(kind).eval()


KINDS = [Standardised, Normalised]


def assert_same(fast: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        exact, eager, got = copy.deepcopy(plain).double()(x.double()), plain(x), fast(x)
    assert rms(got - exact) <= 4 * rms(eager - exact)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_one_program(kind: type[nn.Conv2d]) -> None:
    model = network(kind)
    fast = resfuse.fuse(model)
    for shape in [(2, 3, 20, 24), (1, 3, 9, 9)]:
        assert_same(fast, model, torch.randn(shape))
    lowered = fast.fusion().binding.lowered
    assert (len(lowered.programs), lowered.natives) == (1, [])
    assert not any(layer.kind == "affine" and layer.residual is not None for layer in lowered.programs[0].spec.layers)
    assert resfuse.report(fast).native_calls == 0


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_parameters_are_seen(kind: type[nn.Conv2d]) -> None:
    model, x = network(kind), torch.randn(2, 3, 16, 16)
    fast = resfuse.fuse(model)
    extra = "gain" if kind is Standardised else "g"

    def double(m: nn.Module) -> None:
        with torch.no_grad():
            getattr(m.blocks[0].conv1, extra).mul_(2.0)

    def behind(m: nn.Module) -> None:
        m.stem.weight.data[:, 0] += 0.5  # no version counter counts this

    def replaced(m: nn.Module) -> None:
        m.blocks[1].conv2.weight = nn.Parameter(m.blocks[1].conv2.weight.detach().flip(0) * 1.0)

    def loaded(m: nn.Module) -> None:
        m.load_state_dict({k: v * 0.9 if v.is_floating_point() else v for k, v in m.state_dict().items()})

    def halved(m: nn.Module) -> None:
        m.blocks[0].conv1.scale = 0.1  # a number that is read while the weights are computed
        m.fc.weight.data.mul_(-1.0)

    for change in (double, behind, replaced, loaded, halved):
        assert_same(fast, model, x)
        for each in (model, fast):
            change(each)
        assert_same(fast, model, x)


def test_weights_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run: Callable[..., object] = computed_weights.run_native
    monkeypatch.setattr(computed_weights, "run_native", lambda *a: calls.append(a[0].name) or run(*a))
    fast, x = resfuse.fuse(network(Normalised)), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        fast(x)
        first = len(calls)
        for _ in range(20):
            fast(x)
        assert len(calls) == first
        fast.stem.g.mul_(2.0)
        fast(x)
    assert len(calls) > first


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training(kind: type[nn.Conv2d], autocast: bool) -> None:
    model = network(kind).train()
    fast, x = resfuse.fuse(copy.deepcopy(model)), torch.randn(4, 3, 18, 18)
    exact = copy.deepcopy(model).double()
    for each in (model, fast, exact):
        inputs = x.to(each.fc.weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and each is not exact):
            y = each(inputs)
        y.double().square().sum().backward()
    assert resfuse.report(fast).native_calls == 0
    for (name, ours), theirs, true in zip(fast.named_parameters(), model.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype is theirs.grad.dtype
        allowed = 2 * rms(theirs.grad - true.grad) + (2e-2 if autocast else 1e-4) * rms(true.grad) + 1e-6
        assert rms(ours.grad - true.grad) <= allowed, name
    for ours, theirs in zip(fast.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if autocast else 1e-5, atol=2e-2 if autocast else 1e-6)
    with torch.no_grad():  # what an optimizer does is seen
        for each in (model, fast):
            for p, q in zip(each.parameters(), model.parameters(), strict=True):
                p.sub_(0.01 * q.grad.clamp(-1, 1))
            each.eval()
        torch.testing.assert_close(fast(x), model(x), rtol=5e-2 if autocast else 1e-3, atol=1e-2 if autocast else 1e-4)


def test_half_precision_int8_and_copies() -> None:
    model, x = network(Standardised), torch.randn(4, 3, 20, 20)
    with torch.no_grad():
        want = model(x)
        half = resfuse.fuse(copy.deepcopy(model).bfloat16())
        assert rms(half(x.bfloat16()).float() - want) <= 2e-2 * rms(want)
        assert resfuse.report(half).native_calls == 0
        fast = resfuse.fuse(model)
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(twin(x), fast(x))
        quantised = resfuse.quantize(model, [torch.randn(8, 3, 20, 20) for _ in range(4)], progress=False)
        assert rms(quantised(x) - want) <= 0.1 * rms(want)
        assert resfuse.report(quantised).native_calls == 0
        compiled = torch.compile(fast, fullgraph=True)
        torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-5)


def test_weights_of_the_input_stay_native() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.conv(x))
            return F.conv2d(y, self.kernel * y.mean()) * 2.0

    model, x = Dynamic().eval(), torch.randn(2, 3, 12, 12)
    fast = resfuse.fuse(model)
    assert_same(fast, model, x)
    assert "computed weights" in str([step.reason for step in fast.fusion().binding.lowered.natives])


def test_random_weights_are_drawn_at_each_call() -> None:
    """Blundell et al., "Weight Uncertainty in Neural Networks", 2015."""

    class Bayesian(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight + 0.1 * torch.randn_like(self.weight)
            return F.conv2d(x, F.dropout(weight, 0.5), self.bias)

    model, x = nn.Sequential(conv_norm_relu(3, 8), Bayesian(8, 8, 1), nn.ReLU()).eval(), torch.randn(1, 3, 9, 9)
    fast = resfuse.fuse(model)
    with torch.no_grad():
        for seed in (0, 1):
            results = []
            for each in (model, fast):
                torch.manual_seed(seed)
                results.append([each(x), each(x)])
            for theirs, ours in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert not torch.equal(*results[1])


def test_computed_weights_that_leave_the_model() -> None:
    """A weight that somebody else reads as well is computed at each call: he may write to it."""

    class Shows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weight = self.conv.weight * 2.0
            return torch.relu(F.conv2d(x, weight)), weight

    model, x = Shows().eval(), torch.randn(1, 3, 9, 9)
    fast = resfuse.fuse(nn.Sequential(conv_norm_relu(3, 3), model)).eval()
    with torch.no_grad():
        _, weight = fast(x)
        weight.zero_()
        first, second = fast(x)
    assert first.abs().sum() > 0
    assert torch.equal(second, model.conv.weight * 2.0)


class Symmetric(nn.Module):
    """A user's own parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight + weight.flip(-1)) / 2


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], object]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of the whole": lambda conv: parametrizations.weight_norm(conv, dim=None),
    "own": lambda conv: parametrize.register_parametrization(conv, "weight", Symmetric()),
    "bias": lambda conv: parametrize.register_parametrization(conv, "bias", nn.Tanh()),
    "two in a row": lambda conv: (
        parametrize.register_parametrization(conv, "weight", nn.Softplus()),
        parametrize.register_parametrization(conv, "weight", Symmetric()),
    ),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("how", PARAMETRIZATIONS)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_parametrized_weights(how: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), kind(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 1)).eval()
    PARAMETRIZATIONS[how](model[2])
    fast = resfuse.fuse(model)
    x = torch.randn(2, 3, 9, 9)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)

    check()
    native = [row.part for row in resfuse.report(fast).native]
    if kind is nn.Conv2d:
        assert not native
    with torch.no_grad():
        for parameter in model[2].parametrizations.parameters():
            parameter.mul_(1.5)
    check()
    with parametrize.cached():
        check()
        with torch.no_grad():  # traced meanwhile: torch keeps what code computes
            torch.testing.assert_close(resfuse.fuse(model)(x), model(x), rtol=1e-4, atol=1e-5)
    gradients = []
    for network in (model.train(), fast.train()):
        loss = network(x).square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for want, got in zip(*gradients, strict=True):
        assert rms(got - want) <= 1e-4 * rms(want) + 1e-6
    fast.eval(), model.eval()
    name = "bias" if how == "bias" else "weight"
    parametrize.remove_parametrizations(model[2], name)
    fast[2] = model[2]
    check()
