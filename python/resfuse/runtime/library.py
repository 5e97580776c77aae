"""The C functions of resfuse.h, by ctypes: one library serves every Python."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt

MOST_DIMENSIONS = 4
MOST_THREADS = 1024  # RESFUSE_MAX_THREADS
_INVALID_ARGUMENT, _IO_ERROR, _OUT_OF_MEMORY = 1, 2, 3
# The numbers of resfuse_dtype. NumPy has no bfloat16 of its own; that of the package ml_dtypes is called so.
_CODES = {"float32": 0, "bfloat16": 2, "float16": 3, "int64": 6}
_NAMES = {code: name for name, code in _CODES.items()}


class ModelError(RuntimeError):
    """The library could not do what it was asked to."""


class Tensor(ctypes.Structure):
    """``resfuse_tensor``."""

    _fields_ = [
        ("data", c_void_p), ("dtype", c_int32), ("ndim", c_int32),
        ("shape", c_int64 * MOST_DIMENSIONS), ("strides", c_int64 * MOST_DIMENSIONS),
    ]  # fmt: skip

    def dtype_name(self) -> str:
        """As NumPy calls it."""
        return _NAMES[self.dtype]


class PreprocessingStruct(ctypes.Structure):
    """``resfuse_preprocessing``."""

    _fields_ = [
        ("height", c_int64), ("width", c_int64), ("resize", c_int64), ("channels", c_int32),
        ("mean", POINTER(c_double)), ("std", POINTER(c_double)), ("interpolation", c_char_p),
    ]  # fmt: skip


def view(array: npt.NDArray[np.generic], what: str) -> Tensor:
    """An array of a type that models take, as the library sees it; the array must stay alive.

    Raises:
        ValueError: for too many dimensions, or strides that are no multiples of the item size.
    """
    if array.ndim > MOST_DIMENSIONS:
        raise ValueError(f"{what}: got {array.ndim} dimensions, want 4 (N, C, H, W)")
    size = array.itemsize
    if any(stride % size for stride in array.strides) or array.ctypes.data % size:
        raise ValueError(f"{what}: its elements do not lie at multiples of their size")
    tensor = Tensor(array.ctypes.data, _CODES[array.dtype.name], array.ndim)
    tensor.shape[: array.ndim] = array.shape
    tensor.strides[: array.ndim] = [stride // size for stride in array.strides]
    return tensor


def _path() -> Path:
    """Of the package's own library or, in the package of torch users, of the extension with the same functions."""
    own = Path(__file__).with_name("libresfuse.so")
    if own.exists():
        return own
    found = importlib.util.find_spec(__package__.rpartition(".")[0] + "._core")
    if found is None or found.origin is None:
        raise ImportError(f"{__package__}: its library is not installed")
    importlib.import_module(__package__.rpartition(".")[0] + "._openmp").provide()
    return Path(found.origin)


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library with the types of its functions."""
    loaded = ctypes.CDLL(str(_path()))
    model, tensors = c_void_p, POINTER(Tensor)
    types = {
        "version": (c_char_p, []),
        "isa": (c_char_p, []),
        "last_error": (c_char_p, []),
        "load": (c_int, [c_char_p, c_int, POINTER(model)]),
        "free": (None, [model]),
        "threads": (c_int, [model]),
        "model_dtype": (c_int, [model]),
        "input_count": (c_size_t, [model]),
        "output_count": (c_size_t, [model]),
        "input_name": (c_char_p, [model, c_size_t]),
        "output_name": (c_char_p, [model, c_size_t]),
        "input_shape": (c_int, [model, c_size_t, c_int64 * MOST_DIMENSIONS]),
        "get_preprocessing": (c_int, [model, POINTER(PreprocessingStruct)]),
        "label_count": (c_size_t, [model]),
        "label": (c_char_p, [model, c_size_t]),
        "describe_outputs": (c_int, [model, tensors, c_size_t, tensors, c_size_t]),
        "run": (c_int, [model, tensors, c_size_t, tensors, c_size_t]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(loaded, f"resfuse_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def check(status: int) -> None:
    """Raises what a status says: ValueError, OSError, MemoryError or ModelError."""
    if status == 0:
        return
    text = library().resfuse_last_error().decode(errors="replace")
    errors = {_INVALID_ARGUMENT: ValueError, _IO_ERROR: OSError, _OUT_OF_MEMORY: MemoryError}
    raise errors.get(status, ModelError)(text)


def dtype_name(code: int) -> str:
    """NumPy's name of a ``resfuse_dtype``."""
    return _NAMES[code]


def version() -> str:
    """The library's version."""
    return str(library().resfuse_version().decode())


def isa() -> str:
    """The instruction set in use: the best that the CPU has, or what RESFUSE_ISA says."""
    found = library().resfuse_isa().decode()
    if not found:
        raise ValueError(library().resfuse_last_error().decode())
    return str(found)


__all__ = [
    "MOST_THREADS", "ModelError", "PreprocessingStruct", "Tensor", "byref", "check", "dtype_name", "isa", "library",
    "version", "view",
]  # fmt: skip
