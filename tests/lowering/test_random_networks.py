"""Random networks, fused, against torch in fp64.

``RESFUSE_FUZZ=100000 pytest tests/lowering/test_random_networks.py`` runs that many of each kind and not the same ones every time.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.layers.same import Conv2dSame

CASES = int(os.environ.get("RESFUSE_FUZZ", "300"))
fuzz = settings(
    max_examples=CASES,
    derandomize="RESFUSE_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

SMOOTH = ("silu", "gelu", "tanh", "sigmoid", "mish", "none")
ANY = ("relu", "leaky_relu", "prelu", "relu6", "hardsigmoid", "hardswish", "elu", *SMOOTH)
_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "elu": lambda x: F.elu(x, 0.7),
    "none": lambda x: x,
}
_MODULES = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu6": nn.ReLU6,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
    "none": nn.Identity,
}

Shape = tuple[int, int, int]  # channels, height, width
Instruction = tuple[str, tuple[int, ...], str]  # kind, values that it reads, module or activation


class Network(nn.Module):
    """Runs a list of instructions over a list of values; returns some of them."""

    def __init__(self, instructions: list[Instruction], layers: dict[str, nn.Module], outputs: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.instructions, self.outputs = instructions, outputs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [x]
        for kind, sources, what in self.instructions:
            first = values[sources[0]]
            if kind == "module":
                values.append(self.layers[what](first))
            elif kind == "activation":
                values.append(_FUNCTIONS[what](first))
            elif kind == "scale":
                values.append(first * float(what))
            elif kind == "add":
                values.append(first + values[sources[1]])
            elif kind == "add in place":
                first += values[sources[1]]
                values.append(first)
            elif kind == "product":
                values.append(first * values[sources[1]])
            elif kind == "join":
                values.append(torch.cat([values[i] for i in sources], 1))
            elif kind == "part":
                values.append(
                    first.chunk(2, 1)[int(what)] if first.shape[1] % 2 == 0 else first[:, : first.shape[1] // 2]
                )
            elif kind == "like":
                values.append(F.interpolate(first, size=values[sources[1]].shape[-2:], mode=what))
            elif kind == "norm of pixels":
                pixels = self.layers[what](first.permute(0, 2, 3, 1))
                values.append(F.gelu(pixels).permute(0, 3, 1, 2) * self.layers[what].weight.reshape(1, -1, 1, 1))
            elif kind == "gate":
                values.append(first * torch.sigmoid(self.layers[what](first.mean((2, 3), keepdim=True))))
            else:
                values.append(F.adaptive_avg_pool2d(first, 1))
        return tuple(values[i] for i in self.outputs)


@st.composite
def networks(draw: st.DrawFn, activations: tuple[str, ...] = ANY) -> tuple[Network, Shape]:
    """A network in eval mode and the shape of its input."""
    shape: Shape = (draw(st.integers(1, 24)), draw(st.integers(1, 18)), draw(st.integers(1, 18)))
    shapes: list[Shape] = [shape]
    instructions: list[Instruction] = []
    layers: dict[str, nn.Module] = {}
    read: set[int] = set()

    def emit(kind: str, sources: tuple[int, ...], what: str, made: Shape) -> None:
        instructions.append((kind, sources, what))
        shapes.append(made)
        read.update(sources)

    def add_module(source: int, module: nn.Module) -> None:
        name = f"l{len(layers)}"
        with torch.no_grad():
            made = module.eval()(torch.zeros(1, *shapes[source])).shape[1:]
        layers[name] = module
        emit("module", (source,), name, tuple(made))  # type: ignore[arg-type]

    for _ in range(draw(st.integers(1, 9))):
        # Mostly the newest value, so that chains grow.
        source = len(shapes) - 1 if draw(st.integers(0, 3)) else draw(st.integers(0, len(shapes) - 1))
        channels, height, width = shapes[source]
        kind = draw(
            st.sampled_from(
                [
                    "conv",
                    "conv",
                    "conv3",
                    "conv3",
                    "bn",
                    "bn",
                    "act",
                    "act",
                    "add",
                    "add",
                    "pool",
                    "gate",
                    "scale",
                    "join",
                    "join",
                    "part",
                    "like",
                    "move",
                    "norm",
                ]
            )
        )
        if kind == "conv3":
            out = draw(st.sampled_from([channels, 8, 16, 33]))
            stride = draw(st.sampled_from([1, 1, 2]))
            if draw(st.booleans()):
                add_module(source, nn.Conv2d(channels, out, 3, stride, 1, bias=draw(st.booleans())))
            else:
                add_module(source, Conv2dSame(channels, out, 3, stride, bias=draw(st.booleans())))
        elif kind == "join":
            alike = [i for i, other in enumerate(shapes) if other[1:] == shapes[source][1:]]
            parts = (source, *draw(st.lists(st.sampled_from(alike), max_size=2)))
            if sum(shapes[i][0] for i in parts) <= 100:
                emit("join", parts, "", (sum(shapes[i][0] for i in parts), height, width))
        elif kind == "part":
            if channels > 1:
                emit("part", (source,), draw(st.sampled_from(["0", "1"])), (channels // 2, height, width))
        elif kind == "like":
            other = draw(st.integers(0, len(shapes) - 1))
            mode = draw(st.sampled_from(["nearest", "bilinear"]))
            emit("like", (source, other), mode, (channels, *shapes[other][1:]))
        elif kind == "move":
            moves = [
                nn.Upsample(scale_factor=2),
                nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=draw(st.booleans())),
                nn.Upsample(size=(7, 5), mode="bilinear"),
                nn.ZeroPad2d(draw(st.tuples(*[st.integers(0, 2)] * 4))),
            ]
            if height * width < 400:
                add_module(source, draw(st.sampled_from(moves)))
        elif kind == "norm":
            if channels > 1 and draw(st.booleans()):
                add_module(source, nn.GroupNorm(1 if channels % 2 else channels // 2, channels, eps=0.1))
            elif channels > 1:
                name = f"l{len(layers)}"
                layers[name] = nn.LayerNorm(channels, eps=0.1)
                emit("norm of pixels", (source,), name, shapes[source])
        elif kind == "scale":
            emit("scale", (source,), draw(st.sampled_from(["0.5", "-1.5"])), shapes[source])
        elif kind == "conv":
            groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
            out = groups * draw(st.integers(1, 6))
            kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
            padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
            dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
            spans = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            if spans[0] > height or spans[1] > width:
                continue
            stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
            bias = draw(st.booleans())
            add_module(source, nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias))
        elif kind == "bn":
            norm = nn.BatchNorm2d(channels, eps=1e-3, affine=draw(st.booleans()))
            add_module(source, norm)
        elif kind == "act":
            name = draw(st.sampled_from(activations))
            if name not in _FUNCTIONS or (name in _MODULES and draw(st.booleans())):
                add_module(source, _MODULES[name]())
            else:
                emit("activation", (source,), name, shapes[source])
        elif kind == "add":
            others = [i for i, other in enumerate(shapes) if other == shapes[source] and i != source]
            if others:
                other = draw(st.sampled_from(others))
                fresh = source > 0 and source not in read and instructions[source - 1][0] == "module"
                in_place = fresh and isinstance(layers[instructions[source - 1][2]], (nn.Conv2d, nn.BatchNorm2d))
                kind = "add in place" if in_place else draw(st.sampled_from(["add", "add", "product"]))
                emit(kind, (source, other), "", shapes[source])
        elif kind == "pool":
            size = draw(st.integers(1, 3))
            if size > min(height, width):
                continue
            options = {
                "stride": draw(st.integers(1, 2)),
                "padding": draw(st.integers(0, size // 2)),
                "ceil_mode": draw(st.booleans()),
            }
            pool = (
                nn.MaxPool2d(size, **options)
                if draw(st.booleans())
                else nn.AvgPool2d(size, **options, count_include_pad=draw(st.booleans()))
            )
            add_module(source, pool)
        elif height * width > 1:
            name = f"l{len(layers)}"
            layers[name] = nn.Conv2d(channels, channels, 1)
            emit("gate", (source,), name, shapes[source])
    if not any(isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) for layer in layers.values()):
        layers["last"] = nn.Conv2d(shapes[-1][0], 8, 3, padding=1)
        emit("module", (len(shapes) - 1,), "last", (8, *shapes[-1][1:]))
    if draw(st.booleans()):
        emit("global pool", (len(shapes) - 1,), "", (shapes[-1][0], 1, 1))
    overwritten = {sources[0] for kind, sources, _ in instructions if kind == "add in place"}
    several = draw(st.lists(st.integers(1, len(shapes) - 1), max_size=2, unique=True))
    outputs = [i for i in dict.fromkeys([*several, len(shapes) - 1]) if i not in overwritten]
    network = Network(instructions, layers, outputs).eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return network, shape


def _make_input(shape: Shape, batch: int, layout: str, seed: int) -> torch.Tensor:
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    return x[:, :, :, torch.arange(shape[2])].transpose(2, 3).contiguous().transpose(2, 3) if layout == "strided" else x


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())


@given(
    networks(),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(["contiguous", "channels_last", "strided"]),
    st.sampled_from(["auto", "direct", "winograd", "strassen"]),
    st.integers(0, 2**31 - 1),
)
@fuzz
def test_random_networks(case: tuple[Network, Shape], batch: int, layout: str, algorithm: str, seed: int) -> None:
    network, shape = case
    x = _make_input(shape, batch, layout, seed)
    try:
        fast = resfuse.fuse(network, algorithm=algorithm)
    except resfuse.UnsupportedModelError:
        return
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(x.double())
        eager = network(x.clone())
        got = fast(x.clone())
    # Strides that are no memory format, in front of layers that keep them, are torch's.
    if not (layout == "strided" and "memory format" in str(resfuse.report(fast).last_native_reason)):
        assert resfuse.report(fast).native_calls == 0, resfuse.report(fast).last_native_reason
    # Sums may cancel: errors are measured against the largest values that flow, not against what is left of them.
    for g, e, t in zip(got, exact, eager, strict=True):
        assert g.shape == e.shape
        scale = max(float(e.square().mean().sqrt()), 0.05)
        assert _error(g, e) <= 8 * max(_error(t, e), 3e-7 * scale * len(network.instructions) ** 0.5)


@given(networks(SMOOTH), st.sampled_from([1, 3]), st.integers(0, 2**31 - 1))
@settings(fuzz, max_examples=max(CASES // 3, 1))
def test_gradients_of_random_networks(case: tuple[Network, Shape], batch: int, seed: int) -> None:
    network, shape = case
    x = _make_input(shape, batch, "contiguous", seed)
    try:
        fast = resfuse.fuse(copy.deepcopy(network))
    except resfuse.UnsupportedModelError:
        return

    def gradients(module: nn.Module, source: torch.Tensor) -> list[torch.Tensor]:
        source = source.clone().requires_grad_()
        generator = torch.Generator().manual_seed(seed)
        # Through one more operation: an in-place sum must not write to a leaf.
        loss = sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in module(source * 1.0))
        loss.backward()  # type: ignore[union-attr]
        parameters = [p.grad for _, p in sorted(module.named_parameters())]
        return [source.grad, *parameters]  # type: ignore[list-item]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", resfuse.GradientsEnabledWarning)
        got = gradients(fast, x)
    exact, eager = gradients(copy.deepcopy(network).double(), x.double()), gradients(network, x)
    assert resfuse.report(fast).native_calls == 0, resfuse.report(fast).last_native_reason
    # A sum of gradients may cancel: errors are measured against the largest.
    scale = max(0.05, *(float(e.square().mean().sqrt()) for e in exact if e is not None))
    for g, e, t in zip(got, exact, eager, strict=True):
        assert (g is None) == (e is None) == (t is None)
        if e is not None:
            assert _error(g, e) <= 10 * max(_error(t, e), 1e-6 * scale * len(network.instructions) ** 0.5)


def test_the_fuzzer_reaches_what_it_should() -> None:
    """Of its networks most are fused whole, and every instruction comes up."""
    kinds: set[str] = set()
    whole = []

    @given(networks())
    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
    def look(case: tuple[Network, Shape]) -> None:
        network, _ = case
        kinds.update(kind for kind, _, _ in network.instructions)
        try:
            whole.append(not resfuse.report(resfuse.fuse(network)).native)
        except resfuse.UnsupportedModelError:
            whole.append(False)

    look()
    assert kinds == {"module", "activation", "add", "add in place", "gate", "global pool", "scale", "join", "part", "like",
                     "norm of pixels", "product"}  # fmt: skip
    assert sum(whole) > 0.4 * len(whole), f"{sum(whole)} of {len(whole)}"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"inputs":[3],"layers":[{"kind":"fft"}],"outputs":[]}', "\x00" * 9])
def test_program_texts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="program"):
        torch.ops.resfuse.program([torch.randn(1, 3, 4, 4)], [], text)


_SPEC = {
    "inputs": [4, 4],
    "layers": [
        {"name": "a", "input": 0, "output": 2, "in_channels": 4, "out_channels": 8, "weight": 0, "bias": 1,
         "batch_norm": {"weight": 2, "bias": 3, "running_mean": 4, "running_var": 5, "eps": 1e-5}, "kernel_size": [3, 3],
         "stride": [1, 1], "dilation": [1, 1], "padding": [1, 1, 1, 1], "groups": 1, "activation": "relu",
         "residual": None, "algorithm": "auto", "kind": "conv"},
        {"name": "b", "input": 2, "output": 3, "in_channels": 8, "out_channels": 4, "weight": 6, "bias": None,
         "batch_norm": None, "kernel_size": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1, 1, 1, 1],
         "groups": 2, "activation": "none", "residual": 1, "algorithm": "direct", "kind": "conv"},
        {"name": "p", "input": 3, "output": 4, "kernel_size": [2, 2], "stride": [2, 2], "dilation": [1, 1],
         "padding": [0, 0, 0, 0], "ceil_mode": False, "kind": "max_pool"},
        {"name": "v", "input": 4, "output": 5, "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1],
         "ceil_mode": True, "count_include_pad": False, "kind": "avg_pool"},
        {"name": "g", "input": 5, "output": 6, "kind": "global_avg_pool"},
        {"name": "e", "input": 5, "output": 7, "batch_norm": None, "gate": 6, "residual": 4, "activation": "silu",
         "slope": 0.1, "kind": "affine"},
        {"name": "c", "input": 4, "output": 8, "parts": [4, 7], "kind": "concat"},
        {"name": "s", "input": 8, "output": 9, "first_channel": 2, "channels": 4, "kind": "slice"},
        {"name": "z", "input": 9, "output": 10, "padding": [1, 0, 2, 1], "kind": "pad"},
        {"name": "u", "input": 10, "output": 11, "bilinear": True, "align_corners": False, "size": None,
         "scale": [1.5, 2.0], "like": None, "kind": "resize"},
        {"name": "n", "input": 11, "output": 12, "weight": 7, "bias": None, "eps": 1e-3, "groups": 0, "residual": None,
         "activation": "silu", "slope": 0.0, "kind": "norm"},
    ],
    "outputs": [{"buffer": 7, "rank": 4}, {"buffer": 6, "rank": 2}, {"buffer": 12, "rank": 4}],
}  # fmt: skip
_STRANGE = st.sampled_from(
    [None, -1, 0, 1, 2, 3, 5, 7, 64, 10**6, 2**31, 2**63, -(2**40), 0.5, float("nan"), 1e300, "", "conv", "relu", "same",
     "softmax", True, [], [1], [0, 0], [1, 2], [-1, 3], [1, 1, 1, 1], [9, 9, 9, 9], [2**40, 1], {}, {"eps": 1}]
)  # fmt: skip


def _places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@given(st.data())
@fuzz
def test_mutated_programs_raise_or_run(data: st.DataObject) -> None:
    """Whatever a program's text says: an exception or a result, never a crash, and the process goes on."""
    spec = copy.deepcopy(_SPEC)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(_places(spec)[1:]))
        holder = spec
        try:
            for key in parents:
                holder = holder[key]  # type: ignore[index]
            if data.draw(st.integers(0, 5)) == 0 and isinstance(holder, dict):
                holder.pop(last, None)
            else:
                holder[last] = copy.deepcopy(data.draw(_STRANGE))  # type: ignore[index]
        except (TypeError, KeyError, IndexError, AttributeError):
            continue  # an earlier change took the place away
    shapes = [(8, 4, 3, 3), (8,), (8,), (8,), (8,), (8,), (4, 4, 3, 3), (4,)]
    parameters = [torch.rand(shape) + 0.5 for shape in shapes]
    inputs = [torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)]
    operator = data.draw(st.sampled_from([torch.ops.resfuse.program, torch.ops.resfuse.block]))
    try:
        results = operator(inputs, parameters, json.dumps(spec))
    except (ValueError, TypeError, IndexError, KeyError, RuntimeError, MemoryError, OverflowError, AttributeError,
            AssertionError, ZeroDivisionError):  # fmt: skip
        return
    assert all(isinstance(result, torch.Tensor) for result in results)
