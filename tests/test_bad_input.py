"""Bad arguments raise exceptions that name them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import resfuse
from resfuse import _core


def _fast() -> nn.Module:
    return resfuse.fuse(resfuse.models.ResNet("basic", [1], width=8, num_classes=5, stem="cifar").eval())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: resfuse.fuse("resnet"), TypeError, "model: got str, want a torch.nn.Module"),
        (lambda: resfuse.fuse(_fast(), algorithm="fft"), ValueError, "algorithm: got 'fft', want one of 'auto'"),
        (lambda: resfuse.fuse(_fast(), dtype=torch.bfloat16), ValueError, "dtype: got torch.bfloat16"),
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
        (lambda: _core.Program("mips"), ValueError, "RESFUSE_ISA=mips"),
        (lambda: _core.Program().add_input(0), ValueError, "channels: got 0"),
        (lambda: _core.Program().add_global_avg_pool("gap", 0), ValueError, "gap: input: got buffer 0"),
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
    program = _core.Program()
    layer = {
        "name": "conv", "input": program.add_input(4), "out_channels": 4, "kernel_size": [3, 3], "stride": [1, 1],
        "dilation": [1, 1], "padding": [1, 1, 1, 1], "groups": 1, "activation": "none", "residual": -1,
        "algorithm": "auto", **options,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"conv|got") as caught:
        program.add_conv(**layer)
    assert text in str(caught.value)


def test_core_checks_arrays() -> None:
    program = _core.Program()
    program.add_output(
        program.add_conv("conv", program.add_input(4), 8, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 1, "none", -1, "auto")
    )
    plan = _core.Plan(program, 2, [(5, 6, False)], 2)
    weights = _core.WeightSet(program)
    x, y = torch.randn(2, 4, 5, 6).numpy(), torch.empty(2, 8, 5, 6).to(memory_format=torch.channels_last).numpy()
    with pytest.raises(ValueError, match="weights were not set"):
        plan.run(weights, [x], [y])
    with pytest.raises(ValueError, match=r"weight has shape \[8, 4, 1, 1\], want \[8, 4, 3, 3\]"):
        weights.set(0, torch.randn(8, 4, 1, 1).numpy(), [], [])
    with pytest.raises(ValueError, match="scale has 3 values, want 8"):
        weights.set(0, torch.randn(8, 4, 3, 3).numpy(), [1.0] * 3, [])
    weights.set(0, torch.randn(8, 4, 3, 3).numpy(), [], [])
    with pytest.raises(ValueError, match=r"inputs\[0\]: got shape"):
        plan.run(weights, [x[:1]], [y])
    with pytest.raises(TypeError, match="float64"):
        plan.run(weights, [x.astype("float64")], [y])
    with pytest.raises(ValueError, match=r"outputs\[0\]"):
        plan.run(weights, [x], [torch.empty(2, 8, 5, 6).numpy()])
    with pytest.raises(ValueError, match="cannot grow"):
        program.add_input(3)
    other = _core.Program()
    other.add_output(other.add_global_avg_pool("gap", other.add_input(4)))
    with pytest.raises(ValueError, match="another program"):
        plan.run(_core.WeightSet(other), [x], [y])
    plan.run(weights, [x], [y])
    with pytest.raises(ValueError, match="smaller than the kernel"):
        _big_kernel()


def _big_kernel() -> _core.Plan:
    program = _core.Program()
    program.add_output(
        program.add_conv("conv", program.add_input(4), 8, [7, 7], [1, 1], [1, 1], [1, 1, 1, 1], 1, "none", -1, "auto")
    )
    return _core.Plan(program, 1, [(3, 3, False)], 1)
