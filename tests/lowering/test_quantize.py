"""`resfuse.quantize`: ranges from a user's batches, what of a model computes with bytes, what stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import resfuse
from resfuse.bench.models import randomize_batch_norm
from resfuse.engine.executor import Executor
from resfuse.engine.spec import OutputSpec
from resfuse.errors import UnsupportedModelError
from resfuse.fused.module import FusedModule
from resfuse.lowering.ranges import Ranges
from resfuse.quantization.observer import METHODS, ChannelMeans, Observer, range_of
from resfuse.quantization.sensitivity import decibels
from tests.faithful.twins import conv_norm_relu
from tests.integers import run_integers


def network(block: str = "basic", **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = resfuse.models.ResNet(block, [1, 1, 1], width=16, num_classes=20, **options)
    randomize_batch_norm(model)
    return model.eval()


def batches(count: int = 3, size: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, size, size, generator=generator) for _ in range(count)]


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = model(x)
    return y


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("options", [{}, {"stem": "cifar", "padding": "same"}])
@pytest.mark.parametrize("method", METHODS)
def test_networks(block: str, options: dict[str, object], method: str) -> None:
    model = network(block, **options)
    quantized = resfuse.quantize(model, batches(), method=method)
    x = torch.randn(3, 3, 40, 40)
    exact, got = run(model, x), run(quantized, x)
    assert decibels(exact, got) > (25 if method in ("mse", "minmax") else 12)
    assert type(quantized).__name__ == type(model).__name__
    assert isinstance(quantized, type(model))
    report = resfuse.report(quantized)
    assert report.quantized
    assert report.native_calls == 0
    convolutions = [row for row in report.rows if row.what.startswith("conv")]
    assert {row.precision for row in convolutions} == {"int8"}
    assert all(row.noise is not None and row.noise > 8 for row in convolutions)


def test_a_whole_program_is_exact() -> None:
    """Every bit of the last block's output is what plain integers give."""
    model = network("bottleneck")
    quantized = resfuse.quantize(model, batches())
    assert isinstance(quantized, FusedModule)
    (bound,) = quantized.fusion().binding.programs
    last = max(layer.output for layer in bound.step.spec.layers if getattr(layer, "residual", None) is not None)
    spec = bound.with_outputs([OutputSpec(last)])
    x, parameters = batches()[0], [*bound.parameters(), *bound.means]
    (got,) = Executor(spec).run([x], parameters)
    keep = [layer for layer in spec.layers if layer.output <= last]
    short = type(spec)(spec.inputs, tuple(keep), spec.outputs)
    np.testing.assert_array_equal(got.numpy(), run_integers(short, [x], parameters)[0])


def test_the_algorithm_of_a_fused_model_stays() -> None:
    x = batches(1)[0]
    direct = resfuse.quantize(resfuse.fuse(network(), algorithm="direct"), [x])
    other = resfuse.quantize(network(), [x])
    direct.load_state_dict(other.state_dict())  # the same ranges, which were found by other fp32 kernels
    with torch.inference_mode():
        chosen = {layer.algorithm for layer in resfuse.profile(direct, x).layers if "3x3" in layer.what}
        assert chosen
        assert not any("winograd" in name for name in chosen), chosen
        assert torch.equal(direct(x), other(x))  # int8 sums are exact by any algorithm


def test_parameters_are_the_users_own_and_changes_are_seen() -> None:
    model = network()
    quantized = resfuse.quantize(model, batches())
    assert [id(p) for p in quantized.parameters()] == [id(p) for p in model.parameters()]
    x = batches()[0]
    before = run(quantized, x)
    with torch.no_grad():
        model.fc.weight.mul_(2)
        model.fc.bias.mul_(2)
    torch.testing.assert_close(run(quantized, x), 2 * before)
    before = run(quantized, x)
    with torch.no_grad():
        model.conv1.weight.mul_(0.5)  # the ranges stay
    assert decibels(run(model, x), run(quantized, x)) > 15
    assert not torch.equal(run(quantized, x), before)


