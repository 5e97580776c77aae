"""Tracing has no effects, a forward's own effects happen once, and a call that is given up has none."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from tests.faithful.twins import Twins, conv_norm_relu, images

SEEN: list[Any] = []


class Writes(nn.Module):
    """Writes attributes in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm_relu(3, 8), conv_norm_relu(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = self.a(x)
        self.pair = {"low": self.features, "high": (self.b(self.features), 3)}
        self.b.shape = x.shape
        self.called = True
        return self.pair["high"][0] + 1.0


class Counts(nn.Module):
    """Reads what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm_relu(3, 8), conv_norm_relu(8, 8)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.b(self.a(x)) * self.calls


class CountsInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.counts, self.last = conv_norm_relu(3, 3), Counts(), conv_norm_relu(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.counts(self.stem(x)))


class CountsTensors(nn.Module):
    """Counters as buffers, in place and replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm_relu(3, 8)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        y = self.a(x)
        self.average = 0.9 * self.average + 0.1 * y.detach().mean((0, 2, 3))
        return y + self.average[:, None, None] + self.steps


class Appends(nn.Module):
    def __init__(self, to: str) -> None:
        super().__init__()
        self.a, self.to = conv_norm_relu(3, 8), to
        self.kept: list[torch.Tensor] = []
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.to == "list":
            self.kept.append(y)
        elif self.to == "dict":
            self.cache["y"] = y
        else:
            SEEN.append(y)
        return y


class Draws(nn.Module):
    """Draws random numbers in Python or in torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8)), how
        self.last = conv_norm_relu(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        if self.how == "random" and random.random() < 0.5:
            y = y * 2
        if self.how == "numpy" and np.random.rand() < 0.5:
            y = y * 2
        if self.how == "torch" and torch.rand(()).item() < 0.5:
            y = y * 2
        if self.how == "like":
            y = y * torch.rand_like(y)
        if self.how == "dropout":
            y = F.dropout(y, 0.5, True)
        if self.how == "noise":
            y = y + torch.randn(8, 1, 1)
        return self.last(y)


class NoGradients(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = conv_norm_relu(3, 8), conv_norm_relu(8, 8), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                y = self.a(x)
        elif self.how == "detach":
            y = self.a(x).detach()
        else:
            y = Scaled.apply(self.a(x))
        return self.b(y)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 100


class Prints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm_relu(3, 8), nn.Sequential(conv_norm_relu(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        print("shape", tuple(y.shape))
        return self.b(y)


def attributes(model: nn.Module) -> dict[str, Any]:
    ours = ("_resfuse_algorithm", "_resfuse_runtime")
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ours
    }


MODELS = {
    "writes": Writes,
    "counts": Counts,
    "counts inside": CountsInside,
    "counts tensors": CountsTensors,
    "list": lambda: Appends("list"),
    "dict": lambda: Appends("dict"),
    "global list": lambda: Appends("global"),
    **{how: lambda how=how: Draws(how) for how in ("random", "numpy", "torch", "like", "dropout", "noise")},
    **{how: lambda how=how: NoGradients(how) for how in ("no_grad", "detach", "function")},
    "prints": Prints,
}


@pytest.mark.parametrize("name", MODELS)
def test_tracing_leaves_everything_as_it_was(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = MODELS[name]().eval()
    before = {key: copy.copy(value) for key, value in attributes(model).items()}
    SEEN.clear()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    fast = resfuse.fuse(model)
    for module in (model, fast):
        after = attributes(module)
        assert after.keys() == before.keys()
        assert all(after[key] is before[key] or after[key] == before[key] for key in before if "steps" not in key)
        assert not any(isinstance(value, torch.fx.Proxy) for value in after.values())
    assert not SEEN
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert capsys.readouterr().out == ""


def _values(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.requires_grad, round(float(value.double().sum()), 1)
    if isinstance(value, (list, tuple)):
        return [_values(item) for item in value]
    if isinstance(value, dict):
        return {key: _values(item) for key, item in value.items()}
    return None if isinstance(value, nn.Module) else value


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_effects_happen_once_and_with_the_values_of_the_call(
    name: str, training: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    twins = Twins(MODELS[name]().train(training))
    for seed in range(3):
        lengths = []
        for model in (twins.plain, twins.fused):
            SEEN.clear()
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            with torch.set_grad_enabled(training):
                result = model(images(seed=seed))
            if training:
                model.zero_grad()
                result.square().sum().backward()
            lengths.append((len(SEEN), random.random(), np.random.rand(), torch.rand(()).item(), _values(result)[1:3]))
        assert lengths[0] == lengths[1]
        twins.call(images(seed=seed), backward=training)
    theirs, ours = attributes(twins.plain), attributes(twins.fused)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        a, b = _values(value), _values(ours[key])
        assert str(a)[:40] == str(b)[:40], key
    out = capsys.readouterr().out.splitlines()
    assert len(out) == (12 if name == "prints" else 0)


def test_what_cannot_be_repeated_is_named() -> None:
    fast = resfuse.fuse(CountsInside().eval())
    report = resfuse.report(fast)
    assert [row.what for row in report.native] == ["its code reads and writes its attribute calls"]
    with torch.no_grad():
        fast(images())
        fast(images())
    assert fast.counts.calls == 2
    assert resfuse.report(fast).fused_calls == 2


class Broadcasts(nn.Module):
    """Its second program finds at each call that it cannot compute its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.b = conv_norm_relu(3, 16), nn.GroupNorm(4, 16), conv_norm_relu(16, 16)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1.0
        y = self.drop(self.g(self.a(x)))
        return self.b(y) + x.mean(1, keepdim=True)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_program_that_refuses_runs_nothing_twice(training: bool) -> None:
    twins = Twins(Broadcasts().train(training))
    for seed in range(2):
        twins.call(images(seed=seed), backward=training)
    assert int(twins.fused.a[1].num_batches_tracked) == 2 * training


class Fails(nn.Module):
    """Its last layer does not fit what comes before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_norm_relu(3, 8), conv_norm_relu(8, 8), conv_norm_relu(5, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class FailsInASum(nn.Module):
    """Norms move their statistics before what follows them is found not to fit."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.last = conv_norm_relu(3, 8), nn.BatchNorm2d(8), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.last(F.relu(self.norm(x))) + x


class NeedsSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[1] == 3, "want three channels")
        return self.a(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 16), (2, 4, 16, 16), (3, 16, 16), (16, 16), (16,), (), (2, 3, 2, 2), (2, 3, 6, 6), (1, 3, 3, 3),
              (0, 3, 16, 16), (2, 3, 0, 0), (1, 2, 3, 16, 16)],
)  # fmt: skip
@pytest.mark.parametrize(
    "kind", [Fails, NeedsSize, lambda: nn.Sequential(conv_norm_relu(3, 8), nn.Conv2d(8, 8, 1)),
             lambda: FailsInASum(nn.Conv2d(8, 8, 3, padding=(2, 1))), lambda: FailsInASum(nn.Conv2d(8, 8, 9)),
             lambda: FailsInASum(nn.AvgPool2d(9, 1, 4)), lambda: FailsInASum(nn.AvgPool2d(9))],
)  # fmt: skip
def test_mistakes_raise_what_torch_raises(kind: Any, shape: tuple[int, ...], training: bool) -> None:
    twins = Twins(kind().train(training))
    twins.call(torch.randn(shape, generator=torch.Generator().manual_seed(0)), backward=False)
    if shape != ():
        twins.call(torch.randn(shape, dtype=torch.float64))
        twins.call(torch.ones(shape, dtype=torch.int64))
    twins.call(images())


def test_statistics_of_a_norm_that_runs_natively_as_well() -> None:
    """torch's batch norm saves the running statistics for its backward, and does not count its own changes of them."""
    plain = conv_norm_relu(3, 8).train()
    fast = resfuse.fuse(copy.deepcopy(plain))
    results, versions = [], []
    for model in (plain, fast):
        torch.manual_seed(0)
        native = model[1](torch.randn(2, 8, 4, 4))  # type: ignore[index]  # the module itself, as torch runs it
        (model(torch.randn(2, 3, 8, 8)).sum() + native.square().sum()).backward()
        versions.append(model[1].running_mean._version)  # type: ignore[index]
        results.append([p.grad for p in model.parameters()] + list(model.buffers()))
    assert versions[0] == versions[1]
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # Changes that no version counter shows are seen at once nevertheless.
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
            before = fast[1].running_mean.clone()
            fast.train()(x), plain.train()(x)
            assert not torch.equal(fast[1].running_mean, before)
