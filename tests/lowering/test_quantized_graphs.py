"""Graphs that others quantised (torchao's PT2E, torch.export) run as int8 programs.

Scales are powers of two and all other numbers small integers, where a test can choose them: then torch's fp32 and our
bytes are both exact, and results must be equal.
"""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import resfuse
from resfuse.bench.models import randomize_batch_norm
from resfuse.compiler import CompiledGraph
from resfuse.fused.copies import plain_copy
from resfuse.inspect.report import ReportRow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.ao.quantization.fx._decomposed  # defines the operators

ops = torch.ops.quantized_decomposed
aten = torch.ops.aten


class Graph:
    """A quantised graph in the making, as ``convert_pt2e`` writes them."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.generator = torch.Generator().manual_seed(seed)
        self.x = self.graph.placeholder("x")
        self.channels = {self.x: channels}
        self._count = 0

    def call(self, target: Any, *args: Any) -> fx.Node:
        """A node of as many channels as the first it reads."""
        node = self.graph.call_function(target, args)
        if args[0] in self.channels:
            self.channels[node] = self.channels[args[0]]
        return node

    def tensor(self, value: torch.Tensor) -> fx.Node:
        name = f"_frozen_param{self._count}"
        self._count += 1
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def round(
        self, x: fx.Node, scale: float = 1.0, zero: int = 0, dtype: torch.dtype = torch.uint8, top: int = 0
    ) -> fx.Node:
        low, high = (0, 255) if dtype is torch.uint8 else (-128, 127)
        how = (scale, zero, low, top or high, dtype)
        q = self.call(ops.quantize_per_tensor.default, x, *how)
        return self.call(ops.dequantize_per_tensor.default, q, *how)

    def quantized(self, x: fx.Node, scale: float = 1.0, zero: int = 0) -> list[fx.Node]:
        """As `round`, with a dequantize for each of two readers."""
        how = (scale, zero, 0, 255, torch.uint8)
        q = self.call(ops.quantize_per_tensor.default, x, *how)
        return [self.call(ops.dequantize_per_tensor.default, q, *how) for _ in range(2)]

    def weights(self, *shape: int, zero: int = 0, folded: bool = True, largest: int = 8) -> fx.Node:
        k = shape[0]
        weight = self.integers(-largest, largest + 1, *shape)
        steps = 2.0 ** self.integers(-3, 1, k).float()
        zeros = torch.full((k,), zero)
        how = (0, -128, 127, torch.int8)
        if folded:
            stored = self.tensor(weight.to(torch.int8))
            return self.call(ops.dequantize_per_channel.default, stored, self.tensor(steps), self.tensor(zeros), *how)
        real = self.tensor(weight * steps.reshape(-1, *[1] * (len(shape) - 1)))
        s, z = self.tensor(steps), self.tensor(zeros)
        q = self.call(ops.quantize_per_channel.default, real, s, z, *how)
        return self.call(ops.dequantize_per_channel.default, q, s, z, *how)

    def conv(
        self,
        x: fx.Node,
        out: int = 8,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        plain: bool = False,
        **how: Any,
    ) -> fx.Node:
        shape = (out, self.channels[x] // groups, kernel, kernel)
        weight = self.tensor(self.integers(-3, 4, *shape).float()) if plain else self.weights(*shape, **how)
        bias = self.tensor(self.integers(-20, 21, out).float())
        pad = kernel // 2
        node = self.call(aten.conv2d.default, x, weight, bias, [stride, stride], [pad, pad], [1, 1], groups)
        self.channels[node] = out
        return node

    def head(self, x: fx.Node, out: int = 5) -> fx.Node:
        pooled = self.call(aten.flatten.using_ints, self.call(aten.adaptive_avg_pool2d.default, x, [1, 1]), 1)
        rounded = self.round(pooled)
        return self.call(aten.linear.default, rounded, self.weights(out, self.channels[x]))

    def module(self, *outputs: fx.Node) -> fx.GraphModule:
        self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        return fx.GraphModule(self.root, self.graph).eval()


def image(channels: int = 3, batch: int = 2, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-40, 300, (batch, channels, size, size), generator=generator).float()


def check(module: fx.GraphModule, x: torch.Tensor, algorithm: str = "auto") -> list[ReportRow]:
    """Fused equals native in every number, and nothing runs natively; gives the report's rows."""
    fast = resfuse.fuse(module, algorithm=algorithm)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), module(x), rtol=0, atol=0)
    report = resfuse.report(fast)
    assert report.last_native_reason is None
    assert not report.native
    return report.fused


