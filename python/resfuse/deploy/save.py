"""Writing a fused model to a file."""

from __future__ import annotations

import dataclasses
import errno
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
    labels: Sequence[str] | None = None,
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
        labels: the names of the classes, as many as the first output has channels.

    Raises:
        TypeError: `fast` is no module, `example` no tensor or tuple with one, `labels` no list of strings.
        UnsupportedModelError: it is not fused as a whole; the message names the parts.
        ValueError: it is in train mode; `preprocessing` is of other channels than the first input, `labels` are not
            printable, or not as many as the first output has channels.
        OSError: the file cannot be written.
    """
    require_module("fast", fast)
    model = require_whole(fast)
    if model.training:
        raise ValueError("fast: is in train mode, want eval mode: a file holds inference only")
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise TypeError(f"preprocessing: got {type(preprocessing).__name__}, want a resfuse.Preprocessing")
    names = _labels(labels)
    arguments = _arguments(example)
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory, want a file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(target.parent))
    found = capture(model, arguments)
    channels = found.spec.inputs[0]
    if preprocessing is not None and len(preprocessing.mean) != channels:
        raise ValueError(f"preprocessing: got {len(preprocessing.mean)} channels, the model takes {channels}")
    first = found.outputs[0].output
    classes = found.spec.channels(found.spec.outputs[first].buffer)
    if names and len(names) != classes:
        raise ValueError(f"labels: got {len(names)}, the model's first output has {classes} channels")
    spec, tensors = compact(*with_integers(found.spec, found.parameters, found.names))
    description = {
        "version": VERSION,
        "dtype": DTYPES[found.dtype],
        "program": json.loads(spec.to_text()),
        "parameters": list(tensors),
        "inputs": [dataclasses.asdict(i) for i in found.inputs],
        "outputs": [dataclasses.asdict(o) for o in found.outputs],
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "labels": names,
    }
    write(target, description, tensors)


def _labels(labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        return []
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels: got {labels!r}, want a list of strings")
    for label in labels:
        if not label.isprintable():
            raise ValueError(f"labels: got {label!r}, want printable text")
    return list(labels)


def _arguments(example: torch.Tensor | Sequence[Any]) -> tuple[Any, ...]:
    arguments = (example,) if isinstance(example, torch.Tensor) else example
    if not isinstance(arguments, (tuple, list)) or not any(isinstance(value, torch.Tensor) for value in arguments):
        raise TypeError(
            f"example: got {type(example).__name__}, want a tensor [N, C, H, W] or a tuple of the model's arguments"
        )
    return tuple(arguments)
