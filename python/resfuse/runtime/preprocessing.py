"""What a model wants of its images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: scaled, cropped, normalised.

    The shorter side is scaled to ``resize`` pixels, the middle of ``size`` (height, width) is kept, and a pixel p, from
    0 to 1, becomes ``(p - mean) / std`` by channel. The defaults are those that ResNets for ImageNet have.

    Raises:
        ValueError: for sizes that are not positive, or a ``resize`` smaller than ``size``; for a ``std`` that is not
            positive, ``mean`` and ``std`` of several lengths, an unknown interpolation.
    """

    size: tuple[int, int] = (224, 224)
    resize: int = 256
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: got {self.size}, want (height, width), both positive")
        if self.resize < max(self.size):
            raise ValueError(f"resize: got {self.resize}, want at least {max(self.size)}, the longer side of size")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean, std: got {len(self.mean)} and {len(self.std)} numbers, want one for each channel")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(f"mean, std: got {self.mean} and {self.std}, want finite numbers, std positive")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation: got {self.interpolation!r}, want one of {', '.join(_INTERPOLATIONS)}")
