"""Tensors as the core sees them: arrays over their memory.

``Tensor.numpy`` would forbid for ever to resize a tensor's storage. FSDP frees parameters by resizing theirs, and users
fill tensors of theirs again with ``out=``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# NumPy knows no bf16.
_CODES = {
    torch.float32: "<f4", torch.float64: "<f8", torch.float16: "<f2", torch.bfloat16: "<u2",
    torch.uint8: "|u1", torch.int8: "|i1", torch.int32: "<i4", torch.int64: "<i8",
}  # fmt: skip


class _Memory:
    """What NumPy asks of an object whose memory it may share."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.storage = tensor.untyped_storage()  # the array holds this object, and so the memory
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": tuple([stride * size for stride in tensor.stride()]),
            "typestr": _CODES[tensor.dtype],
        }


def view(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A writable array over the memory of a CPU tensor of any strides; over a copy's where its values are lazily
    negated.
    """
    return np.asarray(_Memory(tensor.resolve_neg()))
