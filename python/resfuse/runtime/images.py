"""Image files as inputs. Wants Pillow, which the runtime does not need otherwise."""

from __future__ import annotations

from os import PathLike
from typing import IO

import numpy as np
import numpy.typing as npt

from .preprocessing import Preprocessing


def read_image(file: str | PathLike[str] | IO[bytes], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """An image file as a contiguous [C, H, W] array, scaled, cropped, normalised. `np.stack` makes a batch of several.

    Args:
        file: a path or an open file, of any format that Pillow reads.
        preprocessing: what the model wants, as `Model.preprocessing` says; one channel means grey, three RGB.

    Raises:
        OSError: for what is no image (``PIL.UnidentifiedImageError``) or cannot be read.
        ValueError: for a model of other channels, or an image without pixels.
        ModuleNotFoundError: where Pillow is not installed.
    """
    from PIL import Image

    modes = {1: "L", 3: "RGB"}
    channels = len(preprocessing.mean)
    if channels not in modes:
        raise ValueError(f"preprocessing: got {channels} channels, want 1 (grey) or 3 (RGB)")
    with Image.open(file) as opened:
        image = opened.convert(modes[channels])
    height, width = preprocessing.size
    scale = preprocessing.resize / min(image.size)
    # The shorter side exactly, the longer one as torchvision has it: rounded down.
    scaled = [preprocessing.resize if side == min(image.size) else int(side * scale) for side in image.size]
    methods = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    image = image.resize((scaled[0], scaled[1]), methods[preprocessing.interpolation])
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32).reshape(height, width, channels) / 255
    mean, std = (np.asarray(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))
