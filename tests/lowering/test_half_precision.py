"""Models of bf16 and fp16 parameters, fused: their own type, no less accurate than torch, changes seen, the rest native."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import resfuse
from resfuse.bench.models import randomize_batch_norm
from tests.faithful.twins import conv_norm_relu
from tests.reference import rms

DTYPES = [torch.bfloat16, torch.float16]


def network(block: str = "basic", **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = resfuse.models.ResNet(block, [1, 1, 1], width=16, num_classes=200, **options)
    randomize_batch_norm(model)
    return model.eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("options", [{}, {"stem": "cifar", "padding": "same", "head_activation": "softmax"}])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_networks(
    dtype: torch.dtype, block: str, options: dict[str, object], memory_format: torch.memory_format
) -> None:
    model = network(block, **options).to(dtype)
    x = torch.randn(3, 3, 64, 64).to(dtype).contiguous(memory_format=memory_format)
    fast = resfuse.fuse(model)
    with torch.no_grad():
        exact, eager, got = copy.deepcopy(model).double()(x.double()), model(x), fast(x)
    assert got.dtype is dtype
    assert got.shape == eager.shape
    assert rms(got.double() - exact) <= rms(eager.double() - exact) * 1.5
    report = resfuse.report(fast)
    assert (report.fused_calls, report.native_calls) == (1, 0)
    assert [(k, v.dtype) for k, v in fast.state_dict().items()] == [(k, v.dtype) for k, v in model.state_dict().items()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_come_in_torchs_memory_format(dtype: torch.dtype) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv_norm_relu(3, 8), conv_norm_relu(8, 24, 2)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.a(x)
            return [y, self.b(y), self.b(y).mean((2, 3))]

    model = Features().eval().to(dtype)
    fast = resfuse.fuse(model)
    for x in (
        torch.randn(2, 3, 16, 12).to(dtype),
        torch.randn(2, 3, 16, 12).to(dtype, memory_format=torch.channels_last),
    ):
        with torch.no_grad():
            for ours, theirs in zip(fast(x), model(x), strict=True):
                assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
                torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    assert resfuse.report(fast).native_calls == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_changes_of_parameters_are_seen(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 32, 32).to(dtype)

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(fast(x).float(), model(x).float(), rtol=5e-2, atol=5e-2)

    check()
    with torch.no_grad():
        model.fc.bias.add_(3.0)
    check()
    model.fc.bias.data.sub_(5.0)  # no version counter counts this
    check()
    model.conv1.weight.data = model.conv1.weight.data * 0.5
    check()
    model.load_state_dict({k: v * 0.9 if v.is_floating_point() else v for k, v in model.state_dict().items()})
    check()


def test_another_type_is_seen_at_the_next_call() -> None:
    model = network()
    fast, x = resfuse.fuse(model, inplace=True), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first = fast(x)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            result = fast.to(dtype)(x.to(dtype))
            assert result.dtype is dtype
            torch.testing.assert_close(result.float(), first, rtol=5e-2, atol=5e-2)
    assert resfuse.report(fast).fused_calls == 4


def test_types_that_do_not_fit_raise_what_torch_raises() -> None:
    model = network()
    for parameters, inputs in [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]:
        plain = copy.deepcopy(model).to(parameters)
        fast, x = resfuse.fuse(plain), torch.randn(1, 3, 32, 32).to(inputs)
        errors = []
        for each in (plain, fast):
            with torch.no_grad(), pytest.raises(RuntimeError) as error:
                each(x)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_and_pickles_keep_their_type(dtype: torch.dtype) -> None:
    fast, x = resfuse.fuse(network().to(dtype)), torch.randn(1, 3, 32, 32).to(dtype)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(fast)(x), fast(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp32_models_compute_in_half_precision(dtype: torch.dtype) -> None:
    model, x = network(), torch.randn(3, 3, 64, 64)
    fast = resfuse.fuse(model, dtype=dtype)
    with torch.no_grad():
        exact, got = copy.deepcopy(model).double()(x.double()), fast(x)
        eager = copy.deepcopy(model).to(dtype)(x.to(dtype))
        plain = resfuse.fuse(model)(x)
    assert got.dtype is torch.float32
    assert rms(plain - exact) < 0.1 * rms(got - exact)  # it is not fp32 that was computed
    assert rms(got - exact) <= 1.5 * rms(eager.double() - exact)
    assert resfuse.report(fast).fused_calls == 1
    print(resfuse.verify(model, fast, x))
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        with torch.no_grad():
            assert torch.equal(twin(x), got)
    # Training computes in fp32.
    fast.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in fast.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_verify_half_precision_models(dtype: torch.dtype) -> None:
    model = network("bottleneck").to(dtype)
    verification = resfuse.verify(model, resfuse.fuse(model), torch.randn(2, 3, 64, 64).to(dtype))
    assert verification.worst.ratio < 2


def test_unknown_types_are_named() -> None:
    with pytest.raises(ValueError, match=r"dtype: got torch.float64, want one of None, torch.float32, torch.bfloat16"):
        resfuse.fuse(network(), dtype=torch.float64)


class _Mixed(nn.Module):
    """A native module between programs, features, and a sum with a float32 input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_norm_relu(3, 8), conv_norm_relu(8, 8), conv_norm_relu(8, 8)
        self.norm, self.fc = nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> list[torch.Tensor]:
        y = self.norm(self.a(x))
        z = self.b(y) + y
        if extra is not None:
            z = self.c(z) + extra
        return [y, z, self.fc(z.mean((2, 3))), torch.softmax(self.fc(z.mean((2, 3))), 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extra", [False, True])
def test_autocast_in_inference(dtype: torch.dtype, extra: bool) -> None:
    model = _Mixed().eval()
    randomize_batch_norm(model)
    fast, x = resfuse.fuse(model), torch.randn(2, 3, 16, 16)
    args = (x, torch.randn(2, 8, 16, 16)) if extra else (x,)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(*[a.double() for a in args])
        with torch.autocast("cpu", dtype):
            eager, got = model(*args), fast(*args)
    for ours, theirs, want in zip(got, eager, exact, strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        assert rms(ours - want) <= 1.5 * rms(theirs - want) + 1e-4
    report = resfuse.report(fast)
    if extra:
        assert "no convolution reads float32" in str(report.last_native_reason)
    else:
        assert (report.fused_calls, report.native_calls) == (1, 0)
