"""What a fused model is: the same class, the same parameters, results that follow every change."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import resfuse
from resfuse.bench.models import randomize_batch_norm
from resfuse.engine.executor import executor_of


def small(**options: object) -> nn.Module:
    model = resfuse.models.ResNet("basic", [1, 1], **{"width": 8, "num_classes": 5, "stem": "cifar", **options}).eval()
    randomize_batch_norm(model)
    return model


@pytest.fixture
def model() -> nn.Module:
    return small()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16)


def assert_same(fast: nn.Module, reference: nn.Module, x: torch.Tensor, fused: bool = True) -> None:
    """Equal results, and the path that was meant to run ran."""
    before = resfuse.report(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
    after = resfuse.report(fast)
    calls = after.fused_calls if fused else after.native_calls
    assert calls >= 1
    assert calls != (before.fused_calls if fused else before.native_calls)


def test_class_parameters_and_keys_are_the_models(model: nn.Module) -> None:
    fast = resfuse.fuse(model)
    assert isinstance(fast, type(model))
    assert type(fast).__name__ == type(model).__name__
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(fast.buffers(), model.buffers(), strict=True))
    assert all(a is not b for a, b in zip(fast.modules(), model.modules(), strict=True))
    assert not isinstance(model, resfuse.fused.module.FusedModule)


def test_inplace(model: nn.Module, x: torch.Tensor) -> None:
    reference = copy.deepcopy(model)
    assert resfuse.fuse(model, inplace=True) is model
    assert_same(model, reference, x)


def _in_place(model: nn.Module) -> None:
    model.layer1[0].conv1.weight.mul_(1.5)


def _one_element(model: nn.Module) -> None:
    model.layer1[0].conv2.weight[1, 2, 0, 1] += 3


def _through_data(model: nn.Module) -> None:
    model.layer1[0].conv1.weight.data.mul_(1.5)  # no version counter sees this


def _data_assignment(model: nn.Module) -> None:
    model.layer2[0].bn1.weight.data = torch.rand_like(model.layer2[0].bn1.weight)


def _new_parameter(model: nn.Module) -> None:
    model.fc.weight = nn.Parameter(torch.randn_like(model.fc.weight))


def _buffer(model: nn.Module) -> None:
    model.bn1.running_var.add_(1)


def _new_buffer(model: nn.Module) -> None:
    model.bn1.running_mean = torch.randn_like(model.bn1.running_mean)


def _state_dict(model: nn.Module) -> None:
    model.load_state_dict(small().state_dict())


def _state_dict_assign(model: nn.Module) -> None:
    model.load_state_dict(small().state_dict(), assign=True)


@pytest.mark.parametrize(
    "change",
    [_in_place, _one_element, _through_data, _data_assignment, _new_parameter, _buffer, _new_buffer, _state_dict,
     _state_dict_assign],
)  # fmt: skip
def test_results_follow_parameters(model: nn.Module, x: torch.Tensor, change) -> None:
    fast = resfuse.fuse(model)
    assert_same(fast, model, x)
    with torch.no_grad():
        before = fast(x)
        torch.manual_seed(7)
        change(fast)
        reference = small()
        reference.load_state_dict(fast.state_dict())
        assert not torch.allclose(before, reference(x), rtol=1e-3, atol=1e-4)
    assert_same(fast, reference, x)


def test_results_follow_an_optimizer(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    assert_same(fast, model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        assert_same(fast, model.eval(), x)


def test_results_follow_inference_mode_tensors(model: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        model.load_state_dict(small().state_dict(), assign=True)
        fast = resfuse.fuse(model)
        assert_same(fast, model, x)
        fast.conv1.weight.mul_(2)
        assert_same(fast, model, x)


def test_to_float64_and_back(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    assert_same(fast, model, x)
    fast.to(torch.float64)
    assert_same(fast, copy.deepcopy(model).double(), x.double(), fused=False)
    assert "float32" in str(resfuse.report(fast).last_native_reason)
    fast.to(torch.float32)
    assert_same(fast, model, x)


def test_replaced_modules_are_seen(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    assert_same(fast, model, x)
    fast.fc = model.fc = nn.Linear(16, 3)
    fast.layer2[0].relu = nn.Identity()
    model.layer2[0].relu = nn.Identity()
    assert_same(fast, model, x)
    fast.layer1[0].bn1 = model.layer1[0].bn1 = nn.GroupNorm(2, 8)
    assert_same(fast, model, x)
    assert any("group norm" in row.what for row in resfuse.report(fast).rows)
    fast.layer1[0].bn1 = model.layer1[0].bn1 = nn.InstanceNorm2d(8)
    assert_same(fast, model, x)
    assert any("InstanceNorm2d" in row.what for row in resfuse.report(fast).native)


def test_train_mode_runs_fused(model: nn.Module, x: torch.Tensor) -> None:
    fast, reference = resfuse.fuse(model), copy.deepcopy(model)
    fast.train()
    reference.train()
    fast(x).sum().backward()
    reference(x).sum().backward()
    for a, b in zip(fast.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    report = resfuse.report(fast)
    assert (report.fused_calls, report.native_calls) == (1, 0)
    assert "block by block" in report.state
    assert_same(fast.eval(), reference.eval(), x)


def test_a_frozen_batch_norm_left_in_train_mode(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    reference = copy.deepcopy(model)
    fast.layer2[0].bn2.train()
    reference.layer2[0].bn2.train()
    assert_same(fast, reference, x)


def test_gradients_in_eval_mode(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    with pytest.warns(resfuse.GradientsEnabledWarning, match="no_grad"):
        fast(x).sum().backward()
    assert fast.conv1.weight.grad is not None
    fast(x)  # warns once
    for parameter in fast.parameters():
        parameter.requires_grad_(False)
    fast(x)
    assert resfuse.report(fast).fused_calls == 3
    with pytest.raises(AssertionError):
        assert_same(fast, model, x, fused=False)


def test_copies_and_pickles(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model, algorithm="direct")
    with torch.no_grad():
        expected = fast(x)
        copied = copy.deepcopy(fast)
        buffer = io.BytesIO()
        torch.save(fast, buffer)
        size = buffer.tell()
        buffer.seek(0)
        clones = [copied, pickle.loads(pickle.dumps(fast)), torch.load(buffer, weights_only=False)]
        for clone in clones:
            assert torch.equal(clone(x), expected)
            assert resfuse.report(clone).fused_calls == 1
        clones[0].conv1.weight.mul_(2)
        assert torch.equal(fast(x), expected)
        assert not torch.equal(copied(x), expected)
    plain = io.BytesIO()
    torch.save(model, plain)
    assert size < plain.tell() * 1.2 + 4096  # no packed weights inside


def test_state_dicts_both_ways(x: torch.Tensor) -> None:
    first, second = small(), small()
    fast = resfuse.fuse(first)
    fast.load_state_dict(second.state_dict())
    assert_same(fast, second, x)
    third = small()
    third.load_state_dict(fast.state_dict())
    assert_same(fast, third, x)


def test_hooks_on_the_model(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    seen = []
    fast.register_forward_hook(lambda module, args, output: seen.append(output) or output + 1)
    fast.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(2 * x) + 1, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1
    assert resfuse.report(fast).fused_calls == 1


@pytest.mark.parametrize("path", ["layer1", "layer2.0.bn1"])
def test_hooks_inside_see_their_tensors(model: nn.Module, x: torch.Tensor, path: str) -> None:
    fast = resfuse.fuse(model)
    assert_same(fast, model, x)
    seen = []
    handle = fast.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output))
    assert_same(fast, model, x)  # the rest of the model stays fused
    assert len(seen) == 1
    assert seen[0].is_contiguous()
    assert any("hooks" in row.what for row in resfuse.report(fast).native)
    handle.remove()
    assert_same(fast, model, x)
    assert not resfuse.report(fast).native


def test_refusing_keeps_working(model: nn.Module, x: torch.Tensor) -> None:
    again = resfuse.fuse(resfuse.fuse(model), algorithm="winograd")
    assert_same(again, model, x)
    assert any("winograd" in row.algorithm for row in resfuse.report(again).rows)


def test_any_batch_and_size(model: nn.Module) -> None:
    fast = resfuse.fuse(model)
    for shape in [(1, 3, 16, 16), (5, 3, 9, 30), (33, 3, 8, 8), (1, 3, 1, 1)]:
        assert_same(fast, model, torch.randn(shape))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_any_strides(model: nn.Module, layout: str) -> None:
    x = torch.randn(3, 3, 20, 20)
    x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "sliced": x[:, :, ::2, 1:],
        "expanded": x[:1].expand(4, -1, -1, -1),
    }[layout]
    assert_same(resfuse.fuse(model), model, x)


def test_compile_and_export(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    with torch.no_grad():
        expected = fast(x)
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(fast, (x,))
        torch.testing.assert_close(exported.module()(x), expected)


def test_meta_tensors_give_shapes(model: nn.Module) -> None:
    fast = resfuse.fuse(model)
    with torch.no_grad():
        assert fast.to("meta")(torch.empty(4, 3, 16, 16, device="meta")).shape == (4, 5)


def test_vmap_runs_natively(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    with torch.no_grad():
        stacked = torch.func.vmap(fast)(torch.stack([x, x]))
        torch.testing.assert_close(stacked[0], model(x), rtol=1e-4, atol=1e-5)
    assert resfuse.report(fast).last_native_reason == "a torch.func transform is active"


def test_models_are_freed(x: torch.Tensor) -> None:
    fast = resfuse.fuse(small())
    with torch.no_grad():
        fast(x)
    reference = weakref.ref(fast)
    parameter = weakref.ref(fast.conv1.weight)
    del fast
    gc.collect()
    assert reference() is None
    assert parameter() is None


def test_two_models_of_one_structure_do_not_mix(x: torch.Tensor) -> None:
    first, second = small(), small()
    fast_first, fast_second = resfuse.fuse(first), resfuse.fuse(second)
    for _ in range(2):
        assert_same(fast_first, first, x)
        assert_same(fast_second, second, x)


def test_report_before_and_after_a_call(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(small(width=9))
    assert "(not run yet)" in str(resfuse.report(fast))
    with torch.no_grad():
        fast(x)
    report = resfuse.report(fast)
    text = str(report)
    assert "layer1.0.conv2" in text
    assert "conv 3x3 9->9 + batch norm + add + relu" in text
    assert report.fused[0].packed_bytes > 0
    assert report.fused_calls == 1


def test_verify_finds_a_wrong_model(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(copy.deepcopy(model))
    with torch.no_grad():
        fast.layer2[0].conv1.weight[0] += 0.1
    with pytest.raises(resfuse.VerificationError, match="layer2"):
        resfuse.verify(model, fast, x)
    assert issubclass(resfuse.VerificationError, resfuse.ResfuseError)


def test_a_sum_that_broadcasts_runs_natively() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv(x) + shift)

    net = Net().eval()
    fast = resfuse.fuse(net)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for shift, calls in ((torch.randn(2, 4, 6, 6), (1, 0)), (torch.randn(2, 4, 1, 1), (1, 1))):
            torch.testing.assert_close(fast(x, shift), net(x, shift), rtol=1e-4, atol=1e-5)
            report = resfuse.report(fast)
            assert (report.fused_calls, report.native_calls) == calls
        with pytest.raises(RuntimeError, match="expected input"):  # torch's own words
            fast(torch.randn(2, 5, 6, 6), shift)


def test_jit_trace_records_the_original_modules(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    with torch.no_grad():
        traced = torch.jit.trace(fast, x)
        other = torch.randn(3, 3, 12, 20)
        torch.testing.assert_close(traced(other), model(other), rtol=1e-4, atol=1e-5)


def test_functional_call(model: nn.Module, x: torch.Tensor) -> None:
    fast, other = resfuse.fuse(model), small()
    with torch.no_grad():
        result = torch.func.functional_call(fast, other.state_dict(), (x,))
        torch.testing.assert_close(result, other(x), rtol=1e-4, atol=1e-5)
    assert_same(fast, model, x)


def test_a_replaced_head_frees_its_packed_weights(model: nn.Module, x: torch.Tensor) -> None:
    fast = resfuse.fuse(model)
    with torch.no_grad():
        fast(x)
        cache = executor_of(fast.fusion().binding.programs[0].step.text)._weights
        before = len(cache._entries)
        for _ in range(3):
            fast.fc = nn.Linear(16, 5)
            fast(x)
        del model
        gc.collect()
        assert len(cache._entries) <= before + 1