def test_a_residual_block_is_one_program_without_conversions() -> None:
    g = Graph()
    first, shortcut = g.quantized(g.call(aten.relu_.default, g.conv(g.round(g.x, 2.0, 20), 8)))
    inner = g.call(aten.relu.default, g.conv(first, 8))
    total = g.call(aten.add.Tensor, g.conv(g.round(inner, 4.0), 8), shortcut)
    module = g.module(g.head(g.round(g.call(aten.relu_.default, total), 8.0)))
    rows = check(module, image())
    assert [row.what for row in rows] == [
        "conv 3x3 3->8 + relu",
        "conv 3x3 8->8 + relu",
        "conv 3x3 8->8 + add + relu",
        "global average pool",
        "conv 1x1 8->5",
    ]
    assert {row.precision for row in rows} == {"int8"}


def test_a_residual_without_a_quantize_pair() -> None:
    g = Graph(8)
    read = g.round(g.x, 2.0, 20)
    total = g.call(aten.add.Tensor, g.conv(read), g.conv(read, kernel=1))
    check(g.module(g.round(total, 16.0, 90)), image(8))


def test_pools_round_to_ranges_of_their_own() -> None:
    g = Graph(8)
    y = g.round(g.conv(g.round(g.x, 2.0, 20)), 16.0, 100)
    large = g.round(g.call(aten.max_pool2d.default, y, [3, 3], [2, 2], [1, 1]), 32.0, 60)
    mean = g.round(g.call(aten.avg_pool2d.default, y, [2, 2], [2, 2]), 32.0, 60)
    check(g.module(g.call(aten.add.Tensor, large, mean)), image(8))


def test_one_value_is_read_rounded_unrounded_and_by_two_ranges() -> None:
    g = Graph(8)
    y = g.call(aten.relu.default, g.conv(g.round(g.x, 2.0, 20)))
    a, b = g.conv(g.round(y, 8.0)), g.conv(g.round(y, 32.0, 3), kernel=1)
    total = g.call(aten.add.Tensor, g.call(aten.add.Tensor, a, y), b)
    check(g.module(total, g.round(y, 8.0)), image(8))


@pytest.mark.parametrize(
    "case", ["int8 bytes", "real weights", "weights to round", "rounded again", "real conv of bytes"]
)
def test_other_forms(case: str) -> None:
    g = Graph(8)
    if case == "int8 bytes":
        y = g.conv(g.round(g.x, 2.0, -100, torch.int8))
        y = g.conv(g.round(y, 16.0, -20, torch.int8))
    elif case == "real weights":  # bytes of weights alone
        y = g.conv(g.x)
    elif case == "weights to round":
        y = g.conv(g.round(g.x, 2.0, 20), folded=False)
    elif case == "rounded again":
        y = g.conv(g.round(g.round(g.round(g.x, 2.0, 20), 2.0, 20), 4.0, 7))
        y = g.conv(g.round(g.round(y, 16.0, 100), 64.0, 9))
    else:
        y = g.conv(g.round(g.x, 2.0, 20))
        y = g.conv(g.round(y, 16.0, 100), plain=True)
    check(g.module(y), image(8), "direct")


