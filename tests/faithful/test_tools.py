"""The tools of torch see through a fused model."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import resfuse
from tests.faithful.twins import images


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    model = resfuse.models.resnet18(num_classes=4, width=8).eval()
    return model, resfuse.fuse(copy.deepcopy(model))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


x = images(2, 3, 32, 32)


@pytest.mark.parametrize("training", [False, True])
def test_flop_counter(pair: tuple[nn.Module, nn.Module], training: bool) -> None:
    counts = []
    for model in pair:
        model.train(training)
        with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
            result = model(x)
            if training:
                result.sum().backward()
        counts.append(counter.get_flop_counts())
    assert counts[0] == counts[1]
    assert len(counts[0]) > 5


def _nodes(graph: torch.fx.Graph) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in graph.nodes]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_export(pair: tuple[nn.Module, nn.Module], strict: bool, training: bool) -> None:
    programs = [torch.export.export(model.train(training), (x,), strict=strict) for model in pair]
    assert _nodes(programs[0].graph) == _nodes(programs[1].graph)
    assert not any("resfuse" in target for _, target in _nodes(programs[1].graph))
    if not training:
        fast = resfuse.fuse(programs[1].module())
        with torch.no_grad():
            torch.testing.assert_close(fast(x), pair[0](x), rtol=1e-3, atol=1e-4)


def test_symbolic_trace(pair: tuple[nn.Module, nn.Module]) -> None:
    graphs = [torch.fx.symbolic_trace(model) for model in pair]
    assert _nodes(graphs[0].graph) == _nodes(graphs[1].graph)


def test_prepare_fx(pair: tuple[nn.Module, nn.Module]) -> None:
    quantization = pytest.importorskip("torch.ao.quantization.quantize_fx")
    mapping = torch.ao.quantization.get_default_qconfig_mapping()
    counts = []
    for model in pair:
        prepared = quantization.prepare_fx(copy.deepcopy(model), mapping, (x,))
        prepared(x)
        counts.append(sum("Observer" in type(module).__name__ for module in prepared.modules()))
    assert counts[0] == counts[1] > 10


def test_fuse_modules(pair: tuple[nn.Module, nn.Module]) -> None:
    names = [["conv1", "bn1", "relu"], ["layer1.0.conv1", "layer1.0.bn1"]]
    theirs, ours = (torch.ao.quantization.fuse_modules(model, names) for model in pair)
    assert [type(m) for m in ours.modules()][1:] == [type(m) for m in theirs.modules()][1:]
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-4)


def test_script(pair: tuple[nn.Module, nn.Module]) -> None:
    scripted = [torch.jit.script(model) for model in pair]
    assert list(scripted[1].state_dict()) == list(pair[0].state_dict())
    assert scripted[0].code == scripted[1].code
    with torch.no_grad():
        torch.testing.assert_close(scripted[1](x), pair[0](x))
    assert isinstance(pair[1], resfuse.fused.module.FusedModule)  # it is as it was


def test_script_of_a_part(pair: tuple[nn.Module, nn.Module]) -> None:
    fast = resfuse.fuse(pair[0].layer1)
    with torch.no_grad():
        y = torch.randn(2, 8, 8, 8)
        torch.testing.assert_close(torch.jit.script(fast)(y), pair[0].layer1(y))


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(pair: tuple[nn.Module, nn.Module], dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    kinds = []
    for model in pair:
        file = io.BytesIO()
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(model, (x,), file, dynamo=dynamo)
        kinds.append([(node.domain, node.op_type) for node in onnx.load_from_string(file.getvalue()).graph.node])
    assert kinds[0] == kinds[1]


def test_trace_has_no_operators_of_ours(pair: tuple[nn.Module, nn.Module]) -> None:
    assert "resfuse::" not in str(torch.jit.trace(pair[1], x).inlined_graph)


class Listening(torch.overrides.TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


def test_modes_see_what_the_plain_model_does(pair: tuple[nn.Module, nn.Module]) -> None:
    seen = []
    for model in pair:
        with Listening() as mode, torch.no_grad():
            model(x)
        seen.append(mode.seen)
    assert seen[0].count("conv2d") == seen[1].count("conv2d") == 20


def test_forward_mode_derivatives(pair: tuple[nn.Module, nn.Module]) -> None:
    results = []
    for model in pair:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            results.append(torch.autograd.forward_ad.unpack_dual(model(dual)).tangent)
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_compiled_fused_models_follow_attributes(pair: tuple[nn.Module, nn.Module]) -> None:
    torch._dynamo.reset()
    plain, fast = pair
    compiled = torch.compile(fast, backend="aot_eager")
    with torch.no_grad():
        for stride in (2, 1):
            for model in pair:
                model.layer2[0].conv1.stride = model.layer2[0].downsample[0].stride = (stride, stride)
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-3, atol=1e-4)


def test_saved_tensor_hooks(pair: tuple[nn.Module, nn.Module]) -> None:
    for model in pair:
        model.train()
        with torch.autograd.graph.save_on_cpu():
            model(x).sum().backward()
    for theirs, ours in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        assert (theirs.grad - ours.grad).norm() <= 2e-2 * theirs.grad.norm() + 1e-4
