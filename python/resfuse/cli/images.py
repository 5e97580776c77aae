"""Folders of images for commands: what they hold, batch by batch, and what came of it. Needs no torch."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resfuse.runtime import Preprocessing, read_image

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
Row = tuple[str, str, float]  # image, class, probability
Classify = Callable[[npt.NDArray[Any], list[Path]], Iterable[tuple[str, float]]]


def find_images(folder: Path) -> list[Path]:
    """The images in a folder and its folders, sorted; raises FileNotFoundError where there are none."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)
    if not paths:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(sorted(ENDINGS))})")
    return paths


def require_writable(output: Path | None) -> None:
    """Raises OSError for a file that cannot be written, before everything is computed."""
    if output is not None:
        output.open("a").close()


def classify_all(
    folder: Path, paths: list[Path], batch: int, preprocessing: Preprocessing, classify: Classify, console: Console
) -> list[Row]:
    """A row for each image of a folder; ``classify`` gives class and probability of each image of a batch [N, C, H, W].

    What cannot be read is named and left out.
    """
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(folder.name, total=len(paths))
        for some, x, broken in _batches(paths, batch, preprocessing):
            for path, reason in broken:
                console.print(f"[yellow]left out:[/] {path}: {reason}", highlight=False)
            if some:
                for path, (label, p) in zip(some, classify(x, some), strict=True):
                    rows.append((str(path.relative_to(folder)), label, p))
            bar.update(task, advance=len(some) + len(broken))
    return rows


def show_rows(rows: list[Row], console: Console, output: Path | None) -> None:
    """Prints the rows and writes them to a CSV file, where one is named."""
    width = max((len(row[0]) for row in rows), default=0)
    for name, label, p in rows:
        console.print(f"{name.ljust(width)}  {label}  {p:.1%}", highlight=False)
    if output:
        with output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "class", "probability"))
            writer.writerows(rows)


def _batches(
    paths: list[Path], batch: int, preprocessing: Preprocessing
) -> Iterator[tuple[list[Path], npt.NDArray[np.float32], list[tuple[Path, str]]]]:
    """Paths, their images [N, C, H, W], and what could not be read."""
    for start in range(0, len(paths), batch):
        some, images, broken = [], [], []
        for path in paths[start : start + batch]:
            try:
                images.append(read_image(path, preprocessing))
                some.append(path)
            except (OSError, UnidentifiedImageError, ValueError) as error:
                broken.append((path, str(error)))
        yield some, np.stack(images) if images else np.empty(0, np.float32), broken
