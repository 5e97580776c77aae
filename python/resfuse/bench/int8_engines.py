"""Engines that compute with bytes, each quantised by its own tools on the same calibration data."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

import resfuse

Array = npt.NDArray[Any]
Runner = Callable[[], Array]
Predictor = Callable[[torch.Tensor], Array]
Quantizer = Callable[[nn.Module, Path, Sequence[torch.Tensor]], Predictor]

_BATCHES = 4


def calibration(x: torch.Tensor) -> list[torch.Tensor]:
    """Batches like an input, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=generator) for _ in range(_BATCHES)]


def runner(quantize: Quantizer) -> Callable[[nn.Module, torch.Tensor, Path], Runner]:
    """An engine of the benchmark: quantised for random batches like its input."""

    def build(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
        predict = quantize(model, onnx, calibration(x))
        return lambda: predict(x)

    return build


def resfuse_int8(model: nn.Module, onnx: Path, batches: Sequence[torch.Tensor]) -> Predictor:
    """`resfuse.quantize` as it is."""
    fast = resfuse.quantize(model, batches, progress=False)
    return _torch_predictor(fast, torch.inference_mode)


def _torch_predictor(model: Callable[[torch.Tensor], torch.Tensor], mode: Callable[[], Any]) -> Predictor:
    given = moved = torch.empty(0)

    def predict(x: torch.Tensor) -> Array:
        nonlocal given, moved
        if x is not given:  # the one input of a benchmark is moved before it is timed
            given, moved = x, x.to(memory_format=torch.channels_last)
        with mode():
            result: Array = model(moved).numpy()
            return result

    return predict


def openvino_int8(model: nn.Module, onnx: Path, batches: Sequence[torch.Tensor]) -> Predictor:
    """By NNCF's post-training quantisation, as it is set for CPUs."""
    ov, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    core = ov.Core()
    network = core.read_model(str(onnx))
    network.reshape(list(batches[0].shape))
    data = nncf.Dataset([batch.numpy() for batch in batches])
    quantized = nncf.quantize(network, data, subset_size=len(batches))
    config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(quantized, "CPU", config).create_infer_request()
    return lambda x: request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0]


def onnxruntime_int8(model: nn.Module, onnx: Path, batches: Sequence[torch.Tensor]) -> Predictor:
    """By ``quantize_static``: QDQ, bytes u8 times s8, weights by channel."""
    ort, quantization = importlib.import_module("onnxruntime"), importlib.import_module("onnxruntime.quantization")
    onnx_module = importlib.import_module("onnx")
    whole, prepared, quantized = (onnx.with_name(f"{name}.onnx") for name in ("whole", "prepared", "int8"))
    onnx_module.save(onnx_module.load(str(onnx)), str(whole))  # weights in one file with it
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    shapes.quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    name = ort.InferenceSession(str(prepared), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._batches: Iterator[torch.Tensor] = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch.numpy()}

    quantization.quantize_static(
        str(prepared), str(quantized), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {name: x.numpy()})[0]


def compile_int8(model: nn.Module, onnx: Path, batches: Sequence[torch.Tensor]) -> Predictor:
    """torch.compile with freezing, of what torchao's PT2E quantises for it."""
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    # strict: https://github.com/pytorch/ao/issues/4478
    prepared: Any = pt2e.prepare_pt2e(torch.export.export(model, (batches[0],), strict=True).module(), quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    config: Any = importlib.import_module("torch._inductor.config")
    config.freezing = True  # as an option of this one call it cannot pack the weights
    compiled: Any = torch.compile(pt2e.convert_pt2e(prepared))
    return _torch_predictor(compiled, torch.no_grad)
