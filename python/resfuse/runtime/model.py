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

from .library import PreprocessingStruct, Tensor, byref, check, dtype_name, library, view
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
        OSError: for a file that cannot be read.
        ValueError: for one that holds no model, or that a newer version has written; for ``threads`` below 1.
    """
    return Model(path, threads)


class Model:
    """A model that computes inference. Several threads may call it at once.

    See `load` for the arguments.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads: got {threads}, want a positive number")
        handle = ctypes.c_void_p()
        check(library().resfuse_load(os.fsencode(path), threads or 0, byref(handle)))
        self._handle = handle
        weakref.finalize(self, library().resfuse_free, handle)
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
        names = [i.name for i in self.inputs]
        if set(inputs) != set(names):
            raise ValueError(f"inputs: got {sorted(inputs)}, want {sorted(names)}")
        unknown = [name for name in outputs or () if name not in self.outputs]
        if unknown:
            raise ValueError(f"outputs: got {unknown[0]!r}, want some of {self.outputs}")
        results = dict(zip(self.outputs, self._run([inputs[name] for name in names]), strict=True))
        return [results[name] for name in (self.outputs if outputs is None else outputs)]

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        if len(inputs) != len(self.inputs):
            raise ValueError(f"inputs: got {len(inputs)}, want {len(self.inputs)}")
        arrays = [np.asarray(x) for x in inputs]
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
