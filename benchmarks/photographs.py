"""Real photographs that need no download, and a task on them: which one is this crop from?"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

# Package, folder in it, files.
_SKIMAGE = "astronaut.png brick.png chelsea.png coffee.png coins.png grass.png gravel.png ihc.png motorcycle_left.png"
_SOURCES = (
    ("skimage", "data", _SKIMAGE.split()),
    ("sklearn", "datasets/images", ["china.jpg", "flower.jpg"]),
    ("matplotlib", "mpl-data/sample_data", ["grace_hopper.jpg"]),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """Images [N, 3, size, size] float32 with their classes, drawn anew at each call."""

    classes: int
    size: int
    images: tuple[torch.Tensor, ...]  # [1, H, W] in [0, 1], one for each class
    crop: int
    noise: float

    def draw(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """So many crops: mirrored, scaled, lighter or darker, of more or less contrast, noisy, without colour."""
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> float:
            return float(torch.rand((), generator=generator)) * (high - low) + low

        labels = torch.randint(self.classes, (count,), generator=generator)
        drawn = []
        for label in labels.tolist():
            image = self.images[label]
            side = round(self.crop * uniform(0.8, 1.25))
            top, left = (int(uniform(0, extent - side)) for extent in image.shape[1:])
            crop = image[None, :, top : top + side, left : left + side]
            crop = F.interpolate(crop, size=(self.size, self.size), mode="bilinear", align_corners=False)[0]
            crop = crop.flip(2) if uniform(0, 1) < 0.5 else crop
            drawn.append((crop - crop.mean()) * uniform(0.7, 1.4) + uniform(0.4, 0.6))
        x = torch.stack(drawn)
        x = (x + self.noise * torch.randn(x.shape, generator=generator) - 0.5) * 4
        return x.expand(-1, 3, -1, -1).contiguous(), labels


def _file(package: str, folder: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} comes with {package}: pip install scikit-image scikit-learn matplotlib")
    return Path(spec.origin).parent / folder / name


def photographs(size: int = 64, crop: int = 64, noise: float = 0.03) -> Task:
    """12 photographs of scikit-image, scikit-learn and matplotlib.

    Args:
        size: of the images that are handed out, pixels.
        crop: of the piece of a photograph that they show, pixels: the smaller, the harder.
        noise: standard deviation of what is added; white is 1.
    """
    from PIL import Image

    images = []
    for package, folder, names in _SOURCES:
        for name in names:
            with Image.open(_file(package, folder, name)) as image:
                grey = np.asarray(image.convert("L"), np.float32) / 255
            images.append(torch.from_numpy(grey)[None])
    return Task(len(images), size, tuple(images), crop, noise)