def test_train_mode_and_gradients_compute_with_real_numbers() -> None:
    model = network()
    fast, quantized = resfuse.fuse(model), resfuse.quantize(model, batches())
    x = batches()[0]
    with pytest.warns(resfuse.GradientsEnabledWarning):
        got = quantized(x)
    with pytest.warns(resfuse.GradientsEnabledWarning):
        assert torch.equal(got, fast(x))
    got.sum().backward()
    assert model.conv1.weight.grad is not None
    quantized.train()
    assert torch.isfinite(quantized(x)).all()
    assert "fp32 block by block where gradients are asked for" in resfuse.report(quantized.eval()).state


def test_other_types_compute_as_a_fused_model() -> None:
    quantized = resfuse.quantize(network(), batches())
    half = copy.deepcopy(quantized).bfloat16()
    x = batches()[0].bfloat16()
    assert run(half, x).dtype is torch.bfloat16
    with torch.autocast("cpu"):
        assert run(quantized, batches()[0]).dtype is torch.bfloat16


def test_ranges_travel_in_a_state_dict(tmp_path: Path) -> None:
    model = network()
    quantized = resfuse.quantize(model, batches(), keep=["conv1"])
    x = batches()[0]
    want = run(quantized, x)
    state = quantized.state_dict()
    assert [key for key in state if key not in model.state_dict()] == ["resfuse_ranges"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    memory = io.BytesIO()
    torch.save(state, memory)
    memory.seek(0)
    for loaded in (safetensors.torch.load_file(tmp_path / "model.safetensors"), torch.load(memory)):
        other = resfuse.fuse(resfuse.models.ResNet("basic", [1, 1, 1], width=16, num_classes=20).eval())
        assert not torch.equal(run(other, x), want)
        other.load_state_dict(loaded)
        assert torch.equal(run(other, x), want)
        assert resfuse.report(other).quantized
    plain = network()
    assert plain.load_state_dict(state, strict=False).unexpected_keys == ["resfuse_ranges"]
    quantized.load_state_dict(model.state_dict())  # without ranges: its own stay
    assert torch.equal(run(quantized, x), want)
    assert "resfuse_ranges" in state  # the caller's dictionary is not changed


def test_ranges_travel_with_the_object() -> None:
    quantized = resfuse.quantize(network(), batches())
    x = batches()[0]
    want = run(quantized, x)
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)), resfuse.fuse(quantized)):
        assert torch.equal(run(other, x), want)


