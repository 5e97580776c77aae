"""``resfuse classify``: a folder of images through a fused classifier."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import resfuse
from resfuse.bench.digits import IMAGENET_DEVIATION, IMAGENET_MEAN
from resfuse.bench.models import default_size, make_model

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_MEAN = np.asarray(IMAGENET_MEAN, np.float32)
_DEVIATION = np.asarray(IMAGENET_DEVIATION, np.float32)


def run(folder: Path, model: str, weights: Path, batch: int, labels: Path | None, output: Path | None) -> None:
    """Prints each image's class; exits with 1 where there is nothing to do."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS)
    if not paths:
        sys.exit(f"resfuse classify: {folder} has no images ({', '.join(sorted(_ENDINGS))})")
    names = labels.read_text().splitlines() if labels else []
    console = Console()
    network = _load(model, weights)
    fast = resfuse.fuse(network)
    rows: list[tuple[str, str, float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar, torch.inference_mode():
        task = bar.add_task(folder.name, total=len(paths))
        for some, x, broken in _batches(paths, batch, default_size(model)):
            for path, reason in broken:
                console.print(f"[yellow]left out:[/] {path}: {reason}", highlight=False)
            if some:
                probability, index = fast(x).softmax(1).max(1)
                for path, p, i in zip(some, probability.tolist(), index.tolist(), strict=True):
                    rows.append((str(path.relative_to(folder)), names[i] if i < len(names) else str(i), p))
            bar.update(task, advance=len(some) + len(broken))
    width = max((len(row[0]) for row in rows), default=0)
    for name, label, p in rows:
        console.print(f"{name.ljust(width)}  {label}  {p:.1%}", highlight=False)
    if output:
        with output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "class", "probability"))
            writer.writerows(rows)


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


def _batches(
    paths: list[Path], batch: int, size: int
) -> Iterator[tuple[list[Path], torch.Tensor, list[tuple[Path, str]]]]:
    """Paths, their images [N, 3, size, size], and what could not be read."""
    for start in range(0, len(paths), batch):
        some, images, broken = [], [], []
        for path in paths[start : start + batch]:
            try:
                images.append(_read(path, size))
                some.append(path)
            except (OSError, UnidentifiedImageError, ValueError) as error:
                broken.append((path, str(error)))
        x = torch.stack(images) if images else torch.empty(0, 3, size, size)
        yield some, x.to(memory_format=torch.channels_last), broken


def _read(path: Path, size: int) -> torch.Tensor:
    """The middle of an image whose shorter side is size * 256 / 224, normalised."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = size * 256 / 224 / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, np.float32) / 255
    return torch.from_numpy((pixels - _MEAN) / _DEVIATION).permute(2, 0, 1)
