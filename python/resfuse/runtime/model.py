"""A model from a file: NumPy in, NumPy out."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .library import MOST_THREADS, PreprocessingStruct, Tensor, byref, check, dtype_name, library, view
from .preprocessing import Preprocessing

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Input:
    """An input: its name and its shape [N, C, H, W], with None where any length will do."""

    name: str
    shape: tuple[int | None, ...]


def load(path: str | os.PathLike[str], threads: int | None = None) -> Model:
    """A model that `resfuse.save` has written.

    The file is mapped into memory; weights are packed by the first call for a batch and image size. Nothing in the file
    is ever run as code.

    Args:
        path: the file.
        threads: of a call; if not given, what the environment's ``OMP_NUM_THREADS`` says, or one for each core.

    Raises:
        OSError: for a file that cannot be read (FileNotFoundError, IsADirectoryError, ...).
        ValueError: for one that holds no model, or that a newer version has written; for ``threads`` below 1 or above
            1024.
        TypeError: for ``threads`` that are no integer.
    """
    return Model(path, threads)


class Model:
    """A model that computes inference. Several threads may call it at once.

    See `load` for the arguments.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool)):
            raise TypeError(f"threads: got {threads!r}, want a positive integer or None")
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"threads: got {threads}, want 1 to {MOST_THREADS}")
        with open(path, "rb"):  # raises what Python's users expect of files
            pass
        handle = ctypes.c_void_p()
        check(library().resfuse_load(os.fsencode(path), threads or 0, byref(handle)))
        self._handle = handle
        # Not at exit: threads may still compute then, and the process gives its memory back anyway.
        weakref.finalize(self, library().resfuse_free, handle).atexit = False
        self.path = os.fspath(path)
        self.threads: int = library().resfuse_threads(handle)
        self.dtype = dtype_name(library().resfuse_model_dtype(handle))
        self.inputs = [self._input(i) for i in range(library().resfuse_input_count(handle))]
        self.outputs = [
            str(library().resfuse_output_name(handle, i).decode())
            for i in range(library().resfuse_output_count(handle))
        ]
        self.labels = [
            str(library().resfuse_label(handle, i).decode()) for i in range(library().resfuse_label_count(handle))
        ]
        self.preprocessing = self._preprocessing()

    def __call__(self, *inputs: Array) -> Any:
        """The model's output for arrays [N, C, H, W]: an array, or a dictionary where it has several.

        Args:
            inputs: float32, or of the type that the model computes in (`dtype`); any strides, any batch, any image size
                that the network takes.

        Returns:
            Arrays of the first input's type in contiguous memory: [N, classes], [N, C, H, W], or int64 for indices.

        Raises:
            TypeError, ValueError: for inputs of other types or shapes, naming what they are and what is wanted.
        """
        results = self._run(inputs)
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs by their names (None: all of them) for inputs by theirs, as ``onnxruntime.InferenceSession.run``."""
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs: got {type(inputs).__name__}, want a dictionary of arrays by name")
        if isinstance(outputs, str):
            raise TypeError(f"outputs: got {outputs!r}, want a list of names or None")
        names = [i.name for i in self.inputs]
        if set(inputs) != set(names):
            raise ValueError(f"inputs: got {list(inputs)}, want {names}")
        unknown = [name for name in outputs or () if name not in self.outputs]
        if unknown:
            raise ValueError(f"outputs: got {unknown[0]!r}, want some of {self.outputs}")
        results = dict(zip(self.outputs, self._run([inputs[name] for name in names]), strict=True))
        return [results[name] for name in (self.outputs if outputs is None else outputs)]

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        if len(inputs) != len(self.inputs):
            raise ValueError(f"inputs: got {len(inputs)}, want {len(self.inputs)}")
        arrays = [self._array(x, i) for x, i in zip(inputs, self.inputs, strict=True)]
        views = [view(x, f"input {i.name!r}") for x, i in zip(arrays, self.inputs, strict=True)]
        given, made = (Tensor * len(views))(*views), (Tensor * len(self.outputs))()
        check(library().resfuse_describe_outputs(self._handle, given, len(given), made, len(made)))
        results: list[Array] = []
        for tensor in made:
            shape = tuple(tensor.shape[: tensor.ndim])
            dtype = np.dtype(np.int64) if tensor.dtype_name() == "int64" else arrays[0].dtype
            results.append(np.empty(shape, dtype))
            tensor.data = results[-1].ctypes.data
        check(library().resfuse_run(self._handle, given, len(given), made, len(made)))
        return results

    def _array(self, x: Array, to: Input) -> Array:
        """Raises TypeError for what no input can be."""
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"input {to.name!r}: got a masked array, want a plain one (x.filled(...))")
        array = np.asarray(x)
        if array.dtype.name not in ("float32", self.dtype) or not array.dtype.isnative:
            want = "float32" if self.dtype == "float32" else f"float32 or {self.dtype}"
            raise TypeError(f"input {to.name!r}: got dtype {array.dtype}, want {want}")
        return array

    def __copy__(self) -> Model:
        """The model itself: nothing in it changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its file: who unpickles it loads that."""
        return load, (os.path.abspath(self.path), self.threads)

    def _input(self, index: int) -> Input:
        shape = (ctypes.c_int64 * 4)()
        check(library().resfuse_input_shape(self._handle, index, shape))
        name = library().resfuse_input_name(self._handle, index).decode()
        return Input(name, tuple(None if length < 0 else int(length) for length in shape))

    def _preprocessing(self) -> Preprocessing | None:
        found = PreprocessingStruct()
        if library().resfuse_get_preprocessing(self._handle, byref(found)) != 0:
            return None
        n = found.channels
        text = found.interpolation.decode()
        return Preprocessing((found.height, found.width), found.resize, found.mean[:n], found.std[:n], text)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{i.name}: {list(i.shape)}" for i in self.inputs)
        return f"Model({self.path!r}, {self.dtype}, {inputs} -> {', '.join(self.outputs)}, {self.threads} threads)"
