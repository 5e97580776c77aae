"""Programs of bytes on every instruction-set level: exact integer sums, bit for bit what the definition says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse import _core
from resfuse.engine.executor import Executor, build_program
from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    BatchNormSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    MaxPoolSpec,
    OutputSpec,
    ProgramSpec,
    Range,
)
from resfuse.lowering.ranges import Ranges, int8_spec
from resfuse.quantization.observer import Observer
from tests.conftest import examples
from tests.engine.specs import program_specs
from tests.integers import run_integers
from tests.kernels.test_convolutions import convolutions
from tests.programs import LAYOUTS, isas, make_input, make_tensors
from tests.reference import run_reference

ranges = st.tuples(st.floats(2.0**-12, 2.0, width=32), st.one_of(st.integers(0, 255), st.sampled_from([0, 128, 255])))
optional_ranges = st.none() | ranges


def chain(*layers: LayerSpec, channels: tuple[int, ...]) -> ProgramSpec:
    """Layers behind inputs of so many channels, and behind all a copy as real numbers of what the last one writes."""
    last = layers[-1].output
    copy = AffineSpec("copy", last, last + 1)
    return ProgramSpec(channels, (*layers, copy), (OutputSpec(last + 1),))


def assert_same_bits(spec: ProgramSpec, isa: str, inputs: list[torch.Tensor], parameters: list[torch.Tensor]) -> None:
    got = Executor(spec, isa).run(inputs, parameters)
    want = run_integers(spec, inputs, parameters)
    for g, w in zip(got, want, strict=True):
        assert g.dtype is torch.float32
        np.testing.assert_array_equal(g.numpy(), w)


@settings(max_examples=examples(300))
@given(
    isa=isas, case=convolutions(), batch=st.integers(1, 3), seed=st.integers(0, 2**31 - 1), reads=ranges,
    before=st.booleans(), residual=optional_ranges, writes=optional_ranges, relu=st.booleans(),
    algorithm=st.sampled_from(["auto", "direct", "winograd"]), threads=st.integers(1, 3), means=st.booleans(),
)  # fmt: skip
def test_convolutions(
    isa: str, case: tuple[ProgramSpec, tuple[int, int], str], batch: int, seed: int, reads: Range, before: bool,
    residual: Range | None, writes: Range | None, relu: bool, algorithm: str, threads: int, means: bool,
) -> None:  # fmt: skip
    """Of real inputs or bytes, with and without a residual of either, into either."""
    spec, extent, layout = case
    inputs, parameters = make_tensors(spec, extent, layout, batch, seed)
    torch.set_num_threads(threads)
    conv = spec.layers[0]
    assert isinstance(conv, ConvSpec)
    if means:
        conv = dataclasses.replace(conv, input_means=len(parameters))
        parameters.append(torch.randn(conv.in_channels, generator=torch.Generator().manual_seed(seed)))
    layers: list[LayerSpec] = []
    count = len(spec.inputs)
    source, added = 0, conv.residual
    if before:  # bytes
        layers.append(AffineSpec("bytes", 0, count + len(layers), writes=reads))
        source = layers[-1].output
    if added is not None and residual is not None:
        layers.append(AffineSpec("residual", added, count + len(layers), writes=residual))
        added = layers[-1].output
    layers.append(
        dataclasses.replace(
            conv, input=source, residual=added, output=count + len(layers), algorithm=algorithm, writes=writes,
            reads=None if before else reads, activation="relu" if relu else "none",
        )
    )  # fmt: skip
    assert_same_bits(chain(*layers, channels=spec.inputs), isa, inputs, parameters)


@settings(max_examples=examples(150))
@given(
    isa=isas, channels=st.integers(1, 70), extent=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.integers(1, 3), padding=st.integers(0, 2),
    reads=ranges, writes=optional_ranges, kind=st.sampled_from(["max", "avg", "padded avg", "gap"]),
    layout=st.sampled_from(LAYOUTS), batch=st.integers(1, 3), ceil_mode=st.booleans(),
)  # fmt: skip
def test_pools(
    isa: str, channels: int, extent: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int,
    reads: Range, writes: Range | None, kind: str, layout: str, batch: int, ceil_mode: bool,
) -> None:  # fmt: skip
    pad = min(padding, min(kernel) // 2)
    kernel = (min(kernel[0], extent[0] + 2 * pad), min(kernel[1], extent[1] + 2 * pad))
    pad = min(pad, min(kernel) // 2)
    pads = (pad, pad, pad, pad)
    pool: LayerSpec
    if kind == "max":
        pool = MaxPoolSpec("pool", 1, 2, kernel, (stride, stride), (1, 1), pads, ceil_mode)
    elif kind == "gap":
        pool = GlobalAvgPoolSpec("pool", 1, 2, writes=writes)
    else:
        pool = AvgPoolSpec("pool", 1, 2, kernel, (stride, stride), pads, ceil_mode, kind == "padded avg", writes=writes)
    x = make_input((batch, channels, *extent), layout, torch.Generator().manual_seed(channels))
    assert_same_bits(chain(AffineSpec("bytes", 0, 1, writes=reads), pool, channels=(channels,)), isa, [x], [])


@settings(max_examples=examples(100))
@given(
    isa=isas, channels=st.integers(1, 70), extent=st.tuples(st.integers(1, 9), st.integers(1, 9)), reads=optional_ranges,
    added=optional_ranges, writes=ranges, norm=st.booleans(), residual=st.booleans(), relu=st.booleans(),
    batch=st.integers(1, 3),
)  # fmt: skip
def test_elementwise_layers(
    isa: str, channels: int, extent: tuple[int, int], reads: Range | None, added: Range | None, writes: Range,
    norm: bool, residual: bool, relu: bool, batch: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(channels)
    inputs = [torch.randn(batch, channels, *extent, generator=generator) for _ in range(2)]
    layers: list[LayerSpec] = [AffineSpec("copy", 0, 2, writes=reads), AffineSpec("other", 1, 3, writes=added)]
    layers.append(
        AffineSpec(
            "affine", 2, 4, BatchNormSpec(0, 1, 2, 3, 1e-5) if norm else None, residual=3 if residual else None,
            activation="relu" if relu else "none", writes=writes,
        )
    )  # fmt: skip
    parameters = [torch.rand(channels, generator=generator) + 0.5 for _ in range(4)]
    assert_same_bits(chain(*layers, channels=(channels, channels)), isa, inputs, parameters)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("channels", "zero"), [(115, 0), (115, 255), (512, 128), (700, 77)])
def test_winograd_is_exact_for_the_worst_numbers(isa: str, channels: int, zero: int, sign: int) -> None:
    """The largest inputs times the largest weights, and those of alternating signs that transforms magnify most."""
    generator = torch.Generator().manual_seed(channels)
    reads: Range = (1.0, zero)
    for pattern in ("one", "random", "alternating"):
        x = torch.full((1, channels, 12, 11), 255.0 - zero)
        weight = torch.full((5, channels, 3, 3), 127.0 * sign)
        if pattern == "random":
            x = torch.where(torch.rand(x.shape, generator=generator) < 0.5, 255.0 - zero, -float(zero))
            weight *= torch.where(torch.rand(weight.shape, generator=generator) < 0.5, 1.0, -1.0)
        if pattern == "alternating":
            checks = (torch.arange(12)[:, None] + torch.arange(11)) % 2 == 0
            x = torch.where(checks, x, torch.tensor(-float(zero)))
            weight[:, :, ::2, 1::2] *= -1
        conv = ConvSpec("conv", 1, 2, channels, 5, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1), algorithm="winograd")
        spec = ProgramSpec((channels,), (AffineSpec("bytes", 0, 1, writes=reads), conv), (OutputSpec(2),))
        executor = Executor(spec, isa)
        (got,) = executor.run([x], [weight])
        assert executor.plan([x]).layers()[1]["algorithm"] == "winograd_int8"
        np.testing.assert_array_equal(got.numpy(), run_integers(spec, [x], [weight])[0])


def ranges_of(spec: ProgramSpec, inputs: list[torch.Tensor], parameters: list[torch.Tensor]) -> Ranges:
    """Of all buffers, as real numbers have them."""
    everything = spec.with_outputs([OutputSpec(layer.output) for layer in spec.layers])
    values = [*inputs, *run_reference(everything, inputs, parameters, torch.float32)]
    found = {}
    for i, value in enumerate(values):
        observer = Observer()
        observer.add(value)
        if observer.low < 0 or observer.high > 0:
            found[str(i)] = observer.range("minmax")  # type: ignore[assignment]
    return Ranges(found)


@settings(max_examples=examples(150))
@given(
    isa=isas, spec=program_specs(), size=st.integers(2, 33), batch=st.integers(1, 3), layout=st.sampled_from(LAYOUTS),
    kept=st.booleans(), threads=st.integers(1, 3),
)  # fmt: skip
def test_programs(isa: str, spec: ProgramSpec, size: int, batch: int, layout: str, kept: bool, threads: int) -> None:
    """Whatever of a program can compute with bytes does so, and gives about the real numbers."""
    generator = torch.Generator().manual_seed(size)
    x = make_input((batch, spec.inputs[0], size, size), layout, generator)
    weights: list[torch.Tensor] = []
    layers: list[LayerSpec] = []
    for layer in spec.layers:
        if isinstance(layer, ConvSpec):
            fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            shape = layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
            weights.append(torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5)
            layer = dataclasses.replace(layer, weight=len(weights) - 1)
        layers.append(layer)
    spec = ProgramSpec(spec.inputs, tuple(layers), spec.outputs)
    found = ranges_of(spec, [x], weights)
    if kept:
        found = dataclasses.replace(found, keep=(layers[0].name,))
    quantized = int8_spec(spec, [str(i) for i in range(len(layers) + 1)], found)
    if quantized is None:
        return
    torch.set_num_threads(threads)
    for got, exact in zip(
        Executor(quantized, isa).run([x], weights), run_reference(spec, [x], weights, torch.float64), strict=True
    ):
        noise, signal = (got - exact).square().mean(), exact.square().mean()
        assert got.shape == exact.shape
        assert float(noise) <= 0.1 * float(signal) + 1e-9  # 10 dB; a wrong number would be worse than none


BYTES = AffineSpec("bytes", 0, 1, writes=(0.1, 3))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([ConvSpec("c", 0, 1, 8, 8, 0, reads=(0.0, 0))], "input: got a scale of 0"),
        ([ConvSpec("c", 0, 1, 8, 8, 0, reads=(float("nan"), 0))], "not JSON compliant"),
        ([ConvSpec("c", 0, 1, 8, 8, 0, reads=(0.1, 256))], "zero point of 256, want 0 to 255"),
        ([ConvSpec("c", 0, 1, 8, 8, 0, reads=(0.1, -1))], "zero point of -1, want 0 to 255"),
        ([ConvSpec("c", 0, 1, 8, 8, 0, writes=(0.1, 0))], "only a convolution that reads bytes writes them"),
        ([ConvSpec("c", 0, 1, 8, 8, 0, reads=(0.1, 0), writes=(0.1, 0), activation="softmax")], "softmax gives no bytes"),
        ([BYTES, ConvSpec("c", 0, 2, 8, 8, 0, residual=1)], "residual is of type u8, want fp32"),
        ([AvgPoolSpec("p", 0, 1, (2, 2), (2, 2), (0, 0, 0, 0), False, True, writes=(0.1, 0))], "only an average pool"),
        ([GlobalAvgPoolSpec("p", 0, 1, writes=(0.1, 0))], "only a global average pool that reads bytes"),
        ([BYTES], "bytes leave no program"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(layers: list[LayerSpec], message: str) -> None:
    spec = ProgramSpec((8,), tuple(layers), (OutputSpec(len(layers)),))
    with pytest.raises(ValueError, match=message):
        build_program(spec)


def test_sums_that_do_not_fit_are_refused(isa: str) -> None:
    spec = ProgramSpec((66_000,), (ConvSpec("c", 0, 1, 66_000, 1, 0, reads=(0.1, 0)),), (OutputSpec(1),))
    with pytest.raises(ValueError, match="sums of 66000 products of bytes, want at most 65793"):
        build_program(spec, isa)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(isa: str, value: float) -> None:
    spec = ProgramSpec((8,), (ConvSpec("c", 0, 1, 8, 8, 0, reads=(0.1, 0)),), (OutputSpec(1),))
    weight = torch.ones(8, 8, 1, 1)
    weight[3, 2] = value
    with pytest.raises(ValueError, match="c: weight has values that are not finite"):
        Executor(spec, isa).run([torch.ones(1, 8, 2, 2)], [weight])


def test_steps_of_weights_may_be_given(isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(9, generator=generator) * 0.01 + 0.001
    weight = torch.randint(-128, 128, (9, 6, 1, 1), generator=generator) * steps[:, None, None, None]
    conv = ConvSpec("c", 0, 1, 6, 9, 0, reads=(0.02, 128), weight_steps=1)
    spec = ProgramSpec((6,), (conv,), (OutputSpec(1),))
    x = torch.randn(2, 6, 5, 5, generator=generator)
    assert_same_bits(spec, isa, [x], [weight, steps])


def test_given_steps_that_are_too_small_for_winograd_are_refused(isa: str) -> None:
    weight, steps = torch.full((4, 512, 3, 3), 127.0), torch.ones(4)
    x = torch.ones(1, 512, 6, 6)
    conv = ConvSpec("c", 0, 1, 512, 4, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1), reads=(1.0, 0), weight_steps=1)
    with pytest.raises(ValueError, match="want algorithm 'direct'"):
        Executor(ProgramSpec((512,), (conv,), (OutputSpec(1),)), isa).run([x], [weight, steps])
    direct = dataclasses.replace(conv, algorithm="direct")
    assert_same_bits(ProgramSpec((512,), (direct,), (OutputSpec(1),)), isa, [x], [weight, steps])


def test_numbers_out_of_range_saturate(isa: str) -> None:
    """As torch.quantize_per_tensor has it; NaN becomes the range's least number."""
    values = [float("inf"), float("-inf"), float("nan"), 1e30, -1e30, 0.0, 12.75, -12.75]
    x = torch.tensor(values).reshape(1, 1, 1, -1)
    spec = chain(AffineSpec("bytes", 0, 1, writes=(0.1, 100)), channels=(1,))
    (got,) = Executor(spec, isa).run([x], [])
    torch.testing.assert_close(got.flatten(), torch.tensor([15.5, -10, -10, 15.5, -10, 0, 12.8, -10]))


def test_names_of_levels_and_types() -> None:
    assert "u8" in _core.kernel_types(_core.active_isa())
