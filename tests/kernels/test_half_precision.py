"""bf16 and fp16 programs on every instruction-set level: fp32 sums of 16-bit feature maps, each value rounded when stored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfuse.engine.executor import Executor
from resfuse.engine.spec import AffineSpec, ConvSpec, NormSpec, OutputSpec, ProgramSpec
from tests.conftest import examples
from tests.engine.specs import program_specs
from tests.kernels.test_convolutions import convolutions
from tests.programs import LAYOUTS, isas, make_input, make_tensors
from tests.reference import rms, run_reference

# The largest relative error of rounding to nearest.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
dtypes = st.sampled_from(list(ROUNDING))


def assert_rounded(got: torch.Tensor, exact: torch.Tensor) -> None:
    """That no value is further from fp64 than one rounding to the result's type, and what fp32 sums differ by."""
    unit = ROUNDING[got.dtype]
    allowed = 1.01 * unit * exact.abs() + 3e-5 * rms(exact) + 2.0**-24
    assert got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= allowed).all())


@settings(max_examples=examples(150))
@given(isa=isas, dtype=dtypes, case=convolutions(), batch=st.integers(1, 3), seed=st.integers(0, 2**31 - 1))
def test_convolutions_round_once(
    isa: str, dtype: torch.dtype, case: tuple[ProgramSpec, tuple[int, int], str], batch: int, seed: int
) -> None:
    spec, extent, layout = case
    inputs, parameters = make_tensors(spec, extent, layout, batch, seed)
    inputs, parameters = [x.to(dtype) for x in inputs], [p.to(dtype) for p in parameters]
    (got,) = Executor(spec, isa, dtype).run(inputs, parameters)
    (exact,) = run_reference(spec, inputs, parameters, torch.float64)
    assert got.dtype is dtype
    assert_rounded(got, exact)


