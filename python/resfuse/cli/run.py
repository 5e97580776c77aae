"""``resfuse run``: a folder of images through a saved model, without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from resfuse import runtime
from resfuse.cli.images import classify_all, find_images, require_writable, show_rows

_NEARLY = 1e-3


def run(file: Path, images: Path, batch: int, threads: int | None, output: Path | None, arrays: Path | None) -> None:
    """Prints each image's class, or writes the model's outputs as NumPy files; exits with 1 where it cannot."""
    try:
        require_writable(output)
        model = runtime.load(file, threads)
        rows = _rows(model, images, batch, arrays)
    except (OSError, ValueError) as error:
        sys.exit(f"resfuse run: {error}")
    show_rows(rows, Console(), output)


def _rows(model: runtime.Model, images: Path, batch: int, arrays: Path | None) -> list[tuple[str, str, float]]:
    if model.preprocessing is None:
        raise ValueError(f"{model.path}: does not say how images are made ready; save it with preprocessing=")
    if len(model.inputs) != 1:
        raise ValueError(f"{model.path}: takes {len(model.inputs)} inputs, want one")
    if arrays:
        arrays.mkdir(parents=True, exist_ok=True)

    def classify(x: npt.NDArray[Any], paths: list[Path]) -> Iterator[tuple[str, float]]:
        found = dict(zip(model.outputs, model.run(None, {model.inputs[0].name: x}), strict=True))
        if arrays:
            for i, path in enumerate(paths):
                target = arrays / path.relative_to(images).with_suffix(".npz")
                target.parent.mkdir(parents=True, exist_ok=True)
                np.savez(target, **{name: values[i] for name, values in found.items()})
        first = found[model.outputs[0]]
        if first.ndim == 1:
            yield from ((_label(model, int(i)), 1.0) for i in first)
        elif first.ndim == 2:
            yield from _best(model, first)
        elif arrays:
            yield from (("", 0.0) for _ in paths)
        else:
            raise ValueError(f"output {model.outputs[0]!r} has shape {list(first.shape)}, no classes: use --arrays")

    rows = classify_all(images, find_images(images), batch, model.preprocessing, classify, Console())
    return [row for row in rows if row[1]]


def _best(model: runtime.Model, scores: npt.NDArray[Any]) -> Iterator[tuple[str, float]]:
    scores = scores.astype(np.float64)
    given = (scores >= 0).all() and np.allclose(scores.sum(1), 1.0, atol=_NEARLY)
    exponents = np.exp(scores - scores.max(1, keepdims=True))
    probabilities = scores if given else exponents / exponents.sum(1, keepdims=True)
    for row in probabilities:
        index = int(row.argmax())
        yield _label(model, index), float(row[index])


def _label(model: runtime.Model, index: int) -> str:
    return model.labels[index] if index < len(model.labels) else str(index)
