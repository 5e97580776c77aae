"""``resfuse classify``: a folder of images through a fused classifier."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from rich.console import Console

import resfuse
from resfuse.bench.models import default_size, make_model
from resfuse.cli.images import classify_all, find_images, require_writable, show_rows
from resfuse.runtime import Preprocessing


def run(folder: Path, model: str, weights: Path, batch: int, labels: Path | None, output: Path | None) -> None:
    """Prints each image's class; exits with 1 where there is nothing to do."""
    try:
        paths = find_images(folder)
        require_writable(output)
    except OSError as error:
        sys.exit(f"resfuse classify: {error}")
    names = labels.read_text().splitlines() if labels else []
    fast = resfuse.fuse(_load(model, weights))
    size = default_size(model)

    def classify(x: npt.NDArray[Any], _: list[Path]) -> Iterator[tuple[str, float]]:
        with torch.inference_mode():
            images = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
            probability, index = fast(images).softmax(1).max(1)
        for p, i in zip(probability.tolist(), index.tolist(), strict=True):
            yield names[i] if i < len(names) else str(i), p

    console = Console()
    preprocessing = Preprocessing((size, size), round(size * 256 / 224))
    show_rows(classify_all(folder, paths, batch, preprocessing, classify, console), console, output)


def _load(model: str, weights: Path) -> torch.nn.Module:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)  # never runs code of the file
    except Exception as error:
        sys.exit(f"resfuse classify: --weights: {weights} is no file of tensors ({type(error).__name__})")
    try:
        network = make_model(model).eval()
        network.load_state_dict(state)
    except (ValueError, RuntimeError, TypeError) as error:
        sys.exit(f"resfuse classify: {error}")
    return network
