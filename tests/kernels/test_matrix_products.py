"""Shapes that products of small operands cut in their own ways, on every level: bytes bit for bit, bf16 against fp64.

Long and short runs, runs of no even parts, rows of one and of several register tiles, narrow inputs.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from resfuse.engine.executor import Executor
from resfuse.engine.spec import ConvSpec, MaxPoolSpec, OutputSpec, ProgramSpec
from tests.conftest import ISAS
from tests.kernels.test_half_precision import assert_rounded
from tests.kernels.test_int8 import assert_same_bits, chain
from tests.programs import make_tensors, program_of
from tests.reference import run_reference

# channels in and out, window, stride, extent, groups
SHAPES = {
    "even parts of a step": (96, 48, 3, 2, (9, 35), 1),
    "no even parts": (68, 40, 3, 1, (5, 33), 1),
    "no even parts of a pixel": (134, 70, 1, 1, (3, 50), 1),
    "a step and more": (64, 96, 3, 1, (20, 57), 1),
    "many steps": (520, 33, 1, 1, (7, 7), 1),
    "rows of half a tile": (64, 64, 3, 1, (8, 9), 1),
    "groups": (136, 64, 3, 1, (4, 30), 2),
    "stem": (3, 64, 7, 2, (31, 45), 1),
    "stem with few rows": (3, 33, 5, 1, (3, 20), 1),
    "narrow": (21, 32, 3, 1, (4, 18), 1),
    "too wide for a line": (22, 32, 3, 1, (4, 18), 1),
    "one channel": (1, 40, 3, 1, (28, 28), 1),
    "one channel, short rows": (1, 40, 3, 1, (5, 4), 1),
}


def case_of(shape: str, residual: bool) -> tuple[ConvSpec, tuple[int, int]]:
    channels, out, window, stride, extent, groups = SHAPES[shape]
    layer = ConvSpec(
        "conv", 0, 2 if residual else 1, channels, out, 0, bias=5, kernel_size=(window, window), stride=(stride, stride),
        padding=(window // 2,) * 4, groups=groups, activation="relu", residual=1 if residual else None,
    )  # fmt: skip
    return layer, extent


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("zero_point", [0, 131])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes(isa: str, shape: str, zero_point: int, residual: bool) -> None:
    layer, extent = case_of(shape, residual)
    inputs, parameters = make_tensors(program_of(layer), extent, "contiguous", 2, len(shape))
    layer = dataclasses.replace(layer, reads=(0.03, zero_point), writes=(0.02, 0), algorithm="direct")
    assert_same_bits(chain(layer, channels=program_of(layer).inputs), isa, inputs, parameters)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16(isa: str, shape: str, residual: bool) -> None:
    layer, extent = case_of(shape, residual)
    spec = program_of(layer)
    inputs, parameters = make_tensors(spec, extent, "contiguous", 2, len(shape))
    inputs, parameters = [x.bfloat16() for x in inputs], [p.bfloat16() for p in parameters]
    (got,) = Executor(spec, isa, torch.bfloat16).run(inputs, parameters)
    (exact,) = run_reference(spec, inputs, parameters, torch.float64)
    assert_rounded(got, exact)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bytes_", [False, True])
def test_a_stem_and_its_pool(isa: str, bytes_: bool) -> None:
    """What lies beside an image's rows in memory is not finite, and no part of its results."""
    layer, _ = case_of("stem", False)
    pool = MaxPoolSpec("pool", 1, 2, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), ceil_mode=False)
    around = torch.full((2, 3, 66, 77), float("inf"))
    around[:, :, 2:-2, 3:-3] = torch.randn(2, 3, 62, 71, generator=torch.Generator().manual_seed(5))
    x = around[:, :, 2:-2, 3:-3]
    _, parameters = make_tensors(program_of(layer), (62, 71), "contiguous", 2, 3)
    if bytes_:
        layer = dataclasses.replace(layer, reads=(0.02, 120), writes=(0.03, 0))
        return assert_same_bits(chain(layer, pool, channels=(3,)), isa, [x], parameters)
    spec = ProgramSpec((3,), (layer, pool), (OutputSpec(2),))
    halves = [p.bfloat16() for p in parameters]
    (got,) = Executor(spec, isa, torch.bfloat16).run([x.bfloat16()], halves)
    (exact,) = run_reference(spec, [x.bfloat16()], halves, torch.float64)
    assert_rounded(got, exact)
