"""Parameters as the core sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def view(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """An array over a tensor's memory, to be read.

    ``Tensor.numpy`` would forbid for ever to resize the tensor's storage, and FSDP frees parameters by resizing theirs.
    """
    array: npt.NDArray[Any] = np.from_dlpack(tensor.detach())
    return array