@pytest.mark.parametrize("case", ["zero points of weights", "part of a byte", "computed weights"])
def test_what_has_no_form_runs_natively(case: str) -> None:
    g = Graph(8)
    y = g.round(g.conv(g.round(g.x, 2.0, 20)), 16.0, 100)
    if case == "zero points of weights":
        y = g.conv(y, zero=3)
    elif case == "part of a byte":
        y = g.conv(g.round(y, 2.0, 60, top=127))
    else:
        y = g.call(aten.conv2d.default, y, g.call(torch.neg, g.weights(8, 8, 3, 3)))
    fast = resfuse.fuse(g.module(y), algorithm="direct")  # what computes with real numbers is exact then
    with torch.no_grad():
        torch.testing.assert_close(fast(image(8)), fast.native_forward(image(8)), rtol=0, atol=0)


def test_sums_too_large_for_winograd_go_direct() -> None:
    g = Graph(512)
    y = g.conv(g.round(g.x, 2.0, 20), 16, largest=127)
    g.root._frozen_param0.fill_(127)
    fast = resfuse.fuse(g.module(y))
    with torch.no_grad():
        torch.testing.assert_close(fast(image(512)), fast.native_forward(image(512)), rtol=1e-5, atol=0)
    (row,) = resfuse.report(fast).rows
    assert row.algorithm.startswith("direct")
    assert row.precision == "int8"


def test_weights_that_grow_too_large_later_run_natively() -> None:
    g = Graph(512)
    module = g.module(g.conv(g.round(g.x, 2.0, 20), 16))
    fast = resfuse.fuse(module, algorithm="winograd")
    x = image(512)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), fast.native_forward(x), rtol=0, atol=0)
        assert resfuse.report(fast).native_calls == 0
        module._frozen_param0.fill_(127)
        torch.testing.assert_close(fast(x), fast.native_forward(x), rtol=0, atol=0)
    assert "want algorithm 'direct'" in str(resfuse.report(fast).last_native_reason)


def _block() -> fx.GraphModule:
    g = Graph(8)
    y = g.round(g.call(aten.relu.default, g.conv(g.round(g.x, 2.0, 20))), 16.0)
    return g.module(g.conv(y))


def test_weights_and_steps_are_the_graphs() -> None:
    module, x = _block(), image(8)
    fast = resfuse.fuse(module, inplace=True)
    plain = plain_copy(fast)
    for change in (
        lambda: module._frozen_param0.neg_(),
        lambda: module._frozen_param1.mul_(2),
        lambda: module._frozen_param3.add_(1),
        lambda: module._frozen_param4.data.neg_(),  # which no version counter counts
    ):
        with torch.no_grad():
            fast(x)
            change()
            torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)
    assert resfuse.report(fast).native_calls == 0


def test_copies_and_pickles() -> None:
    fast, x = resfuse.fuse(_block(), algorithm="direct"), image(8)
    with torch.no_grad():
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            torch.testing.assert_close(other(x), fast(x), rtol=0, atol=0)
            assert isinstance(other, fx.GraphModule)


def test_gradients_and_autocast_run_natively() -> None:
    module, x = _block(), image(8)
    bias = next(name for name, value in module.named_buffers() if value.min() < -8 and value.is_floating_point())
    value = module._buffers.pop(bias)
    module.register_parameter(bias, nn.Parameter(value))
    fast = resfuse.fuse(module)
    with pytest.warns(resfuse.GradientsEnabledWarning):
        torch.testing.assert_close(fast(x), module(x), rtol=0, atol=0)
    assert "quantised" in str(resfuse.report(fast).last_native_reason)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), module(x), rtol=0, atol=0)


def test_tools() -> None:
    module, x = _block(), image(8)
    fast = resfuse.fuse(module)
    assert "int8" in str(resfuse.verify(module, fast, x))
    with torch.no_grad():
        resfuse.profile(fast, x)
    with pytest.raises(ValueError, match="quantised already"):
        resfuse.quantize(module, [x], progress=False)


