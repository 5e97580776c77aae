"""What a plan does with memory: planes, residuals that are overwritten, spaced pixels, empty batches, packing."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse import _core
from resfuse.engine.executor import Executor, build_program
from resfuse.engine.spec import (
    ConvSpec,
    GlobalAvgPoolSpec,
    MaxPoolSpec,
    OutputSpec,
    ProgramSpec,
)
from tests.conftest import ISAS, examples
from tests.programs import LAYOUTS, check, isas, make_input, program_of
from tests.reference import assert_accurate, run_reference


def test_empty_batch(isa: str) -> None:
    layer = ConvSpec("conv", 0, 1, 3, 8, 0, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    spec = ProgramSpec((3,), (layer,), (OutputSpec(1),))
    got = Executor(spec, isa).run([torch.empty(0, 3, 9, 8)], [torch.randn(8, 3, 3, 3)])[0]
    assert got.shape == (0, 8, 5, 4)


@given(isas, st.data())
@settings(max_examples=examples(25))
def test_residual_stage(isa: str, data: st.DataObject) -> None:
    """Blocks with shared buffers, several batch sizes (waves) and every buffer as an output too."""
    channels, size, batch = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 17)), data.draw(st.integers(1, 40))
    stride = data.draw(st.integers(1, 2))
    algorithm = data.draw(st.sampled_from(["auto", "direct", "winograd"]))
    options = {"kernel_size": (3, 3), "padding": (1, 1, 1, 1), "activation": "relu", "algorithm": algorithm}
    layers = (
        ConvSpec("a", 0, 1, channels, channels, 0, stride=(stride, stride), **options),
        ConvSpec("down", 0, 2, channels, channels, 1, stride=(stride, stride)),
        ConvSpec("b", 1, 3, channels, channels, 2, residual=2, **options),
        ConvSpec("c", 3, 4, channels, channels, 3, **options),
        ConvSpec("d", 4, 5, channels, channels, 4, residual=3, **options),
        GlobalAvgPoolSpec("pool", 5, 6),
    )
    outputs = tuple(OutputSpec(i) for i in range(1, 7)) if data.draw(st.booleans()) else (OutputSpec(6, rank=2),)
    parameters = [torch.randn(channels, channels, k, k) / (channels * k * k) ** 0.5 for k in (3, 1, 3, 3, 3)]
    x = make_input((batch, channels, size, size), data.draw(st.sampled_from(LAYOUTS)), torch.Generator().manual_seed(0))
    check(ProgramSpec((channels,), layers, outputs), isa, [x], parameters, factor=6.0)


@pytest.mark.parametrize("size", [5, 17])
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "strassen", "paired"])
def test_pixels_a_page_long_are_spaced(isa: str, algorithm: str, size: int) -> None:
    """Buffers whose pixels are padded, through every step that reads or writes one."""
    three = {"kernel_size": (3, 3), "padding": (1, 1, 1, 1), "algorithm": algorithm}
    layers = (
        ConvSpec("expand", 0, 1, 16, 1024, 0, activation="relu", algorithm=algorithm),
        ConvSpec("reduce", 1, 2, 1024, 16, 1, activation="relu"),
        ConvSpec("expand and add", 2, 3, 16, 1024, 0, residual=1, activation="relu", algorithm=algorithm),
        ConvSpec("3x3", 3, 4, 1024, 16, 2, **three),
        ConvSpec("back and add", 4, 5, 16, 1024, 3, residual=3, **three),
        ConvSpec("strided", 5, 6, 1024, 1024, 4, stride=(2, 2), algorithm=algorithm),
        ConvSpec("dilated", 6, 7, 1024, 16, 2, kernel_size=(3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
        ConvSpec("groups of 4, and add", 6, 8, 1024, 1024, 5, kernel_size=(3, 3), padding=(1, 1, 1, 1), groups=256),
        MaxPoolSpec("max-pool", 6, 9, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), False),
        GlobalAvgPoolSpec("pool", 6, 10),
        ConvSpec("fc", 10, 11, 1024, 7, 6),
    )
    generator = torch.Generator().manual_seed(size)
    shapes = [(1024, 16, 1), (16, 1024, 1), (16, 1024, 3), (1024, 16, 3), (1024, 1024, 1), (1024, 4, 3), (7, 1024, 1)]
    parameters = [torch.randn(k, c, r, r, generator=generator) / (c * r * r) ** 0.5 for k, c, r in shapes]
    spec = ProgramSpec((16,), layers, tuple(OutputSpec(i) for i in (2, 4, 7, 8, 9, 11)))
    check(spec, isa, [torch.randn(3, 16, size, size, generator=generator)], parameters)


def residual_chain(kernel_size: int, read_again: bool) -> tuple[ProgramSpec, list[torch.Tensor]]:
    """Two sums one after the other; the last layer reads the second one, or also the first one's residual."""
    conv = functools.partial(
        ConvSpec, in_channels=24, out_channels=24, kernel_size=(kernel_size,) * 2, padding=(kernel_size // 2,) * 4
    )
    layers = [
        conv("a", 0, 1, weight=0),
        conv("b", 1, 2, weight=1),
        conv("sum", 2, 3, weight=2, residual=1, activation="relu"),
        conv("c", 3, 4, weight=3),
        conv("sum of sums", 4, 5, weight=4, residual=3),
        conv("last", 5, 6, weight=5, residual=1 if read_again else None),
    ]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(24, 24, kernel_size, kernel_size, generator=generator) / 12 for _ in layers]
    return ProgramSpec((24,), tuple(layers), (OutputSpec(6),)), weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("read_again", [False, True])
