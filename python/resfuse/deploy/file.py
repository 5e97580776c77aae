"""The file: safetensors (https://github.com/huggingface/safetensors) whose metadata describes the model.

The key ``resfuse`` of the metadata holds JSON: ``version``, ``dtype`` (of feature maps), ``program`` (see
`resfuse.engine.spec.ProgramSpec`), ``parameters`` (names of tensors, by place), ``inputs``, ``outputs``,
``preprocessing``, ``labels``. csrc/deploy/model.cpp reads it.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

VERSION = 1
KEY = "resfuse"
_ALIGNMENT = 64
_CODES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip
_TYPES = {code: dtype for dtype, code in _CODES.items()}


def write(path: Path, description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a file beside its place and moves it there when it is whole."""
    # Large elements first: so each lies at a multiple of its size.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(description, separators=(",", ":"), allow_nan=False)}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                flat = tensors[name].detach().resolve_neg().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and tensors of a file that `resfuse.runtime.load` has checked; mapped, copied where written to."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    description = json.loads(header.pop("__metadata__")[KEY])
    size = path.stat().st_size - 8 - length
    data = torch.from_file(str(path), shared=False, size=size + 8 + length, dtype=torch.uint8)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = data[begin:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return description, tensors


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
