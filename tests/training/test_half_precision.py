"""Training in bf16 and fp16: under autocast over fp32 parameters, and with parameters of 16 bits."""

from __future__ import annotations

import contextlib
import copy
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.training.split import saved_tensors
from tests.faithful.twins import conv_norm_relu
from tests.reference import rms
from tests.training.gradients import assert_within_spread, classifier, small, train

HALVES = [torch.bfloat16, torch.float16]


def autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Gradients of parameters and input, running statistics and outputs of one step; ``dtype``: autocast's."""
    x = x.detach().clone().requires_grad_()
    with autocast(dtype):
        y = model(x)
        loss = F.cross_entropy(y.float(), torch.arange(len(x)) % y.shape[1])
    loss.backward()
    found = {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    found |= {f"buffer {name}": b for name, b in model.named_buffers()}
    return {**found, "x": x.grad, "y": y.detach()}


def errors(
    model: nn.Module, x: torch.Tensor, dtype: torch.dtype | None
) -> tuple[dict[str, float], dict[str, float], nn.Module]:
    """Of torch's values and of ours against fp64's; the fused model too. Types and shapes are torch's."""
    fast = resfuse.fuse(copy.deepcopy(model))
    exact = step(copy.deepcopy(model).double(), x.double())
    eager, got = step(copy.deepcopy(model), x, dtype), step(fast, x, dtype)
    assert {k: (v.dtype, v.shape) for k, v in got.items()} == {k: (v.dtype, v.shape) for k, v in eager.items()}
    found: tuple[dict[str, float], dict[str, float]] = {}, {}
    for name, want in exact.items():
        if not want.is_floating_point():
            assert torch.equal(got[name], want)
            continue
        for errors, result in zip(found, (eager, got), strict=True):
            errors[name] = rms(result[name].double() - want) / max(rms(want), 1e-12)
    return *found, fast


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients(dtype: torch.dtype, pure: bool, block: str, memory_format: torch.memory_format) -> None:
    """No further from fp64 than torch's own, in the middle over all parameters and a few inputs.

    ReLUs whose inputs are near zero have another sign in any two computations of 8 bits.
    """
    model = small(block, width=16)
    model = model.to(dtype) if pure else model
    ratios = []
    for seed in range(5):
        x = torch.randn(4, 3, 40, 32, generator=torch.Generator().manual_seed(seed))
        x = x.to(model.conv1.weight.dtype).contiguous(memory_format=memory_format)
        eager, got, fast = errors(model, x, None if pure else dtype)
        report = resfuse.report(fast)
        assert (report.fused_calls, report.native_calls) == (1, 0), report.last_native_reason
        names = [name for name in eager if "buffer" not in name]
        ratios.append(statistics.median(got[name] / max(eager[name], 1e-4) for name in names))
        for name in eager:
            if "buffer" in name:  # statistics of what was rounded as torch's was
                assert got[name] <= 1.5 * eager[name] + 2e-3, name
    assert min(ratios) <= 1.0, ratios
    assert statistics.median(ratios) <= 1.3, ratios


class Mixed(nn.Module):
    """What runs on torch's functions between blocks, and layers that autocast leaves in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.pool = nn.AvgPool2d(2)
        self.gate = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = F.silu(self.norm(self.grouped(y))) + y
        y = self.pool(y)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("pure", [False, True])
def test_layers_beside_blocks(dtype: torch.dtype, pure: bool) -> None:
    torch.manual_seed(0)
    model = Mixed().train().to(dtype if pure else torch.float32)
    x = torch.randn(6, 3, 16, 16).to(dtype if pure else torch.float32)
    eager, got, fast = errors(model, x, None if pure else dtype)
    for name in eager:
        assert got[name] <= 2 * eager[name] + 1e-2, name
    assert resfuse.report(fast).fused_calls == 1


def test_a_residual_of_fp32_runs_natively_under_autocast() -> None:
    """torch adds it in fp32, and what follows is fp32."""
    from resfuse.models import blocks

    model = blocks.BasicBlock(8, 8).train()
    fast, x = resfuse.fuse(copy.deepcopy(model)), torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = model(x), fast(x)
        assert ours.dtype is theirs.dtype is torch.float32
        torch.testing.assert_close(ours, theirs)
        low = fast(x.bfloat16())
    assert "no convolution reads float32" in str(resfuse.report(fast).last_native_reason)
    assert low.dtype is torch.bfloat16
    assert resfuse.report(fast).fused_calls == 1


def test_types_that_do_not_fit_raise_what_torch_raises() -> None:
    model = small()
    for parameters, inputs in [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]:
        plain = copy.deepcopy(model).to(parameters)
        fast, x = resfuse.fuse(plain), torch.randn(2, 3, 32, 32).to(inputs)
        messages = []
        for each in (plain, fast):
            with pytest.raises(RuntimeError) as error:
                each(x)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_kept_for_backward_has_16_bits(dtype: torch.dtype) -> None:
    fast = resfuse.fuse(small("bottleneck"))
    bound = fast.fusion().binding.programs[0]
    parameters = bound.parameters()
    for part in bound.blocks():
        if part.spec is None:
            continue
        inputs = [torch.randn(2, channels, 12, 12).to(dtype) for channels in part.spec.inputs]
        results = torch.ops.resfuse.block(inputs, [parameters[p] for p in part.parameters], part.text)
        for saved, result in zip(saved_tensors(part.spec), results[len(part.spec.outputs) :], strict=True):
            of_statistics = saved.what in ("mean", "variance")
            assert result.dtype is (torch.float32 if of_statistics else torch.uint8 if saved.what == "taps" else dtype)


@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
def test_operators_opcheck(parameter_dtype: torch.dtype) -> None:
    fast = resfuse.fuse(small("bottleneck"))
    bound = fast.fusion().binding.programs[0]
    for part in bound.blocks():
        if part.spec is None:
            continue
        inputs = [torch.randn(2, channels, 7, 6).bfloat16().requires_grad_() for channels in part.spec.inputs]
        parameters = [bound.parameters()[p].detach().to(parameter_dtype).requires_grad_() for p in part.parameters]
        torch.library.opcheck(torch.ops.resfuse.block.default, (inputs, parameters, part.text))


def test_second_derivatives_under_autocast() -> None:
    """A gradient penalty: computed by torch's functions, in fp32."""
    model = small()
    penalties = []
    for each in (model, resfuse.fuse(copy.deepcopy(model))):
        each.zero_grad()
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = each(x).float().square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        gradient.square().sum().backward()
        penalties.append((gradient.detach(), each.conv1.weight.grad))
    for theirs, ours in zip(*penalties, strict=True):
        assert theirs.dtype is ours.dtype
        assert torch.nn.functional.cosine_similarity(theirs.flatten(), ours.flatten(), 0) > 0.9


class Regions(nn.Module):
    """Autocast is turned off, or on, around a part."""

    def __init__(self, enabled: bool, decorated: bool) -> None:
        super().__init__()
        self.a, self.b = conv_norm_relu(3, 16), conv_norm_relu(16, 16)
        self.enabled, self.decorated = enabled, decorated

    @torch.autocast("cpu", enabled=False)
    def decorated_part(self, y: torch.Tensor) -> torch.Tensor:
        return self.b(y.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.decorated:
            return self.decorated_part(y)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.b(y.float())


@pytest.mark.parametrize("form", ["fused", "backend", "compiled"])
@pytest.mark.parametrize(("enabled", "decorated"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("learns", [False, True])
def test_autocast_regions(form: str, enabled: bool, decorated: bool, learns: bool) -> None:
    """They mean what they mean in torch, whatever is on around the model."""
    torch._dynamo.reset()
    model = Regions(enabled, decorated).train(learns)
    fast = copy.deepcopy(model)
    if form == "backend":
        fast = torch.compile(fast, backend="resfuse")
    else:
        fast = resfuse.fuse(fast)
        fast = torch.compile(fast, backend="eager") if form == "compiled" else fast
    x = torch.randn(2, 3, 12, 12)
    for around in (None, torch.bfloat16, torch.float16):
        with torch.set_grad_enabled(learns), autocast(around):
            theirs, ours = model(x), fast(x)
        assert ours.dtype is theirs.dtype, around
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("learns", [False, True])
def test_compiled_programs_that_refuse_run_natively(learns: bool) -> None:
    """Without a break in the graph: a pool that reads fp32 under autocast, parameters of several types."""
    torch._dynamo.reset()
    pools = nn.Sequential(nn.AvgPool2d(2), conv_norm_relu(3, 8)).train(learns)
    mixed = nn.Sequential(conv_norm_relu(3, 8), conv_norm_relu(8, 8)).train(learns).bfloat16()
    for module in mixed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    for model, x, dtype in (
        (pools, torch.randn(2, 3, 12, 12), torch.bfloat16),
        (mixed, torch.randn(2, 3, 12, 12).bfloat16(), None),
    ):
        fast = resfuse.fuse(copy.deepcopy(model))
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        with torch.set_grad_enabled(learns), autocast(dtype):
            theirs, ours = model(x), compiled(x)
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("learns", [False, True])
def test_compiled_under_autocast(learns: bool) -> None:
    model = small("bottleneck").train(learns)
    fast = resfuse.fuse(copy.deepcopy(model))
    compiled = torch.compile(fast, fullgraph=True)
    x = torch.randn(4, 3, 40, 40)
    for context in (autocast(torch.bfloat16), autocast(None), autocast(torch.bfloat16)):
        results = []
        for each in (fast, compiled):
            state = copy.deepcopy(fast.state_dict())
            with torch.set_grad_enabled(learns), context:
                y = each(x)
            gradients = []
            if learns:
                fast.zero_grad()
                y.float().square().sum().backward()
                gradients = [p.grad.clone() for p in fast.parameters()]
            # Inductor rounds in other places between the blocks.
            results.append([y.detach(), *([torch.cat([g.flatten() for g in gradients])] if learns else [])])
            fast.load_state_dict(state)
        for ours, theirs in zip(*results, strict=True):
            assert ours.dtype is theirs.dtype
            assert rms(ours - theirs) <= 5e-2 * rms(theirs)


@pytest.mark.slow
def test_300_steps_under_autocast() -> None:
    """As in fp32: the loss, averaged over three orders of the data, stays within the spread of torch's three runs."""
    half = torch.bfloat16
    runs = [train(resfuse.fuse(classifier(8)), 300, seed, autocast=half) for seed in range(3)]
    fused = assert_within_spread(runs, [train(classifier(8), 300, seed, autocast=half) for seed in range(3)])
    assert fused[:, -1].max() < 0.5  # from ln 10


def test_parameters_of_16_bits_learn() -> None:
    model = resfuse.fuse(classifier(16).bfloat16())
    losses = train(model, 120, 0)
    assert losses[-20:].mean() < 0.4
    assert resfuse.report(model).native_calls == 0
