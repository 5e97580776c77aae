"""Bad arguments raise exceptions that name them."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from torch import nn

import resfuse
from resfuse import _core
from resfuse.engine.executor import build_program
from resfuse.engine.spec import ConvSpec, GlobalAvgPoolSpec, OutputSpec, ProgramSpec


def _last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def _to_planes(x: torch.Tensor, y: torch.Tensor) -> None:
    _core.copy_to_planes(x.numpy(), y.numpy(), 1)


def _fast() -> nn.Module:
    return resfuse.fuse(resfuse.models.ResNet("basic", [1], width=8, num_classes=5, stem="cifar").eval())


def _program_text() -> str:
    return _fast().fusion().binding.programs[0].text


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: resfuse.fuse("resnet"), TypeError, "model: got str, want a torch.nn.Module"),
        (lambda: resfuse.fuse(_fast(), algorithm="fft"), ValueError, "algorithm: got 'fft', want one of 'auto'"),
        (lambda: resfuse.fuse(_fast(), dtype=torch.float64), ValueError, "dtype: got torch.float64"),
        (lambda: resfuse.fuse(nn.Linear(3, 4)), resfuse.UnsupportedModelError, "found 1 Linear"),
        (lambda: resfuse.fuse(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), resfuse.UnsupportedModelError, "residual blocks"),
        (lambda: resfuse.report(nn.ReLU()), resfuse.UnsupportedModelError, "is not fused"),
        (lambda: resfuse.report(3), TypeError, "model: got int"),
        (lambda: resfuse.verify(nn.ReLU(), nn.ReLU(), torch.randn(1)), resfuse.UnsupportedModelError, "fast: ReLU"),
        (lambda: resfuse.models.ResNet("cubic", [1]), ValueError, "block: got 'cubic', want one of 'basic'"),
        (lambda: resfuse.models.ResNet("basic", []), ValueError, "layers: got"),
        (lambda: resfuse.models.ResNet("basic", [0]), ValueError, "layers: got 0"),
        (lambda: resfuse.models.ResNet("basic", 3), ValueError, "layers: got 3"),
        (lambda: resfuse.models.resnet18(width=0), ValueError, "width: got 0"),
        (lambda: resfuse.models.resnet18(width=1.5), ValueError, "width: got 1.5"),
        (lambda: resfuse.models.resnet18(num_classes=-1), ValueError, "num_classes: got -1"),
        (lambda: resfuse.models.resnet18(stem="mnist"), ValueError, "stem: got 'mnist'"),
        (lambda: resfuse.models.resnet18(padding="valid"), ValueError, "padding: got 'valid'"),
        (lambda: resfuse.models.resnet18(head_activation="gelu"), ValueError, "head_activation: got 'gelu'"),
        (lambda: resfuse.models.resnet18(bn_eps=0.0), ValueError, "bn_eps: got 0.0"),
        (lambda: resfuse.models.load_keras_weights(nn.ReLU(), None), TypeError, "model: got ReLU"),
        (lambda: resfuse.class_activation_map(_fast(), torch.randn(2, 3, 8, 8), 5), ValueError, "class_index: got 5"),
        (lambda: resfuse.class_activation_map(_fast(), torch.randn(2, 3, 8, 8), [1]), ValueError, "class_index: got shape"),
        (lambda: resfuse.class_activation_map(_fast(), torch.randn(2, 3, 8, 8), 0.5), TypeError, "class_index: got dtype"),
        (lambda: resfuse.class_activation_map(_fast().train(), torch.randn(2, 3, 8, 8)), ValueError, "train mode"),
        (lambda: _to_planes(torch.randn(1, 3, 4, 4), torch.empty(1, 3, 4, 5)), ValueError, "y: got shape [1, 3, 4, 5]"),
        (lambda: _to_planes(torch.randn(1, 3, 4, 4), torch.empty(1, 3, 4, 4)), ValueError, "x: want dense"),
        (lambda: _to_planes(_last(1, 3, 4, 4), _last(1, 3, 4, 4)), ValueError, "y: want writable, contiguous"),
        (lambda: _to_planes(_last(1, 3, 4, 4).double(), torch.empty(1, 3, 4, 4)), TypeError, "x: got dtype float64"),
        (lambda: torch.ops.resfuse.program([torch.randn(1, 3, 8, 8)], [], _program_text()), ValueError, "parameters: got 0 tensors"),
        (lambda: _core.Program(_program_text(), "mips"), ValueError, "RESFUSE_ISA=mips"),
        (lambda: build_program(ProgramSpec((0,), (), ())), ValueError, "channels: got 0"),
        (lambda: build_program(ProgramSpec((), (GlobalAvgPoolSpec("gap", 0, 0),), ())), ValueError, "gap: input: got buffer 0"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 3, 0, 8),
        torch.randn(3, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.int64),
        torch.randn(1, 3, 8, 8, dtype=torch.float64),
        torch.randn(1, 3, 8, 8).to_sparse(),
        torch.quantize_per_tensor(torch.randn(1, 3, 8, 8), 0.1, 0, torch.qint8),
        "image",
        None,
    ],
    ids=["channels", "no pixels", "rank", "int64", "float64", "sparse", "quantized", "str", "None"],
)
def test_bad_input_to_a_fused_model_raises(x: object) -> None:
    fast = _fast()
    with torch.no_grad(), pytest.raises((TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError)):
        fast(x)
    with torch.no_grad():
        assert fast(torch.randn(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel_size": [0, 1]}, "kernel_size must be positive"),
        ({"stride": [1, 0]}, "stride must be positive"),
        ({"dilation": [-1, 1]}, "dilation must be positive"),
        ({"padding": [0, -1, 0, 0]}, "padding must not be negative"),
        ({"groups": 3}, "groups = 3 must divide"),
        ({"out_channels": 0}, "out_channels must be positive"),
        ({"activation": "swish"}, "activation: got 'swish'"),
        ({"algorithm": "fft"}, "algorithm: got 'fft'"),
        ({"residual": 9}, "residual: got buffer 9"),
        ({"residual": 0, "out_channels": 8}, "residual has 4 channels, want 8"),
    ],
)
def test_core_refuses_impossible_layers(options: dict[str, object], text: str) -> None:
    spec = ConvSpec("conv", 0, 1, 4, 4, 0, kernel_size=(3, 3), padding=(1, 1, 1, 1))
    layer = dataclasses.replace(spec, **options)
    with pytest.raises(ValueError, match=r"conv|got") as caught:
        build_program(ProgramSpec((4,), (layer,), ()))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("inputs"), "program: has no field 'inputs'"),
        (lambda d: d.update(more=1), "program: got an unknown field 'more'"),
        (lambda d: d.update(layers={}), "program: layers: want a list"),
        (lambda d: d.update(inputs=[3.5]), "program: inputs: want an integer"),
        (lambda d: d["layers"][0].update(kind="fold"), "got kind 'fold', which no layer is of"),
        (lambda d: d["layers"][0].update(stride=[1]), "stride: got 1 values, want 2"),
        (lambda d: d["layers"][0].update(weight=None), "weight: want the place of a parameter"),
        (lambda d: d["layers"][0].update(weight=-1), "weight: want an integer that is not negative"),
        (lambda d: d["layers"][0].update(in_channels=5), "in_channels: got 5, its input has 3"),
        (lambda d: d["layers"][0].update(output=7), "output: got 7, the next buffer is 1"),
        (lambda d: d["layers"][0].update(reads=[0.5]), "reads: want a scale and a zero point"),
        (lambda d: d["layers"][0].update(slope="steep"), "slope: want a number"),
        (lambda d: d["outputs"][0].update(rank=3), "rank: want 2 or 4"),
    ],
)
def test_core_refuses_text_that_is_no_specification(change, text: str) -> None:
    data = json.loads(_program_text())
    _core.Program(json.dumps(data))
    change(data)
    with pytest.raises(ValueError, match=re.escape(text)):
        _core.Program(json.dumps(data))


def _one_conv(kernel: int) -> _core.Program:
    layer = ConvSpec("conv", 0, 1, 4, 8, 0, kernel_size=(kernel, kernel), padding=(1, 1, 1, 1))
    return build_program(ProgramSpec((4,), (layer,), (OutputSpec(1),)))


def test_core_checks_arrays() -> None:
    program = _one_conv(3)
    plan = _core.Plan(program, 2, [(5, 6, False)], 2)
    weights = _core.WeightSet(program)
    x, y = torch.randn(2, 4, 5, 6).numpy(), torch.empty(2, 8, 5, 6).to(memory_format=torch.channels_last).numpy()
    with pytest.raises(ValueError, match="weights were not set"):
        plan.run(weights, [x], [y])
    with pytest.raises(ValueError, match=r"weight has shape \[8, 4, 1, 1\], want \[8, 4, 3, 3\]"):
        weights.set_parameters([torch.randn(8, 4, 1, 1).numpy()])
    with pytest.raises(ValueError, match="weight is of type int8, want float32"):
        weights.set_parameters([torch.zeros(8, 4, 3, 3, dtype=torch.int8).numpy()])
    with pytest.raises(TypeError, match=r"parameters\[0\]: got dtype bool"):
        weights.set_parameters([torch.zeros(8, 4, 3, 3, dtype=torch.bool).numpy()])
    with pytest.raises(ValueError, match="bias has 3 values, want 8"):
        weights.set_first(torch.randn(8, 4, 3, 3).numpy(), [1.0] * 3)
    with pytest.raises(ValueError, match="layer: 0 computes no bytes"):
        weights.int8(0, 1)
    weights.set_first(torch.randn(8, 4, 3, 3).numpy(), [])
    with pytest.raises(ValueError, match=r"inputs\[0\]: got shape"):
        plan.run(weights, [x[:1]], [y])
    with pytest.raises(TypeError, match="float64"):
        plan.run(weights, [x.astype("float64")], [y])
    with pytest.raises(ValueError, match=r"outputs\[0\]"):
        plan.run(weights, [x], [torch.empty(2, 8, 5, 6).numpy()])
    other = build_program(ProgramSpec((4,), (GlobalAvgPoolSpec("gap", 0, 1),), (OutputSpec(1),)))
    with pytest.raises(ValueError, match="another program"):
        plan.run(_core.WeightSet(other), [x], [y])
    plan.run(weights, [x], [y])
    with pytest.raises(ValueError, match="smaller than the kernel"):
        _big_kernel()
    with pytest.raises(ValueError, match="planes: got output 1, want less than 1"):
        _core.Plan(program, 2, [(5, 6, False)], 2, [1])
    with pytest.raises(ValueError, match=r"outputs\[0\]: want writable, contiguous"):
        _core.Plan(program, 2, [(5, 6, False)], 2, [0]).run(weights, [x], [y])


def _big_kernel() -> _core.Plan:
    return _core.Plan(_one_conv(7), 1, [(3, 3, False)], 1)


_LAYERS = {
    resfuse.nn.BasicBlock: ({"inplanes": 4, "planes": 4, "stride": 1}, {}),
    resfuse.nn.Bottleneck: ({"inplanes": 4, "planes": 4, "stride": 1}, {"groups": 1, "base_width": 64}),
    resfuse.nn.ConvBNReLU2d: (
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "stride": 1},
        {"groups": 1, "dilation": 1},
    ),
}  # fmt: skip
_NO_COUNTS = (0, -1, 1.5, "4", None, True)
_NO_EPSILONS = (0.0, -1e-5, float("nan"), float("inf"), "1e-5", None)
_NO_MODULES = (None, "resnet18", 3, nn.ReLU, torch.zeros(1), [nn.ReLU()])
_NO_TENSORS = (None, "image", 3, [1.0], b"x")


def _bad_calls():
    """(what, call, a name that the error's text must hold): wrong arguments over all public names."""
    fast, x = _fast(), torch.randn(1, 3, 8, 8)
    for cls, (sizes, more) in _LAYERS.items():
        good = {**sizes, **more}
        for name in good:
            for value in _NO_COUNTS:
                # Both channels have other names inside a block: any of them says what is wrong.
                yield f"{cls.__name__} {name}={value!r}", lambda c=cls, o={**good, name: value}: c(**o), "got"
        for value in _NO_EPSILONS:
            yield f"{cls.__name__} bn_eps={value!r}", lambda c=cls, o=good, v=value: c(**o, bn_eps=v), "bn_eps"
        for value in ("valid", None, 1):
            yield f"{cls.__name__} padding={value!r}", lambda c=cls, o=good, v=value: c(**o, padding=v), "padding"
    for name in ("width", "num_classes", "in_channels"):
        for value in _NO_COUNTS:
            yield (
                f"ResNet {name}={value!r}",
                lambda n=name, v=value: resfuse.models.ResNet("basic", [1], **{n: v}),
                name,
            )
    for value in _NO_EPSILONS:
        yield f"ResNet bn_eps={value!r}", lambda v=value: resfuse.models.ResNet("basic", [1], bn_eps=v), "bn_eps"
    for name in ("stem", "padding", "head_activation"):
        for value in ("none of these", 7, b"same"):
            yield (
                f"ResNet {name}={value!r}",
                lambda n=name, v=value: resfuse.models.ResNet("basic", [1], **{n: v}),
                name,
            )
    for value in _NO_MODULES:
        yield f"fuse {type(value)}", lambda v=value: resfuse.fuse(v), "model"
        yield f"report {type(value)}", lambda v=value: resfuse.report(v), "model"
        yield f"profile {type(value)}", lambda v=value: resfuse.profile(v, x), "model"
        yield f"verify model {type(value)}", lambda v=value: resfuse.verify(v, fast, x), "model"
        yield f"verify fast {type(value)}", lambda v=value: resfuse.verify(nn.ReLU(), v, x), "fast"
        yield f"map model {type(value)}", lambda v=value: resfuse.class_activation_map(v, x), "model"
    for value in _NO_TENSORS:
        yield f"map x {value!r}", lambda v=value: resfuse.class_activation_map(fast, v), "x"
        yield f"pool {value!r}", lambda v=value: resfuse.nn.functional.global_avg_pool2d(v), "x"
        yield f"pool layer {value!r}", lambda v=value: resfuse.nn.GlobalAvgPool2d()(v), "x"
    for value in (-1, 5, 10**12, 0.5, "cat", [0, 1], [[0]], torch.zeros(3, dtype=torch.int64), True):
        yield f"map class {value!r}", lambda v=value: resfuse.class_activation_map(fast, x, v), "class_index"
    for value in ("fft", "", None, 3, ["auto"]):
        yield f"fuse algorithm {value!r}", lambda v=value: resfuse.fuse(fast, algorithm=v), "algorithm"
    for value in (torch.float64, torch.int8, "float32", 32):
        yield f"fuse dtype {value!r}", lambda v=value: resfuse.fuse(fast, dtype=v), "dtype"
    for value in (0, -3, 1.5, "5", None):
        yield f"profile runs {value!r}", lambda v=value: resfuse.profile(fast, x, runs=v), "runs"
    for value in _NO_EPSILONS:
        yield f"verify tolerance {value!r}", lambda v=value: resfuse.verify(fast, fast, x, tolerance=v), "tolerance"
    yield from _bad_convolutions()


def _bad_convolutions():
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3)
    good = {"x": x, "weight": weight, **{name: torch.ones(8) for name in ("running_mean", "running_var", "bn_weight")}}

    def call(**changes):
        return lambda: resfuse.nn.functional.conv_bn_relu(**{**good, **changes})

    for name in ("x", "weight", "running_mean", "running_var"):
        for value in _NO_TENSORS:
            yield f"conv {name}={value!r}", call(**{name: value}), name
    for name in ("running_mean", "running_var", "bn_weight", "bn_bias", "bias"):
        yield f"conv {name} short", call(**{name: torch.ones(7)}), name
        yield f"conv {name} rank", call(**{name: torch.ones(8, 1)}), name
        yield f"conv {name} float64", call(**{name: torch.ones(8).double()}), name
        yield f"conv {name} on meta", call(**{name: torch.ones(8, device="meta")}), name
    for name in ("stride", "dilation", "padding"):
        for value in (-1, 0.5, "1", (1,), (1, 2, 3), (1, "1"), None, *(() if name == "padding" else (0,))):
            yield f"conv {name}={value!r}", call(**{name: value}), name
    for value in (0, -1, 3, "2", None):
        yield f"conv groups={value!r}", call(groups=value), "groups"
    for value in _NO_EPSILONS:
        yield f"conv eps={value!r}", call(eps=value), "eps"
    for shape in ((4, 6, 6), (2, 5, 6, 6), (6,)):
        yield f"conv x {shape}", call(x=torch.randn(shape)), "x"
    for shape in ((8, 4, 3), (8, 4), (8, 5, 3, 3)):
        yield f"conv weight {shape}", call(weight=torch.randn(shape)), "got"
    for shape in ((2, 8, 6, 6), (2, 8, 4), (1, 8, 4, 4), (2, 4, 4, 4)):
        yield f"conv residual {shape}", call(residual=torch.randn(shape)), "residual"


BAD_CALLS = list(_bad_calls())


@pytest.mark.parametrize(("call", "name"), [pytest.param(call, name, id=what) for what, call, name in BAD_CALLS])
def test_every_bad_call_names_its_argument(call, name: str) -> None:
    with torch.no_grad(), pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert name in str(caught.value)


def test_there_are_many_bad_calls() -> None:
    assert len({what for what, _, _ in BAD_CALLS}) >= 200
