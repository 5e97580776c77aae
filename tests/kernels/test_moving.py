"""Concatenations, slices, padding, resampling and norms inside programs, on every instruction-set level against fp64.

Which buffers lie in others is the plan's choice: programs of random layers over a handful of buffers meet all of them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resfuse.engine.executor import Executor, build_program
from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    ChannelShuffleSpec,
    ConcatSpec,
    ConvSpec,
    DepthToSpaceSpec,
    LayerSpec,
    MaxPoolSpec,
    NormSpec,
    OutputSpec,
    PadSpec,
    ProgramSpec,
    ResizeSpec,
    SliceSpec,
)
from tests.conftest import examples
from tests.programs import LAYOUTS, check, isas, make_input
from tests.reference import assert_accurate, run_buffers, run_reference

ACTIVATIONS = ("none", "relu", "silu", "hardswish", "leaky_relu", "prelu", "clamp", "hardtanh")
BOUNDS = ((-0.5, 0.5), (None, 0.3), (0.1, None), (-1.0, 2.5), (0.4, 0.2))
BLOCKS = ((1, 1), (2, 2), (1, 2), (3, 1), (2, 3))  # of a depth_to_space
Extent = tuple[int, int]


class _Builder:
    """A program that grows, and the extents and channels of its buffers."""

    def __init__(self, inputs: tuple[int, ...], extent: Extent, seed: int) -> None:
        self.inputs = inputs
        self.channels = list(inputs)
        self.extents = [extent] * len(inputs)
        self.layers: list[LayerSpec] = []
        self.parameters: list[torch.Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def parameter(self, *shape: int, scale: float = 1.0) -> int:
        self.parameters.append(torch.randn(*shape, generator=self.generator) * scale)
        return len(self.parameters) - 1

    def slopes(self, activation: str, channels: int) -> int | None:
        return self.parameter(channels, scale=0.3) if activation == "prelu" else None

    def add(self, layer: LayerSpec, channels: int, extent: Extent) -> None:
        self.layers.append(layer)
        self.channels.append(channels)
        self.extents.append(extent)

    @property
    def next(self) -> int:
        return len(self.channels)


@st.composite
def programs(draw: st.DrawFn) -> tuple[ProgramSpec, Extent, list[torch.Tensor]]:
    extent = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    inputs = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=2)))
    b = _Builder(inputs, extent, draw(st.integers(0, 2**31 - 1)))
    kinds = [
        "conv",
        "conv",
        "concat",
        "concat",
        "slice",
        "pad",
        "depth_to_space",
        "channel_shuffle",
        "resize",
        "pool",
        "affine",
        "norm",
    ]
    for _ in range(draw(st.integers(2, 9))):
        kind = draw(st.sampled_from(kinds))
        source = draw(st.integers(max(0, b.next - 3), b.next - 1))
        channels, (height, width) = b.channels[source], b.extents[source]
        alike = [i for i in range(b.next) if b.extents[i] == b.extents[source]]
        same = [None, *(i for i in alike if b.channels[i] == channels)]
        activation = draw(st.sampled_from(ACTIVATIONS))
        bounds = draw(st.sampled_from(BOUNDS)) if activation in ("clamp", "hardtanh") else None
        if kind == "conv":
            kernel = draw(st.sampled_from([(1, 1), (3, 3)]))
            grouped = draw(st.integers(0, 3)) == 0
            groups = channels if grouped else 1
            out = channels if grouped else draw(st.integers(1, 24))
            residual = draw(st.sampled_from([None, *(i for i in alike if b.channels[i] == out)]))
            weight = b.parameter(out, channels // groups, *kernel, scale=(channels // groups * kernel[0] ** 2) ** -0.5)
            scale = draw(st.sampled_from([None, b.parameter(out)]))
            layer: LayerSpec = ConvSpec(
                "conv", source, b.next, channels, out, weight, b.parameter(out), kernel_size=kernel, groups=groups,
                padding=(kernel[0] // 2,) * 4, activation=activation, residual=residual, slope=0.2, channel_scale=scale,
                slopes=b.slopes(activation, out), bounds=bounds,
            )  # fmt: skip
            b.add(layer, out, (height, width))
        elif kind == "concat":
            parts = (source, *draw(st.lists(st.sampled_from(alike), max_size=3)))
            if sum(b.channels[p] for p in parts) <= 120:
                layer = ConcatSpec("concat", source, b.next, parts)
                b.add(layer, sum(b.channels[p] for p in parts), (height, width))
        elif kind == "slice":
            first = draw(st.integers(0, channels - 1))
            count = draw(st.integers(1, channels - first))
            b.add(SliceSpec("slice", source, b.next, first, count), count, (height, width))
        elif kind == "pad":
            top, left, bottom, right = draw(st.tuples(*[st.integers(-1, 2)] * 4))
            made = (height + top + bottom, width + left + right)
            if min(made) > 0:
                b.add(PadSpec("pad", source, b.next, (top, left, bottom, right)), channels, made)
        elif kind == "depth_to_space":
            block = draw(st.sampled_from([b for b in BLOCKS if channels % (b[0] * b[1]) == 0]))
            crop = draw(st.tuples(*[st.integers(0, 2)] * 4))
            made = (height * block[0] - crop[0] - crop[2], width * block[1] - crop[1] - crop[3])
            if min(made) > 0 and max(made) < 40:
                b.add(DepthToSpaceSpec("unfold", source, b.next, block, crop), channels // (block[0] * block[1]), made)
        elif kind == "channel_shuffle":
            groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 5) if channels % g == 0]))
            b.add(ChannelShuffleSpec("shuffle", source, b.next, groups), channels, (height, width))
        elif kind == "resize":
            bilinear = draw(st.booleans())
            corners = bilinear and draw(st.booleans())
            how = draw(st.sampled_from(["size", "scale", "like"]))
            size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12))) if how == "size" else None
            scale_by = draw(st.tuples(*[st.sampled_from([1.0, 2.0, 1.5, 3.0])] * 2)) if how == "scale" else None
            like = draw(st.integers(0, b.next - 1)) if how == "like" else None
            layer = ResizeSpec("resize", source, b.next, bilinear, corners, size, scale_by, like)
            made = size or (b.extents[like] if like is not None else (1, 1))
            if scale_by is not None:
                made = int(height * scale_by[0]), int(width * scale_by[1])
            b.add(layer, channels, made)
        elif kind == "pool" and min(height, width) >= 2:
            made = (height - 1, width - 1)
            if draw(st.booleans()):
                layer = MaxPoolSpec("pool", source, b.next, (2, 2), (1, 1), (1, 1), (0, 0, 0, 0), False)
            else:
                layer = AvgPoolSpec("pool", source, b.next, (2, 2), (1, 1), (0, 0, 0, 0), False, True)
            b.add(layer, channels, made)
        elif kind == "affine":
            residual, product, scale = draw(st.sampled_from(same)), draw(st.sampled_from(same)), b.parameter(channels)
            layer = AffineSpec("affine", source, b.next, residual=residual, activation=activation, slope=0.2,
                               channel_scale=scale, product=product, slopes=b.slopes(activation, channels), bounds=bounds)  # fmt: skip
            b.add(layer, channels, (height, width))
        elif kind == "norm" and channels > 1:
            groups = draw(st.sampled_from([0, *(g for g in (1, 2, 4) if channels % g == 0 and channels // g > 1)]))
            residual = draw(st.sampled_from(same)) if groups else None
            places = draw(st.sampled_from([(None, None), (b.parameter(channels), b.parameter(channels))]))
            # A large epsilon: what is divided by a deviation near zero has no digits left in fp32 either.
            layer = NormSpec("norm", source, b.next, *places, 0.5, groups, residual, activation, 0.2,
                             b.slopes(activation, channels), bounds)  # fmt: skip
            b.add(layer, channels, (height, width))
    if not b.layers:
        b.add(SliceSpec("slice", 0, b.next, 0, 1), 1, extent)
    made_here = list(range(len(inputs), b.next))
    outputs = [b.next - 1, *draw(st.lists(st.sampled_from(made_here), max_size=2))]
    spec = ProgramSpec(inputs, tuple(b.layers), tuple(OutputSpec(i) for i in dict.fromkeys(outputs)))
    return spec, extent, b.parameters


def _norm_of_equal_numbers(spec: ProgramSpec, buffers: list[torch.Tensor]) -> bool:
    """Some norm sees (clamped) numbers that are all alike: 0 in exact arithmetic, rounding errors divided by eps in fp32."""
    for layer in spec.layers:
        if isinstance(layer, NormSpec):
            x = buffers[layer.input].double()
            rows = x.unflatten(1, (layer.groups, -1)).flatten(2) if layer.groups else x.movedim(1, -1)
            alike = (rows.amax(-1) - rows.amin(-1) < 1e-5) & (rows[..., 0] != 0)
            if rows.shape[-1] > 1 and bool(alike.any()):
                return True
    return False


@given(programs(), isas, st.sampled_from([1, 3]), st.sampled_from(LAYOUTS), st.booleans())
@settings(max_examples=examples(250))
def test_programs_that_move_elements(program, isa, batch, layout, planes) -> None:
    spec, extent, parameters = program
    generator = torch.Generator().manual_seed(batch)
    inputs = [make_input((batch, channels, *extent), layout, generator) for channels in spec.inputs]
    assume(not _norm_of_equal_numbers(spec, run_buffers(spec, inputs, parameters, torch.float64)))
    exact = run_reference(spec, inputs, parameters, torch.float64)
    eager = run_reference(spec, inputs, parameters, torch.float32)
    got = Executor(spec, isa).run(inputs, parameters, tuple(range(len(spec.outputs))) if planes else ())
    for g, e, t in zip(got, exact, eager, strict=True):
        assert_accurate(g, e, t, factor=8.0, layers=4 * len(spec.layers))


@given(programs(), isas, st.sampled_from([torch.bfloat16, torch.float16]))
@settings(max_examples=examples(80))
def test_the_same_of_half_precision(program, isa, dtype) -> None:
    spec, extent, parameters = program
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, channels, *extent, generator=generator).to(dtype) for channels in spec.inputs]
    parameters = [p.to(dtype) for p in parameters]
    exact = run_reference(spec, inputs, parameters, torch.float64)
    eager = run_reference(spec, inputs, parameters, dtype)
    for g, e, t in zip(Executor(spec, isa, dtype).run(inputs, parameters), exact, eager, strict=True):
        scale = max(float(e.square().mean().sqrt()), 1e-3)
        ours, torchs = (float((y.double() - e).square().mean().sqrt()) for y in (g, t))
        step = 2.0**-8 if dtype is torch.bfloat16 else 2.0**-11
        assert ours <= 2 * torchs + len(spec.layers) * step * scale


def _buffers(spec: ProgramSpec, channels: int, planes: tuple[int, ...] = ()) -> list[dict]:
    x = torch.randn(1, channels, 6, 6)
    return Executor(spec).plan([x], planes).buffers()


def _conv(source: int, output: int, channels: int, out: int) -> ConvSpec:
    return ConvSpec("conv", source, output, channels, out, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1))


def test_what_is_joined_lies_in_place() -> None:
    """Parts and slices need no memory of their own, whichever way they are nested."""
    layers = (
        _conv(0, 1, 8, 8),
        _conv(1, 2, 8, 8),
        ConcatSpec("first", 1, 3, (1, 2)),
        SliceSpec("slice", 3, 4, 4, 8),
        _conv(4, 5, 8, 8),
        ConcatSpec("second", 3, 6, (3, 5)),
        _conv(6, 7, 24, 4),
    )
    spec = ProgramSpec((8,), layers, (OutputSpec(7),))
    assert [row["view_of"] for row in _buffers(spec, 8)][:8] == [-1, 6, 6, 6, 6, 6, -1, -1]


def test_what_leaves_the_program_is_copied() -> None:
    layers = (_conv(0, 1, 8, 8), _conv(1, 2, 8, 8), ConcatSpec("join", 1, 3, (1, 2)), SliceSpec("slice", 3, 4, 4, 8))
    spec = ProgramSpec((8,), layers, (OutputSpec(1), OutputSpec(3), OutputSpec(4)))
    views = [row["view_of"] for row in _buffers(spec, 8)]
    assert views[1] == -1  # the caller's tensor
    assert views[2] == 3
    assert views[4] == -1
    x, weight = torch.randn(1, 8, 6, 6), torch.randn(8, 8, 3, 3)
    check(spec, "generic", [x], [weight])


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (ConcatSpec("join", 0, 1, ()), "parts: want some"),
        (ConcatSpec("join", 0, 1, (0, 9)), "got buffer 9"),
        (SliceSpec("cut", 0, 1, 6, 3), "got 3 channels from 6 on, want some of 8"),
        (SliceSpec("cut", 0, 1, -1, 3), "channels from -1"),
        (DepthToSpaceSpec("unfold", 0, 1, (3, 1)), "3 x 1 pixels must divide 8 channels"),
        (DepthToSpaceSpec("unfold", 0, 1, (0, 2)), "block: got 0"),
        (DepthToSpaceSpec("unfold", 0, 1, (2, 2), (0, -1, 0, 0)), "crop: got -1"),
        (ResizeSpec("up", 0, 1, False, size=(0, 3)), "size: got 0"),
        (ResizeSpec("up", 0, 1, False, scale=(-2.0, 1.0)), "scale: got -2"),
        (NormSpec("norm", 0, 1, None, None, 1e-5, 3), "groups = 3 must divide 8"),
        (NormSpec("norm", 0, 1, None, None, -1.0, 0), "eps: got -1"),
        (NormSpec("norm", 0, 1, None, None, 1e-5, 0, residual=0), "adds no residual"),
    ],
)
def test_what_cannot_be_is_named(layer: LayerSpec, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_program(ProgramSpec((8,), (layer,), ()))


def test_a_crop_leaves_something() -> None:
    spec = ProgramSpec((4,), (DepthToSpaceSpec("unfold", 0, 1, (2, 2), (1, 0, 1, 0)),), (OutputSpec(1),))
    with pytest.raises(ValueError, match="unfold: cropping leaves 0 x 6 of an image of 2 x 6"):
        Executor(spec).run([torch.randn(1, 4, 1, 3)], [])


def test_joined_images_are_of_one_size() -> None:
    layers = (
        MaxPoolSpec("pool", 0, 1, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0), False),
        ConcatSpec("join", 0, 2, (0, 1)),
    )
    spec = ProgramSpec((4,), layers, (OutputSpec(2),))
    with pytest.raises(ValueError, match="join: the part of a concatenation is 3 x 3, want 6 x 6"):
        Executor(spec).run([torch.randn(1, 4, 6, 6)], [])
