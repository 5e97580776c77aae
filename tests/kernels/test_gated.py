"""A gate and the 1x1 convolution behind it, as one step: the gate multiplies the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse.engine.executor import Executor
from resfuse.engine.spec import AffineSpec, ConvSpec, GlobalAvgPoolSpec, OutputSpec, ProgramSpec
from tests.conftest import examples
from tests.programs import check, isas, make_input

ACTIVATIONS = ("none", "relu", "silu", "prelu")


def program(
    channels: int, outputs: int, activation: str = "none", residual: bool = False, keeps_gated: bool = False
) -> tuple[ProgramSpec, list[torch.Tensor]]:
    """As squeeze-and-excitation is written: the gate is computed from the pool of what it multiplies."""
    generator = torch.Generator().manual_seed(channels * outputs)

    def parameter(*size: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * scale

    layers = (
        ConvSpec("first", 0, 1, channels, channels, 0),
        ConvSpec("other", 0, 2, channels, outputs, 1),
        GlobalAvgPoolSpec("pool", 1, 3),
        ConvSpec("gate", 3, 4, channels, channels, 0, activation="sigmoid"),
        AffineSpec("multiply", 1, 5, gate=4),
        ConvSpec("project", 5, 6, channels, outputs, 1, 2, residual=2 if residual else None, activation=activation,
                 slopes=3 if activation == "prelu" else None),
    )  # fmt: skip
    parameters = [
        parameter(channels, channels, 1, 1, scale=channels**-0.5),
        parameter(outputs, channels, 1, 1, scale=channels**-0.5),
        parameter(outputs),
        parameter(outputs, scale=0.3),
    ]
    returned = (OutputSpec(6), *([OutputSpec(5)] if keeps_gated else []))
    return ProgramSpec((channels,), layers, returned), parameters


def algorithm(spec: ProgramSpec, isa: str, x: torch.Tensor) -> str:
    """How the gate's product is computed."""
    return next(row["algorithm"] for row in Executor(spec, isa).plan([x]).layers() if row["name"] == "multiply")


@settings(max_examples=examples(60), deadline=None)
@given(isas, st.data())
def test_any_size(isa: str, data: st.DataObject) -> None:
    channels, outputs = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 90))
    height = data.draw(st.integers(1, 24))
    width = data.draw(st.integers(1, 24))
    spec, parameters = program(channels, outputs, data.draw(st.sampled_from(ACTIVATIONS)), data.draw(st.booleans()))
    layout = data.draw(st.sampled_from(["contiguous", "channels_last"]))
    x = make_input((data.draw(st.integers(1, 3)), channels, height, width), layout, torch.Generator().manual_seed(0))
    check(spec, isa, [x], parameters)
    assert (algorithm(spec, isa, x) == "in project") == (height * width >= 4 * outputs)


def test_what_others_read_is_computed(isa: str) -> None:
    spec, parameters = program(24, 8, residual=True, keeps_gated=True)
    x = torch.randn(2, 24, 14, 14)
    assert algorithm(spec, isa, x) == "elementwise"
    check(spec, isa, [x], parameters)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_same_bits_with_any_number_of_threads(isa: str, threads: int) -> None:
    spec, parameters = program(70, 40, residual=True)
    x = torch.randn(2, 70, 28, 30, generator=torch.Generator().manual_seed(1))
    executor = Executor(spec, isa)
    torch.set_num_threads(1)
    (want,) = executor.run([x], parameters)
    torch.set_num_threads(threads)
    (got,) = executor.run([x], parameters)
    assert torch.equal(got, want)
    assert algorithm(spec, isa, x) == "in project"
