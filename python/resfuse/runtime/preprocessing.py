"""What a model wants of its images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

_INTERPOLATIONS = ("bilinear", "bicubic")
_MOST_LENGTH = 1 << 16


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: scaled, cropped, normalised.

    The shorter side is scaled to ``resize`` pixels, the middle of ``size`` (height, width) is kept, and a pixel p, from
    0 to 1, becomes ``(p - mean) / std`` by channel. The defaults are those that ResNets for ImageNet have.

    Raises:
        TypeError: for what are no numbers.
        ValueError: for sizes that are not positive, or a ``resize`` smaller than ``size``; for a ``std`` that is not
            positive, ``mean`` and ``std`` of several lengths, an unknown interpolation.
    """

    size: tuple[int, int] = (224, 224)
    resize: int = 256
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise TypeError(f"{name}: got {value!r}, want a sequence of numbers")
            object.__setattr__(self, name, tuple(value))
        if len(self.size) != 2 or not all(_is_length(length) for length in self.size):
            raise ValueError(f"size: got {self.size}, want (height, width), integers from 1 to {_MOST_LENGTH}")
        if not _is_length(self.resize) or self.resize < max(self.size):
            raise ValueError(
                f"resize: got {self.resize!r}, want an integer from {max(self.size)}, the longer side of size, "
                f"to {_MOST_LENGTH}"
            )
        if not all(isinstance(v, (int, float)) for v in (*self.mean, *self.std)):
            raise TypeError(f"mean, std: got {self.mean} and {self.std}, want numbers")
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean, std: got {len(self.mean)} and {len(self.std)} numbers, want one for each channel")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(f"mean, std: got {self.mean} and {self.std}, want finite numbers, std positive")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation: got {self.interpolation!r}, want one of {', '.join(_INTERPOLATIONS)}")


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_LENGTH
