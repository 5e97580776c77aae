"""``torch.compile(model, backend="resfuse")``."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from benchmarks.zoo import PreActivation
from torch import nn
from torch._dynamo.utils import counters

import resfuse
from resfuse.bench.models import make_model, randomize_batch_norm
from resfuse.compiler import CompiledGraph
from resfuse.compiler import resfuse as backend


@pytest.fixture(autouse=True)
def _no_graphs_left():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _seed(**options: Any) -> nn.Module:
    model = resfuse.models.ResNet("basic", [1, 1], width=8, num_classes=5, stem="cifar", **options)
    randomize_batch_norm(model)
    return model


def test_it_is_registered() -> None:
    assert "resfuse" in torch._dynamo.list_backends()


def test_inference_is_one_program(graphs: list[CompiledGraph]) -> None:
    name = "resnet18" if importlib.util.find_spec("torchvision") else "seed"
    model = make_model(name).eval()
    randomize_batch_norm(model)
    compiled = torch.compile(model, backend="resfuse")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)
    (graph,) = graphs
    layers = [layer.kind for step in graph.binding.lowered.programs for layer in step.spec.layers]
    assert layers.count("conv") == sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    if name == "resnet18":
        assert len(graph.binding.programs) == 1
        names = [layer.name for layer in graph.binding.lowered.programs[0].spec.layers]
        assert "layer1.0.conv1" in names


def test_weights_are_the_users(graphs: list[CompiledGraph]) -> None:
    model = _seed().eval()
    compiled = torch.compile(model, backend="resfuse")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        compiled(x)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


def test_dynamic_sizes_compile_once(graphs: list[CompiledGraph]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), PreActivation(24))
    randomize_batch_norm(model.eval())
    compiled = torch.compile(model, backend="resfuse", dynamic=True)
    with torch.no_grad():
        for batch, height, width in [(2, 9, 12), (3, 16, 11), (7, 20, 20)]:
            x = torch.randn(batch, 3, height, width)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == len(graphs) == 1


@pytest.mark.parametrize("fallback", ["eager", "inductor"])
@pytest.mark.parametrize("padding", ["torch", "same"])
def test_training(graphs: list[CompiledGraph], fallback: str, padding: str) -> None:
    model = _seed(padding=padding).train()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, backend="resfuse", options={"fallback": fallback})
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (model, reference)]
    for _ in range(3):
        x = torch.randn(16, 3, 16, 16)
        for module, optimizer in zip((compiled, reference), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    assert len(graphs) == 1
    for ours, theirs in zip(model.state_dict().items(), reference.state_dict().items(), strict=True):
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4, msg=lambda m, key=ours[0]: f"{key}: {m}")


def test_what_is_not_fused_falls_through(graphs: list[CompiledGraph]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.cos(torch.relu(self.first(x))) * 2.0
            return torch.relu(self.second(y)).cumsum(2)

    model = Net().eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        for fallback in ("eager", "inductor"):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="resfuse", options={"fallback": fallback})
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert [len(graph.binding.programs) for graph in graphs] == [2, 2]


def test_graphs_without_convolutions_and_other_types_run_as_they_are(graphs: list[CompiledGraph]) -> None:
    linear = torch.compile(nn.Linear(4, 3), backend="resfuse")
    assert linear(torch.randn(2, 4)).shape == (2, 3)
    model = _seed().eval().double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="resfuse")(x), model(x))
    assert not graphs


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(graphs: list[CompiledGraph], autocast: bool, learns: bool) -> None:
    """Parameters of bf16, and autocast over those of fp32."""
    model = _seed().train(learns)
    model = model if autocast else model.bfloat16()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="resfuse")
    x = torch.randn(4, 3, 16, 16).to(model.conv1.weight.dtype)
    with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = compiled(x), plain(x)
    assert ours.dtype is theirs.dtype is torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
    (graph,) = graphs
    assert graph.binding.refusal is None
    if learns:
        for y in (ours, theirs):
            y.float().square().sum().backward()
        assert [p.grad.dtype for p in model.parameters()] == [p.grad.dtype for p in plain.parameters()]
        gradients = [torch.cat([p.grad.flatten().float() for p in m.parameters()]) for m in (model, plain)]
        assert torch.nn.functional.cosine_similarity(*gradients, 0) > 0.9


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"speed": 11}, "options: got 'speed', want algorithm or fallback"),
        ({"fallback": "tvm"}, "fallback: got 'tvm', want one of 'eager', 'inductor'"),
        ({"algorithm": "fft"}, "algorithm: got 'fft', want one of"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        backend(torch.fx.symbolic_trace(nn.ReLU()), [torch.randn(1)], options=options)