def test_ranges_of_another_model_are_refused() -> None:
    state = resfuse.quantize(network("bottleneck"), batches()).state_dict()
    other = resfuse.fuse(network("basic"))
    with pytest.raises(RuntimeError, match="resfuse_ranges: ranges: got some of 'layer1_0_"):
        other.load_state_dict({**network("basic").state_dict(), "resfuse_ranges": state["resfuse_ranges"]})
    broken = {**network("basic").state_dict(), "resfuse_ranges": torch.zeros(5, dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="got a tensor that holds none"):
        other.load_state_dict(broken)


def test_kept_layers_compute_with_real_numbers() -> None:
    quantized = resfuse.quantize(network(), batches(), keep=["conv1", "fc"])
    run(quantized, batches()[0])
    rows = {row.part: row.precision for row in resfuse.report(quantized).rows}
    assert (rows["conv1"], rows["fc"], rows["layer1.0.conv1"]) == ("fp32", "fp32", "int8")


def test_agreement_keeps_what_loses_most() -> None:
    model = network()
    with torch.no_grad():  # one layer that bytes ruin: channels of very different size in one range
        model.layer2[0].conv1.weight[::2].mul_(1e-4)
        model.layer2[0].bn1.weight[::2].mul_(1e4)
        model.layer1[0].bn2.weight[0] *= 300
    x = batches(8)
    plain = resfuse.quantize(model, x)
    better = resfuse.quantize(model, x, agreement=0.97)

    def agreement(m: nn.Module) -> float:
        return float(np.mean([float((run(model, b).argmax(1) == run(m, b).argmax(1)).float().mean()) for b in x]))

    assert agreement(better) >= 0.97
    kept = [row.part for row in resfuse.report(better).rows if row.precision == "fp32" and row.what.startswith("conv")]
    assert agreement(plain) >= 0.97 or kept


def test_biases_make_up_for_rounded_weights() -> None:
    torch.manual_seed(0)
    model = resfuse.models.ResNet("bottleneck", [1, 1], width=32, num_classes=10)
    randomize_batch_norm(model)
    model.eval()
    fast = resfuse.quantize(model, [torch.rand(8, 3, 64, 64) for _ in range(4)], progress=False)
    without = copy.deepcopy(fast)
    without.quantize(dataclasses.replace(fast._resfuse_ranges, means={}))
    x = torch.rand(32, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        assert decibels(want, fast(x)) > decibels(want, without(x)) + 1
        for parameter in model.parameters():  # what they make up for are the weights of now
            parameter.mul_(-0.5 if parameter.dim() == 4 else 1.0)
        torch.testing.assert_close(fast(x), copy.deepcopy(fast)(x), rtol=0, atol=0)


def test_verify_tells_what_bytes_cost() -> None:
    model = network()
    x = batches()[0]
    quantized = resfuse.quantize(model, [x])
    verification = resfuse.verify(model, quantized, x)
    assert verification.agreement is not None
    assert verification.agreement >= 0.75
    assert all(row.noise > 15 for row in verification.rows)
    assert "predictions are those of fp64" in str(verification)
    assert resfuse.profile(quantized, x).layers


def test_batches_as_data_loaders_give_them() -> None:
    data = torch.utils.data.TensorDataset(torch.cat(batches()), torch.zeros(12))
    model, x = network(), batches()[0]
    want = run(resfuse.quantize(model, batches()), x)
    assert torch.equal(run(resfuse.quantize(model, torch.utils.data.DataLoader(data, batch_size=4)), x), want)
    assert torch.equal(run(resfuse.quantize(model, ({"x": b} for b in batches())), x), want)


def test_gates_and_other_activations() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = conv_norm_relu(3, 16), nn.Conv2d(16, 16, 3, padding=1)
            self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
            self.norm, self.pool = nn.BatchNorm2d(16), nn.AvgPool2d(2)
            self.head = nn.Conv2d(16, 24, 1, groups=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            y = torch.nn.functional.silu(self.body(x))
            gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
            y = torch.relu(y * gate + x)
            return self.head(self.pool(torch.relu(self.norm(y)))).mean((2, 3))

    torch.manual_seed(0)
    model = Gated().eval()
    quantized = resfuse.quantize(model, batches(size=24))
    x = batches(1, 24)[0]
    assert decibels(run(model, x), run(quantized, x)) > 20
    assert resfuse.report(quantized).native_calls == 0


def test_what_reads_nothing_but_zeros_stays_real() -> None:
    model = network()
    with torch.no_grad():
        model.layer1[0].bn1.weight.zero_()
        model.layer1[0].bn1.bias.fill_(-1)
    quantized = resfuse.quantize(model, batches())
    x = batches()[0]
    assert decibels(run(model, x), run(quantized, x)) > 20
    rows = {row.part: row.precision for row in resfuse.report(quantized).rows}
    assert (rows["layer1.0.conv1"], rows["layer1.0.conv2"]) == ("int8", "fp32")


def test_a_model_in_parts() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = network(), network("bottleneck")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((x > 1e9).any()):  # torch.fx cannot trace it as a whole
                return x
            return torch.cat([self.a(x), self.b(x)], 1)

    model = Parts().eval()
    quantized = resfuse.quantize(model, batches(), keep=["layer1.0.conv2"])
    x = batches()[0]
    assert decibels(run(model, x), run(quantized, x)) > 20
    want = run(quantized, x)
    keys = [key for key in quantized.state_dict() if "resfuse" in key]
    assert keys == ["a.resfuse_ranges", "b.resfuse_ranges"]
    other = resfuse.fuse(Parts().eval())
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(run(other, x), want)


def test_compiled_and_exported() -> None:
    quantized = resfuse.quantize(network(), batches())
    x = batches()[0]
    want = run(quantized, x)
    with torch.no_grad():
        assert torch.equal(torch.compile(quantized, backend="eager")(x), want)
    (bound,) = quantized.fusion().binding.programs
    torch.library.opcheck(
        torch.ops.resfuse.program,
        ([x], *bound.whole([x], bound.parameters(), None)[::-1]),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "batches: got none"),
        ([torch.full((1, 3, 32, 32), float("nan"))], ValueError, "element 0 has values that are NaN or infinite"),
        ([torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), float("inf"))], ValueError, "element 1 has values"),
        (torch.zeros(1, 3, 32, 32), TypeError, "batches: got Tensor, want an iterable of batches"),
        (["a"], TypeError, "element 0 is a str"),
        (None, TypeError, "batches: got NoneType"),
        ([torch.zeros(2, 3, 32, 32)], ValueError, "batches: got nothing but zeros"),
    ],
)
def test_bad_batches(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resfuse.quantize(network(), given)


def test_bad_arguments() -> None:
    x = batches(1)
    with pytest.raises(ValueError, match="method: got 'best', want one of"):
        resfuse.quantize(network(), x, method="best")
    with pytest.raises(ValueError, match="keep: got 'nowhere'"):
        resfuse.quantize(network(), x, keep=["nowhere"])
    with pytest.raises(TypeError, match="keep: got 'conv1'"):
        resfuse.quantize(network(), x, keep="conv1")
    with pytest.raises(ValueError, match="agreement: got 2"):
        resfuse.quantize(network(), x, agreement=2)
    with pytest.raises(ValueError, match=r"is torch\.bfloat16, want float32"):
        resfuse.quantize(network().bfloat16(), x)
    with pytest.raises(TypeError, match="model: got int"):
        resfuse.quantize(3, x)
    with pytest.raises(UnsupportedModelError):
        resfuse.quantize(nn.Linear(3, 3), [torch.randn(2, 3)])


def test_modes_are_as_they_were() -> None:
    model = network().train()
    model.layer1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = model.bn1.running_mean.clone()
    quantized = resfuse.quantize(model, batches())
    assert {name: module.training for name, module in quantized.named_modules()} == before
    assert torch.equal(model.bn1.running_mean, statistics)


@pytest.mark.parametrize("method", METHODS)
def test_observers_agree_with_all_values(method: str) -> None:
    """Ranges of a histogram taken in pieces of very different size are about those of the whole."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1, 8, 50, 50, generator=generator) * scale for scale in (0.001, 1.0, 3.0)]
    pieces, whole = Observer(), Observer()
    for value in values:
        pieces.add(value)
    whole.add(torch.cat(values))
    a, b = pieces.range(method), whole.range(method)
    assert a is not None
    assert b is not None
    assert a[0] == pytest.approx(b[0], rel=0.25 if method == "entropy" else 0.1)
    assert abs(a[1] - b[1]) <= 12


def test_the_least_square_error_is_found() -> None:
    x = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(0)) ** 5  # of long tails
    observer = Observer()
    observer.add(x)

    def error(byte_range: tuple[float, int] | None) -> float:
        assert byte_range is not None
        scale, zero = byte_range
        q = (torch.round(x / scale) + zero).clamp(0, 255)
        return float(((q - zero) * scale - x).square().mean())

    low, high = float(x.min()), float(x.max())
    best = min(error(range_of(low * share, high * share)) for share in np.linspace(0.25, 1, 40))
    assert error(observer.range("mse")) < 1.05 * best
    assert error(observer.range("mse")) < error(observer.range("minmax"))


def test_ranges_as_tensors() -> None:
    ranges = Ranges({"a": (0.5, 3), "b": (1e-3, 255)}, ("conv",), "mse", {"conv": 31.5})
    assert Ranges.from_tensor(ranges.to_tensor()) == ranges
    for text in (b"{}", b"[]", b'{"values":{"a":[0,1]},"keep":[],"method":"","noise":{}}', b"\xff"):
        with pytest.raises(ValueError, match="got a tensor that holds none"):
            Ranges.from_tensor(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    assert range_of(0.0, 255.0) == (1.0, 0)
    assert range_of(-128.0, 127.0) == (1.0, 128)


@pytest.mark.parametrize("shape", [(64, 512, 7, 7), (32, 64, 14, 28), (64, 96, 9, 11)])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_samples_reach_all_channels_rows_and_columns(shape: tuple[int, ...], axis: int) -> None:
    size = shape[axis]
    values = torch.arange(1.0, size + 1).reshape(*[size if i == axis else 1 for i in range(4)]).expand(shape)
    values = values.contiguous(memory_format=torch.channels_last)
    observer, means = Observer(), ChannelMeans()
    observer.add(values)
    means.add(values)
    _, counts = observer.histogram()
    assert len(counts) == size
    assert counts.min() > 0.7 * counts.mean()
    np.testing.assert_allclose(means.means(), values.mean((0, 2, 3)), rtol=0.05)
