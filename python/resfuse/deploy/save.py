"""Writing a fused model to a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfuse.checks import require_module
from resfuse.deploy.capture import capture, require_whole
from resfuse.deploy.file import VERSION, write
from resfuse.deploy.int8 import with_integers
from resfuse.deploy.places import compact
from resfuse.engine.executor import DTYPES
from resfuse.runtime.preprocessing import Preprocessing


def save(
    fast: nn.Module,
    path: str | os.PathLike[str],
    example: torch.Tensor | Sequence[Any],
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Writes a fused model to one file, which `resfuse.load` and `resfuse.runtime.load` (without torch) read.

    The file is safetensors: the parameters as they are (float32, bfloat16, float16; int8 where the model is quantised),
    and the program as JSON in its metadata. Nothing in it is code. The model in it takes any batch and, where its code
    does not ask for sizes, any image size.

    Args:
        fast: what `resfuse.fuse` or `resfuse.quantize` returned, in eval mode. All of it must run as one program, with
            softmax, log_softmax and argmax over the channels, and sigmoid, behind it at most.
        path: the file; it is replaced at once, or not at all.
        example: the model's input [N, C, H, W], or a tuple of its arguments. The model is called with it.
        preprocessing: how images become inputs, for `resfuse run` and `resfuse.runtime.read_image`.
        labels: the names of the classes.

    Raises:
        TypeError: `fast` is no module.
        UnsupportedModelError: it is not fused as a whole; the message names the parts.
        ValueError: it is in train mode, or `preprocessing` is of other channels than the first input.
        OSError: the file cannot be written.
    """
    require_module("fast", fast)
    model = require_whole(fast)
    if model.training:
        raise ValueError("fast: is in train mode, want eval mode: a file holds inference only")
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise TypeError(f"preprocessing: got {type(preprocessing).__name__}, want a resfuse.Preprocessing")
    found = capture(model, (example,) if isinstance(example, torch.Tensor) else tuple(example))
    channels = found.spec.inputs[0]
    if preprocessing is not None and len(preprocessing.mean) != channels:
        raise ValueError(f"preprocessing: got {len(preprocessing.mean)} channels, the model takes {channels}")
    spec, tensors = compact(*with_integers(found.spec, found.parameters, found.names))
    description = {
        "version": VERSION,
        "dtype": DTYPES[found.dtype],
        "program": json.loads(spec.to_text()),
        "parameters": list(tensors),
        "inputs": [dataclasses.asdict(i) for i in found.inputs],
        "outputs": [dataclasses.asdict(o) for o in found.outputs],
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "labels": [str(label) for label in labels],
    }
    write(Path(path), description, tensors)