@settings(max_examples=examples(150))
@given(
    isa=isas, dtype=dtypes, spec=program_specs(), size=st.integers(1, 33), batch=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_programs_are_no_less_accurate_than_torch(
    isa: str, dtype: torch.dtype, spec: ProgramSpec, size: int, batch: int, layout: str
) -> None:
    generator = torch.Generator().manual_seed(size)
    x = make_input((batch, spec.inputs[0], size, size), layout, generator).to(dtype)
    weights, layers = [], []
    for layer in spec.layers:
        if isinstance(layer, ConvSpec):
            fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            shape = layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
            weights.append((torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5).to(dtype))
            layer = ConvSpec(**{**layer.__dict__, "weight": len(weights) - 1})
        layers.append(layer)
    spec = ProgramSpec(spec.inputs, tuple(layers), spec.outputs)
    got = Executor(spec, isa, dtype).run([x], weights)
    exact = run_reference(spec, [x], weights, torch.float64)
    eager = run_reference(spec, [x], weights, dtype)
    for ours, theirs, want in zip(got, eager, exact, strict=True):
        few_values = len(layers) * ROUNDING[dtype] * rms(want)  # where chance decides who is nearer
        assert rms(ours.double() - want) <= 2 * rms(theirs.double() - want) + few_values + 1e-6


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(
    "activation", ["tanh", "sigmoid", "silu", "gelu", "leaky_relu", "relu6", "hardsigmoid", "hardswish", "mish", "elu"]
)
def test_activations(isa: str, activation: str, dtype: torch.dtype) -> None:
    spec = ProgramSpec((70,), (AffineSpec("act", 0, 1, activation=activation, slope=0.1),), (OutputSpec(1),))
    x = (torch.randn(2, 70, 5, 7) * 3).to(dtype)
    (got,) = Executor(spec, isa, dtype).run([x], [])
    (exact,) = run_reference(spec, [x], [], torch.float64)
    assert_rounded(got, exact)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("slopes", [1, 70])
def test_prelu_rounds_once(isa: str, slopes: int, dtype: torch.dtype) -> None:
    layers = (
        ConvSpec("pointwise", 0, 1, 70, 70, 0, activation="prelu", slopes=3),
        ConvSpec("window", 0, 2, 70, 70, 1, kernel_size=(3, 3), padding=(1, 1, 1, 1), activation="prelu", slopes=3),
        ConvSpec("depthwise", 0, 3, 70, 70, 2, kernel_size=(3, 3), padding=(1, 1, 1, 1), groups=70,
                 activation="prelu", slopes=3),
        AffineSpec("alone", 0, 4, activation="prelu", slopes=3),
        NormSpec("norm", 0, 5, None, None, 1e-5, 0, activation="prelu", slopes=3),
    )  # fmt: skip
    spec = ProgramSpec((70,), layers, tuple(OutputSpec(i) for i in range(1, 6)))
    x = torch.randn(2, 70, 5, 7).to(dtype)
    sizes = ((70, 70, 1, 1), (70, 70, 3, 3), (70, 1, 3, 3), (slopes,))
    parameters = [(torch.randn(size) * 0.2).to(dtype) for size in sizes]
    got = Executor(spec, isa, dtype).run([x], parameters)
    for ours, exact in zip(got, run_reference(spec, [x], parameters, torch.float64), strict=True):
        assert_rounded(ours, exact)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("channels", [3, 41, 1000])
def test_softmax_sums_to_one(isa: str, channels: int, dtype: torch.dtype) -> None:
    layer = ConvSpec("fc", 0, 1, 16, channels, 0, activation="softmax")
    spec = ProgramSpec((16,), (layer,), (OutputSpec(1, 2),))
    x, weight = torch.randn(3, 16, 1, 1).to(dtype), torch.randn(channels, 16).to(dtype)
    (got,) = Executor(spec, isa, dtype).run([x], [weight])
    assert got.float().sum(1).sub(1).abs().max() < 8 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_nan_inf_and_overflow(isa: str, dtype: torch.dtype) -> None:
    layer = ConvSpec("conv", 0, 1, 8, 8, 0, kernel_size=(1, 1), algorithm="direct", activation="relu")
    x = torch.ones(1, 8, 3, 3).to(dtype)
    x[0, 0, 0, 0], x[0, 1, 1, 1], x[0, 2, 2, 2] = torch.nan, torch.inf, torch.finfo(dtype).max
    weight = torch.full((8, 8, 1, 1), 2.0).to(dtype)
    (got,) = Executor(ProgramSpec((8,), (layer,), (OutputSpec(1),)), isa, dtype).run([x], [weight])
    assert got[0, :, 0, 0].isnan().all()
    assert got[0, :, 1, 1].isinf().all()
    assert got[0, :, 2, 2].isinf().all()  # twice the largest number
    assert got[0, :, 0, 1].eq(16).all()


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_outputs_in_planes(isa: str, dtype: torch.dtype) -> None:
    layer = ConvSpec("conv", 0, 1, 8, 50, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1))
    executor = Executor(ProgramSpec((8,), (layer,), (OutputSpec(1),)), isa, dtype)
    x, weight = torch.randn(2, 8, 13, 9).to(dtype), torch.randn(50, 8, 3, 3).to(dtype)
    (nhwc,), (nchw,) = executor.run([x], [weight]), executor.run([x], [weight], (0,))
    assert nchw.is_contiguous()
    assert torch.equal(nhwc, nchw)
    assert nchw.dtype is dtype


def test_arrays_of_another_type_are_refused(isa: str) -> None:
    layer = ConvSpec("conv", 0, 1, 8, 8, 0)
    executor = Executor(ProgramSpec((8,), (layer,), (OutputSpec(1),)), isa, torch.bfloat16)
    with pytest.raises(TypeError, match=r"inputs\[0\]: got dtype torch.float16, want torch.bfloat16"):
        executor.run([torch.ones(1, 8, 2, 2).half()], [torch.ones(8, 8, 1, 1).bfloat16()])
    with pytest.raises(ValueError, match="not all plain bfloat16"):
        executor.run([torch.ones(1, 8, 2, 2).bfloat16()], [torch.ones(8, 8, 1, 1)])