@st.composite
def quantized_graphs(draw: Callable[..., Any]) -> tuple[fx.GraphModule, torch.Tensor]:
    """Convolutions, sums, pools and roundings in any order; every convolution reads small integers."""
    g = Graph(draw(st.sampled_from([3, 8, 16])), draw(st.integers(0, 999)))
    x = image(g.channels[g.x], draw(st.integers(1, 3)))
    pool = [g.x]
    sizes = {g.x: 8}
    for _ in range(draw(st.integers(1, 9))):
        source = draw(st.sampled_from(pool[-4:]))
        kind = draw(st.sampled_from(["conv", "conv", "round", "add", "relu", "max", "avg"]))
        channels, size = g.channels[source], sizes[source]
        scale, zero = 2.0 ** draw(st.integers(0, 5)), draw(st.integers(0, 255))
        if kind == "round":
            node = g.round(source, scale, zero)
        elif kind == "conv":
            kernel, stride = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (1, 2)]))
            out = draw(st.sampled_from([8, 16]))
            groups = draw(st.sampled_from([1, math.gcd(channels, out)]))
            node = g.conv(g.round(source, scale, zero), out, kernel, stride, groups)
            size = (size - 1) // stride + 1
        elif kind == "add":
            others = [n for n in pool if g.channels[n] == channels and sizes[n] == size and n is not source]
            if not others:
                continue
            node = g.call(aten.add.Tensor, source, draw(st.sampled_from(others)))
        elif kind == "relu":
            node = g.call(aten.relu.default, source)
        elif size < 4:
            continue
        else:
            target = aten.max_pool2d.default if kind == "max" else aten.avg_pool2d.default
            node = g.call(target, source, [2, 2], [2, 2])
            size //= 2
        sizes[node] = size
        pool.append(node)
    last = g.conv(g.round(pool[-1], 16.0, 30))
    also = draw(st.sampled_from(pool[1:] or [last]))
    return g.module(last, also), x


@settings(max_examples=150, deadline=None)
@given(quantized_graphs())
def test_random_graphs_equal_torch(case: tuple[fx.GraphModule, torch.Tensor]) -> None:
    module, x = case
    try:
        fast = resfuse.fuse(module)
    except resfuse.UnsupportedModelError:
        return
    with torch.no_grad():
        torch.testing.assert_close(fast(x), module(x), rtol=0, atol=0)
    assert resfuse.report(fast).last_native_reason is None


@pytest.fixture(scope="module", params=["static", pytest.param("qat", marks=pytest.mark.slow)])
def converted(request: pytest.FixtureRequest) -> fx.GraphModule:
    """A ResNet as torchao quantises it."""
    quantize = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    torch.manual_seed(0)
    qat = request.param == "qat"
    model = resfuse.models.ResNet("basic", [1], width=16, num_classes=5)
    randomize_batch_norm(model)
    model.train(qat)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), strict=True, dynamic_shapes=({0: batch},)
    ).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=qat))
    prepared = (quantize.prepare_qat_pt2e if qat else quantize.prepare_pt2e)(exported, quantizer)
    for _ in range(3):
        prepared(torch.randn(4, 3, 32, 32))
    done: fx.GraphModule = quantize.convert_pt2e(prepared)
    return done


def _same(got: torch.Tensor, want: torch.Tensor) -> None:
    """A byte may round to the other side where torch's fp32 sums are not exact; few do."""
    assert float((got - want).norm() / want.norm()) < 0.02


def test_torchao_through_fuse_and_export(converted: fx.GraphModule) -> None:
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        want = converted(x)
        fast = resfuse.fuse(converted)
        _same(fast(x), want)
        rows = resfuse.report(fast).fused
        assert {row.precision for row in rows} == {"int8"}
        assert "layer1.0.conv1" in {row.part for row in rows}
        exported = torch.export.export(converted, (x,)).module()
        _same(resfuse.fuse(exported)(x), want)


def test_torchao_through_compile(converted: fx.GraphModule, graphs: list[CompiledGraph]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="resfuse")
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        _same(compiled(x), converted(x))
    (graph,) = graphs
    assert not graph.binding.lowered.natives
    (bound,) = graph.binding.programs
    assert bound.last_plan is not None
    assert bound.step.spec.has_bytes
