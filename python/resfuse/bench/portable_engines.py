"""Engines made for phones, which run on servers as well: MNN and ncnn, in fp32."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[Any]
Runner = Callable[[], Array]


def mnn(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    """MNN in its high precision."""
    mnn = importlib.import_module("MNN")
    converted = onnx.with_suffix(".mnn")
    # Not MNN.tools.mnnconvert, which installs packages and reports what was converted.
    importlib.import_module("_tools").mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(onnx), "--MNNModel", str(converted)]
    )
    interpreter = mnn.Interpreter(str(converted))
    session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": torch.get_num_threads()})
    source, target = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    feed = mnn.Tensor(tuple(x.shape), mnn.Halide_Type_Float, x.numpy(), mnn.Tensor_DimensionType_Caffe)
    shape = tuple(target.getShape())
    result = mnn.Tensor(shape, mnn.Halide_Type_Float, np.zeros(shape, np.float32), mnn.Tensor_DimensionType_Caffe)

    def run() -> Array:
        source.copyFrom(feed)
        interpreter.runSession(session)
        target.copyToHostTensor(result)
        return np.array(result.getNumpyData()).reshape(shape)

    return run


def ncnn(model: nn.Module, x: torch.Tensor, onnx: Path) -> Runner:
    """ncnn, converted by its pnnx; it takes one image at a time."""
    ncnn, pnnx = importlib.import_module("ncnn"), importlib.import_module("pnnx")
    traced = onnx.with_name("ncnn.pt")
    torch.jit.trace(model, x[:1]).save(str(traced))
    shape = ",".join(map(str, x[:1].shape))
    command = [pnnx.EXEC_PATH, traced.name, f"inputshape=[{shape}]", "fp16=0"]
    subprocess.run(command, cwd=traced.parent, check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    net.load_param(str(traced.with_suffix(".ncnn.param")))
    net.load_model(str(traced.with_suffix(".ncnn.bin")))
    (source,), (target,) = net.input_names(), net.output_names()
    images = [np.ascontiguousarray(image) for image in x.numpy()]

    def run() -> Array:
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input(source, ncnn.Mat(image))
            results.append(np.array(extractor.extract(target)[1]))
        return np.stack(results)

    return run
