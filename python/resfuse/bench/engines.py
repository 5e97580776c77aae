"""The engines that a model can run on, each behind one call: build it once, then run it on one input."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse import _core
from resfuse.bench import int8_engines, portable_engines

Array = npt.NDArray[Any]
Runner = Callable[[], Array]
Builder = Callable[[nn.Module, torch.Tensor, Path], Runner]


def _torch_runner(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Runner:
    def run() -> Array:
        with torch.inference_mode():
            y = model(x)
            result: Array = (y if y.dtype is torch.float32 else y.float()).numpy()
            return result

    return run


def _moved(x: torch.Tensor) -> torch.Tensor:
    return x.to(memory_format=torch.channels_last)


def _channels_last(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    moved: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved, _moved(x)


_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fast_model(model: nn.Module, x: torch.Tensor, dtype: str = "fp32") -> tuple[nn.Module, torch.Tensor]:
    """A model as resfuse computes it in a type, and its input."""
    if dtype == "int8":
        return resfuse.quantize(model, int8_engines.calibration(x), progress=False), _moved(x)
    if dtype in _HALVES:
        model, x = model.to(_HALVES[dtype]), x.to(_HALVES[dtype])
    pool = isinstance(model, nn.AdaptiveAvgPool2d)
    return resfuse.nn.GlobalAvgPool2d() if pool else resfuse.fuse(model), _moved(x)


def _resfuse(dtype: str) -> Builder:
    def build(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
        return _torch_runner(*fast_model(model, x, dtype))

    return build


def _torch_half(dtype: torch.dtype) -> Builder:
    def build(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
        return _torch_runner(*_channels_last(model.to(dtype), x.to(dtype)))

    return build


def _eager(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    return _torch_runner(model, x)


def _eager_channels_last(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    return _torch_runner(*_channels_last(model, x))


def _compile(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    moved, x = _channels_last(model, x)
    compiled = torch.compile(moved, options={"freezing": True})

    def run() -> Array:
        with torch.no_grad():  # freezing folds constants under no_grad only
            result: Array = compiled(x).numpy()
            return result

    return run


def _zentorch(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    importlib.import_module("zentorch")
    config: Any = importlib.import_module("torch._inductor.config")
    config.freezing = True  # its backend takes no options
    moved, x = _channels_last(model, x)
    compiled = torch.compile(moved, backend="zentorch")

    def run() -> Array:
        with torch.no_grad():
            result: Array = compiled(x).numpy()
            return result

    return run


def _onnxruntime(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(precision: str) -> Builder:
    def build(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
        ov = importlib.import_module("openvino")
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        core = ov.Core()
        network = core.read_model(str(onnx))
        network.reshape(list(x.shape))
        compiled = core.compile_model(network, "CPU", config)
        request = compiled.create_infer_request()
        feed = x.numpy()
        return lambda: request.infer([feed], share_inputs=True, share_outputs=True)[0]

    return build


def _training_runner(
    model: nn.Module, step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, autocast: torch.dtype | None,
    last: bool,
) -> Runner:  # fmt: skip
    """Forward, loss and backward; gives the gradient of the first weight, or the last."""
    parameters = list(model.parameters())
    weights = [p for p in parameters if p.dim() > 1]
    shown = weights[-1 if last else 0]
    target = torch.arange(x.shape[0]) % 10

    def run() -> Array:
        with contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast):
            y = step(x)
            loss = F.cross_entropy(y, target) if y.dim() == 2 else y.square().mean()  # of a model, of a layer
        loss.backward()
        gradient = shown.grad
        assert gradient is not None
        for parameter in parameters:
            parameter.grad = None
        result: Array = gradient.numpy()
        return result

    return run


Trainer = Callable[[nn.Module, torch.Tensor], tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]


def _train_resfuse(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    return resfuse.fuse(model, inplace=True), _moved(x)


def _train_channels_last(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    moved: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved, _moved(x)


def _train_compile(model: nn.Module, x: torch.Tensor) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    model, x = _train_channels_last(model, x)
    return torch.compile(model), x


def _train_eager(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    return model, x


def _training(
    prepare: Trainer, autocast: torch.dtype | None = None, last: bool = False
) -> tuple[tuple[str, ...], Builder]:
    def build(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
        step, x = prepare(model, x)
        return _training_runner(model, step, x, autocast, last)

    return (), build


# The engines that train: forward, loss, backward. In half precision under autocast, over fp32 parameters. There they
# show the gradient of the last weight: signs of ReLUs flip between any two engines, and in 8 bits of precision the
# gradients of a deep network's first layers have another direction, in torch's own as well.
TRAINING_ENGINES: dict[str, dict[str, tuple[tuple[str, ...], Builder]]] = {
    "fp32": {
        "resfuse": _training(_train_resfuse),
        "eager": _training(_train_eager),
        "channels_last": _training(_train_channels_last),
        "compile": _training(_train_compile),
    },
    **{
        name: {
            "resfuse": _training(_train_resfuse, dtype, last=True),
            "resfuse fp32": _training(_train_resfuse, last=True),
            "channels_last": _training(_train_channels_last, dtype, last=True),
            "compile": _training(_train_compile, dtype, last=True),
        }
        for name, dtype in _HALVES.items()
    },
}


_OPENVINO = ("openvino", "onnx", "onnxscript")
_MNN, _NCNN = ("MNN", "onnx", "onnxscript"), ("ncnn", "pnnx")

# name -> (what must be installed, how it is built); fp32 unless the name says otherwise
ENGINES: dict[str, tuple[tuple[str, ...], Builder]] = {
    "resfuse": ((), _resfuse("fp32")),
    "eager": ((), _eager),
    "channels_last": ((), _eager_channels_last),
    "compile": ((), _compile),
    "onnxruntime": (("onnxruntime", "onnx", "onnxscript"), _onnxruntime),
    "openvino": (_OPENVINO, _openvino("f32")),
    "openvino bf16": (_OPENVINO, _openvino("bf16")),
    "zentorch": (("zentorch",), _zentorch),
    "mnn": (_MNN, portable_engines.mnn),
    "ncnn": (_NCNN, portable_engines.ncnn),
}
# In half precision: parameters, input and feature maps of that type, but for what is named otherwise.
HALF_ENGINES: dict[str, dict[str, tuple[tuple[str, ...], Builder]]] = {
    name: {
        "resfuse": ((), _resfuse(name)),
        "resfuse fp32": ((), _resfuse("fp32")),
        "torch": ((), _torch_half(_HALVES[name])),
        "openvino": (_OPENVINO, _openvino(hint)),
    }
    for name, hint in (("bf16", "bf16"), ("fp16", "f16"))
}
# Of bytes, but for what is named otherwise.
INT8_ENGINES: dict[str, tuple[tuple[str, ...], Builder]] = {
    "resfuse": ((), int8_engines.runner(int8_engines.resfuse_int8)),
    "resfuse fp32": ((), _resfuse("fp32")),
    "openvino": ((*_OPENVINO, "nncf"), int8_engines.runner(int8_engines.openvino_int8)),
    "onnxruntime": (("onnxruntime", "onnx", "onnxscript"), int8_engines.runner(int8_engines.onnxruntime_int8)),
    "compile": (("torchao",), int8_engines.runner(int8_engines.compile_int8)),
    "mnn fp32": (_MNN, portable_engines.mnn),
    "ncnn fp32": (_NCNN, portable_engines.ncnn),
}
DTYPES = ("fp32", *HALF_ENGINES, "int8")
# How far an engine's output may be from eager fp32's, as a share (rms): bytes lose 1 to 10 % of a network of random
# weights, whose signal-to-noise ratio is then 20 to 40 dB.
MOST_ERROR = {"fp32": 0.01, "bf16": 0.1, "fp16": 0.1, "int8": 0.3}
# The same of gradients: in fp32 those of deep networks are 2 to 3 % from fp64's.
MOST_GRADIENT_ERROR = {"fp32": 0.1, "bf16": 0.2, "fp16": 0.1}
_NEED_ONNX = ("onnxruntime", "openvino", "mnn")


def engines_of(dtype: str, train: bool = False) -> dict[str, tuple[tuple[str, ...], Builder]]:
    """The engines for inference in a type, "fp32", "bf16", "fp16" or "int8", or for training steps."""
    if train:
        return TRAINING_ENGINES[dtype]
    if dtype == "int8":
        return INT8_ENGINES
    return ENGINES if dtype == "fp32" else HALF_ENGINES[dtype]


def installed(name: str, dtype: str = "fp32") -> bool:
    """Whether an engine can run here."""
    return all(importlib.util.find_spec(package) is not None for package in engines_of(dtype)[name][0])


def builder(name: str, train: bool, dtype: str = "fp32") -> Builder:
    """How an engine is built, for inference in a type or for training steps."""
    return engines_of(dtype, train)[name][1]


def reference(train: bool, dtype: str) -> Builder:
    """What all engines' results are compared with: plain torch in fp32."""
    if not train:
        return _eager
    return _training(_train_eager, last=dtype != "fp32")[1]


def cpu_path(name: str) -> str:
    """Which instructions an engine runs, as far as it says."""
    if name.startswith("resfuse"):
        return _core.active_isa()
    if name.startswith("openvino"):
        return "oneDNN and its own"
    if name == "onnxruntime":
        return "MLAS"
    if name.startswith(("mnn", "ncnn")):
        return "its own"
    return f"oneDNN, ATen {torch.backends.cpu.get_cpu_capability()}"


def needs_onnx(name: str) -> bool:
    """Whether an engine reads the model from an ONNX file."""
    return name.startswith(_NEED_ONNX)


def export_onnx(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Writes a model, for the engines that read ONNX."""
    torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
