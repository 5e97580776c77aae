"""A plan's four jobs: sizes, algorithms, segments, placement."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse import _core
from resfuse.engine.executor import build_program
from resfuse.engine.spec import ConvSpec, OutputSpec, ProgramSpec
from tests.engine.specs import program_specs

sides = st.integers(1, 40)
LINE = 64


def plan_of(spec: ProgramSpec, batch: int, height: int, width: int, threads: int, dense: bool = True) -> Any:
    return _core.Plan(build_program(spec), batch, [(height, width, dense)], threads)


@settings(max_examples=100)
@given(spec=program_specs(), height=sides, width=sides)
def test_sizes_are_those_of_torch(spec: ProgramSpec, height: int, width: int) -> None:
    plan = plan_of(spec, 1, height, width, 1)
    maps = [torch.empty(1, spec.inputs[0], height, width, device="meta")]
    for layer, row in zip(spec.layers, plan.layers(), strict=True):
        x = maps[layer.input]
        if isinstance(layer, ConvSpec):
            weight = torch.empty(
                layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size, device="meta"
            )
            assert layer.padding is not None
            y = torch.nn.functional.conv2d(x, weight, None, layer.stride, layer.padding[:2], 1, layer.groups)
        elif layer.kind == "max_pool":
            y = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        elif layer.kind == "avg_pool":
            y = torch.nn.functional.avg_pool2d(x, 3, 2, 1)
        else:
            y = x if layer.kind == "affine" else x.mean((2, 3), keepdim=True)
        maps.append(y)
        assert row["output"] == tuple(y.shape[1:])
    for buffer, x in zip(plan.buffers(), maps, strict=False):
        assert buffer["shape"] == tuple(x.shape[1:])
        assert buffer["dtype"] == "fp32"
        assert buffer["image_bytes"] >= 4 * x.numel()


@pytest.mark.parametrize(
    ("text", "inputs"), [("has no pixels", (0, 8)), ("smaller than the kernel", (2, 8)), ("the residual is", (9, 9))]
)
def test_sizes_that_do_not_fit_are_named(text: str, inputs: tuple[int, int]) -> None:
    layer = ConvSpec("layer", 0, 2, 4, 4, 0, kernel_size=(3, 3), residual=1)
    program = build_program(ProgramSpec((4, 4), (layer,), (OutputSpec(2),)))
    with pytest.raises(ValueError, match=text):
        _core.Plan(program, 1, [(*inputs, True), (3, 3, True)], 1)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("channels", "size", "groups"), [(64, 56, 1), (256, 14, 1), (512, 7, 1), (128, 28, 32), (24, 9, 24)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_cheapest_algorithm_that_applies_is_taken(
    isa: str, kernel: int, channels: int, size: int, groups: int, stride: int
) -> None:
    pad = kernel // 2
    layer = ConvSpec(
        "layer", 0, 1, channels, channels, 0, kernel_size=(kernel, kernel), stride=(stride, stride),
        padding=(pad,) * 4, groups=groups,
    )  # fmt: skip

    def chosen(request: str, threads: int = 1) -> tuple[str, float]:
        spec = ProgramSpec((channels,), (dataclasses.replace(layer, algorithm=request),), (OutputSpec(1),))
        row = _core.Plan(build_program(spec, isa), 4, [(size * stride, size * stride, True)], threads).layers()[0]
        return row["algorithm"], row["estimated_cycles"] * threads

    name, cycles = chosen("auto")
    assert name in _core.algorithms()
    assert chosen("auto", 7)[0] == name  # results would differ with the number of threads
    least_gain = 1.06  # one that takes more memory must be faster by a few percent
    for request in ("direct", "winograd", "winograd_f2", "winograd_f4", "strassen", "paired"):
        if request == "strassen" and _core.kernel_table(isa)["name"] == "zen4":
            continue  # taken on request only, where there are paired products
        assert cycles <= least_gain * chosen(request)[1]


@settings(max_examples=100)
@given(spec=program_specs(), size=sides, batch=st.sampled_from([1, 2, 5, 64, 300]), threads=st.sampled_from([1, 2, 8]))
def test_segments_cover_all_steps_once(spec: ProgramSpec, size: int, batch: int, threads: int) -> None:
    plan = plan_of(spec, batch, size, size, threads, dense=False)
    steps = len(spec.layers) + sum(b["external"] for b in plan.buffers()[len(spec.layers) + 1 :])
    expected = 0
    for first, last, images in plan.segments():
        assert first == expected
        assert last >= first
        assert 1 <= images <= batch
        expected = last + 1
    assert expected == steps
    for before, after in zip(plan.segments(), plan.segments()[1:], strict=False):
        assert before[2] != after[2]  # else they would be one


@settings(max_examples=200)
@given(
    spec=program_specs(), size=sides, batch=st.sampled_from([1, 2, 40, 300]), threads=st.sampled_from([1, 2, 8]),
    dense=st.booleans(),
)  # fmt: skip
def test_buffers_that_are_alive_together_do_not_overlap(
    spec: ProgramSpec, size: int, batch: int, threads: int, dense: bool
) -> None:
    plan = plan_of(spec, batch, size, size, threads, dense)
    segments = plan.segments()
    residuals = {layer.output: layer.residual for layer in spec.layers if getattr(layer, "residual", None) is not None}

    def images_and_life(buffer: dict[str, Any]) -> tuple[int, int, int]:
        first, last = buffer["steps"]
        of_first, of_last = (next(s for s in segments if s[1] >= step) for step in (first, last))
        if not buffer["whole_batch"]:
            assert of_first == of_last  # a wave's images do not outlive it
            return of_first[2], first, last
        # Of several waves a segment's steps run again and again.
        return batch, of_first[0] if of_first[2] < batch else first, of_last[1] if of_last[2] < batch else last

    placed = []
    for number, buffer in enumerate(plan.buffers()):
        if buffer["external"] or buffer["steps"] is None:
            continue
        images, first, last = images_and_life(buffer)
        end = buffer["offset"] + images * buffer["image_bytes"]
        assert buffer["offset"] % LINE == 0
        assert end <= plan.workspace_bytes
        placed.append((number, buffer["offset"], end, first, last))
    for i, (a, begin_a, end_a, first_a, last_a) in enumerate(placed):
        for b, begin_b, end_b, first_b, last_b in placed[i + 1 :]:
            if last_a < first_b or last_b < first_a or end_a <= begin_b or end_b <= begin_a:
                continue
            # A sum may take the place of its residual, which ends with it, element by element.
            assert residuals.get(b) == a, (a, b)
            assert begin_a == begin_b
            assert plan.buffers()[a]["steps"][1] == plan.buffers()[b]["steps"][0]


def test_types_that_a_level_does_not_compute_are_refused(isa: str) -> None:
    types = _core.kernel_types(isa)
    assert "programs" in types["fp32"]
    text = ProgramSpec((3,), (), ()).to_text()
    for dtype, uses in types.items():
        if dtype == "u8":  # within programs
            with pytest.raises(ValueError, match="inputs are real numbers"):
                _core.Program(text, isa, dtype)
        elif "programs" in uses:
            assert _core.Program(text, isa, dtype).isa == isa
        else:
            with pytest.raises(ValueError, match=f"got '{dtype}'.*{isa}"):
                _core.Program(text, isa, dtype)
    with pytest.raises(ValueError, match="dtype: got 'int3', want one of 'fp32'"):
        _core.Program(text, isa, "int3")