def test_sums_overwrite_residuals_that_nothing_reads_behind_them(isa: str, kernel_size: int, read_again: bool) -> None:
    spec, weights = residual_chain(kernel_size, read_again)
    check(spec, isa, [torch.randn(3, 24, 14, 14)], weights, factor=6.0)


def test_sums_that_overwrite_residuals_take_less_memory() -> None:
    images = torch.randn(1, 24, 64, 64)
    sizes = []
    for read_again in (False, True):
        spec, weights = residual_chain(1, read_again)
        executor = Executor(spec)
        executor.run([images], weights)
        assert executor.last_plan is not None
        sizes.append(executor.last_plan.workspace_bytes)
    assert sizes[1] - sizes[0] > 0.9 * images.numel() * 4


@pytest.mark.parametrize("isa", ISAS)
@given(n=st.integers(1, 3), c=st.integers(1, 40), h=st.integers(1, 12), w=st.integers(1, 12), threads=st.integers(1, 3))
@settings(deadline=None, max_examples=examples(60))
def test_copies_to_planes(isa: str, n: int, c: int, h: int, w: int, threads: int) -> None:
    memory = torch.arange(n * h * w * c + 1).float()
    x = memory[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    y = torch.full((n * c * h * w + 2,), -1.0)
    _core.copy_to_planes(x.numpy(), y[1:-1].view(n, c, h, w).numpy(), threads, isa)
    assert torch.equal(y[1:-1].view(n, c, h, w), x)
    assert y[0] == y[-1] == -1.0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("channels", [3, 24, 40])
def test_outputs_in_planes(isa: str, kernel_size: int, channels: int) -> None:
    """An output that later layers read as well, a pooled one, and one whose layer is pooled away."""
    layers = (
        ConvSpec("a", 0, 1, channels, 24, 0, kernel_size=(kernel_size,) * 2, activation="relu"),
        ConvSpec("b", 1, 2, 24, channels, 1),
        MaxPoolSpec("pool", 2, 3, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0), False),
        GlobalAvgPoolSpec("gap", 3, 4),
    )
    spec = ProgramSpec((channels,), layers, (OutputSpec(1), OutputSpec(3), OutputSpec(4)))
    inputs = [torch.randn(5, channels, 9, 7)]
    parameters = [torch.randn(24, channels, kernel_size, kernel_size), torch.randn(channels, 24, 1, 1)]
    executor = Executor(spec, isa)
    expected = executor.run(inputs, parameters)
    for planes in ((0,), (1,), (0, 1, 2)):
        for i, (got, want) in enumerate(zip(executor.run(inputs, parameters, planes), expected, strict=True)):
            assert torch.equal(got, want)
            assert got.is_contiguous(memory_format=torch.contiguous_format if i in planes else torch.channels_last)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel"), [(48, 71, 1), (19, 40, 1), (16, 33, 3), (130, 5, 2)]
)
@pytest.mark.parametrize("algorithm", ["direct", "paired"])
def test_weights_of_any_strides_are_packed_alike(
    isa: str, algorithm: str, in_channels: int, out_channels: int, kernel: int
) -> None:
    """Contiguous, channels_last, and views with channels exchanged and taps reversed, as the input gradient takes them."""
    layer = ConvSpec("conv", 0, 1, in_channels, out_channels, 0, kernel_size=(kernel, kernel), algorithm=algorithm)
    executor = Executor(program_of(layer), isa)
    x = torch.randn(2, in_channels, 6, 5)
    weight = torch.randn(out_channels, in_channels, kernel, kernel)
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    expected = executor.run_once([x], weight.numpy(), [])
    assert_accurate(expected, exact, torch.nn.functional.conv2d(x, weight))
    exchanged = weight.transpose(0, 1).contiguous().transpose(0, 1)
    reversed_taps = np.ascontiguousarray(weight.numpy()[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    for view in (weight.to(memory_format=torch.channels_last).numpy(), exchanged.numpy(), reversed_taps):
        assert torch.equal(executor.run_once([x], view, []), expected)


def _two_convs() -> ProgramSpec:
    layers = [
        ConvSpec(f"conv{i}", i, i + 1, 8, 8, 2 * i, 2 * i + 1, kernel_size=(3, 3), padding=(1, 1, 1, 1))
        for i in range(2)
    ]
    return ProgramSpec((8,), tuple(layers), (OutputSpec(2),))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_weights_that_change_while_others_begin(threads: int) -> None:
    """All threads but one begin with the last run's weights; what they did is not used if these have changed."""
    torch.set_num_threads(threads)
    spec = _two_convs()
    executor = Executor(spec)
    parameters = [torch.randn(*shape) for shape in [(8, 8, 3, 3), (8,)] * 2]
    x = torch.randn(2, 8, 20, 20)
    for change in range(6):
        if change % 2:
            parameters[change % 4].mul_(1.5)  # a version counter tells
        elif change:
            parameters[change % 4].numpy()[...] += 0.5  # values tell
        for _ in range(2):
            got = executor.run([x], parameters)[0]
            exact, eager = (run_reference(spec, [x], parameters, dtype)[0] for dtype in (torch.float64, torch.float32))
            assert_accurate(got, exact, eager, layers=2)


def test_a_run_that_is_stopped() -> None:
    program = build_program(_two_convs())
    plan, weights = _core.Plan(program, 1, [(6, 6, True)], 2), _core.WeightSet(program)
    x, y = (torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last).numpy() for _ in range(2))
    asked: list[int] = []

    def answer(value: object) -> bool:
        asked.append(1)
        if isinstance(value, Exception):
            raise value
        return bool(value)

    weights.set_parameters([torch.randn(*shape).numpy() for shape in [(8, 8, 3, 3), (8,)] * 2])
    assert not plan.run_if(weights, [x], [y], lambda: answer(True))  # not prepared
    assert not asked
    plan.prepare(weights)
    plan.run(weights, [x], [y])
    want = y.copy()
    y[...] = 0
    assert plan.run_if(weights, [x], [y], lambda: answer(True))
    assert np.array_equal(y, want)
    assert not plan.run_if(weights, [x], [y], lambda: answer(False))
    with pytest.raises(KeyError, match="mine"):
        plan.run_if(weights, [x], [y], lambda: answer(KeyError("mine")))
    assert len(asked) == 3
    assert plan.run_if(weights, [x], [y], lambda: answer(True))  # nothing is left over
    assert np.array_equal(y, want)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("delay", [0.0, 1e-4, 3e-4, 1e-3, 0.02])
def test_the_first_thread_joins_a_run_in_any_stage(threads: int, delay: float) -> None:
    """With 20 ms the others have done all of it by then."""
    program = build_program(_two_convs())
    plan, weights = _core.Plan(program, 3, [(40, 40, True)], threads), _core.WeightSet(program)
    x, y = (torch.randn(3, 8, 40, 40).to(memory_format=torch.channels_last).numpy() for _ in range(2))
    weights.set_parameters([torch.randn(*shape).numpy() for shape in [(8, 8, 3, 3), (8,)] * 2])
    plan.prepare(weights)
    plan.run(weights, [x], [y])
    want = y.copy()

    def answer(value: bool) -> bool:
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            pass
        return value

    for _ in range(20 if delay < 0.01 else 3):
        y[...] = 0
        assert plan.run_if(weights, [x], [y], lambda: answer(True))
        assert np.array_equal(y, want)
        assert not plan.run_if(weights, [x], [y], lambda: answer(False))
