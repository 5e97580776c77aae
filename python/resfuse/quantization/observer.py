"""What calibration keeps of a feature map, and the range that a method makes of it.

Each value is kept as an extreme and in a histogram, in one pass. Methods, as PyTorch, TensorRT and OpenVINO have them:

- "minmax": from the least to the greatest value.
- "percentile": without the 0.005 % at either end.
- "mse": that with the least mean square error of the bytes (Banner et al., 2019, "Post training 4-bit quantization").
- "entropy": that whose distribution of bytes tells most of the values' (Migacz, 2017, "8-bit inference with TensorRT").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from resfuse.engine.spec import Range

Array = npt.NDArray[Any]

_HALF = 2048  # bins on either side of zero
_SAMPLES = 1 << 16  # of each batch
_LEAST_PIXELS = 1024  # of each batch, that means are taken of
_CANDIDATES = np.linspace(0.25, 1.0, 76)  # shares of the extremes
_TAIL = 5e-5


class Observer:
    """Extremes and a histogram of values; bins double in width when a value lies outside of them."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self._width = 0.0
        self._counts = np.zeros(2 * _HALF, dtype=np.int64)

    def add(self, values: torch.Tensor) -> None:
        """Takes in the values of one batch.

        Raises:
            ValueError: there are none, or some are not finite.
        """
        if values.numel() == 0:
            raise ValueError("got no values")
        # In the order of memory: torch reduces other tensors many times as slowly.
        flat = values.permute(0, 2, 3, 1).reshape(-1) if values.dim() == 4 else values.reshape(-1)
        low, high = (float(bound) for bound in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("got values that are NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self._width == 0.0:
            return  # nothing but zeros so far
        every = _every(flat.numel(), _SAMPLES, flat.numel() // len(values))
        bins = np.floor(flat[::every].numpy() / self._width).astype(np.int64) + _HALF
        self._counts += np.bincount(bins, minlength=2 * _HALF)

    def _widen(self, magnitude: float) -> None:
        if magnitude == 0.0:
            return
        if self._width == 0.0:
            self._width = 2.0 ** math.ceil(math.log2(magnitude / (_HALF / 2)))
        while magnitude >= self._width * (_HALF - 1):
            merged = np.zeros_like(self._counts)
            merged[_HALF // 2 : _HALF + _HALF // 2] = self._counts[0::2] + self._counts[1::2]
            self._counts = merged
            self._width *= 2

    def range(self, method: str) -> Range | None:
        """Scale and zero point by a method; None where all values were zero."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if high == low:
            return None
        share = _METHODS[method](self, low, high)
        return range_of(low * share[0], high * share[1])

    def histogram(self) -> tuple[Array, Array]:
        """The bins that hold something: their middles and counts."""
        held = np.flatnonzero(self._counts)
        return (held - _HALF + 0.5) * self._width, self._counts[held].astype(np.float64)


class ChannelMeans:
    """Means by channel, of every so many pixels."""

    def __init__(self) -> None:
        self._sums = np.zeros(0)
        self._batches = 0

    def add(self, values: torch.Tensor) -> None:
        """Takes in a batch [N, C, H, W]; batches count alike."""
        pixels = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
        wanted = max(_SAMPLES // values.shape[1], _LEAST_PIXELS)
        every = _every(len(pixels), wanted, len(pixels) // len(values))
        means = pixels[::every].numpy().mean(0, dtype=np.float64)
        self._sums = means if self._batches == 0 else self._sums + means
        self._batches += 1

    def means(self) -> tuple[float, ...]:
        """By channel, to six digits."""
        return tuple(float(f"{value:.6g}") for value in self._sums / max(self._batches, 1))


def _every(count: int, wanted: int, image: int) -> int:
    """Of how many elements to take one, to have about so many: all channels, rows and columns of an image have their
    turn, as its size and this number have no divisor in common.
    """
    every = max(count // wanted, 1)
    while math.gcd(every, image) > 1:
        every += 1
    return every


def range_of(low: float, high: float) -> Range:
    """Scale and zero point of bytes from ``low`` (at most 0) to ``high`` (at least 0)."""
    scale = max((high - low) / 255, float(np.finfo(np.float32).tiny) * 4)
    return float(np.float32(scale)), min(max(round(-low / scale), 0), 255)


def _bytes_of(values: Array, low: float, high: float) -> tuple[Array, Range]:
    scale, zero = range_of(low, high)
    return np.clip(np.rint(values / scale) + zero, 0, 255), (scale, zero)


def _whole(observer: Observer, low: float, high: float) -> tuple[float, float]:
    return 1.0, 1.0


def _percentile(observer: Observer, low: float, high: float) -> tuple[float, float]:
    values, counts = observer.histogram()
    share = np.cumsum(counts) / counts.sum()
    bottom = float(values[np.searchsorted(share, _TAIL)])
    top = float(values[min(int(np.searchsorted(share, 1 - _TAIL)), len(values) - 1)])
    return (min(max(bottom / low, 0.0), 1.0) if low < 0 else 1.0), (min(max(top / high, 0.0), 1.0) if high > 0 else 1.0)


def _best(cost: Callable[[float], float]) -> tuple[float, float]:
    share = float(min(_CANDIDATES[::-1], key=lambda candidate: cost(float(candidate))))
    return share, share


def _mse(observer: Observer, low: float, high: float) -> tuple[float, float]:
    values, counts = observer.histogram()

    def cost(share: float) -> float:
        byte, (scale, zero) = _bytes_of(values, low * share, high * share)
        return float(np.dot(counts, ((byte - zero) * scale - values) ** 2))

    return _best(cost)


def _entropy(observer: Observer, low: float, high: float) -> tuple[float, float]:
    values, counts = observer.histogram()
    total = counts.sum()

    def cost(share: float) -> float:
        inside = (values >= low * share) & (values <= high * share)
        if not inside.any():
            return math.inf
        # What is cut off counts at the ends; a byte's share of the values is spread over those that it stands for.
        clipped = counts[inside].copy()
        clipped[0] += counts[values < low * share].sum()
        clipped[-1] += counts[values > high * share].sum()
        byte, _ = _bytes_of(values[inside], low * share, high * share)
        level = byte.astype(np.int64)
        sums, sizes = np.bincount(level, weights=counts[inside]), np.bincount(level)
        spread = sums[level] / sizes[level]
        p, q = clipped / total, spread / spread.sum()
        return float(np.sum(p * np.log(p / np.maximum(q, 1e-30))))

    return _best(cost)


_METHODS: dict[str, Callable[[Observer, float, float], tuple[float, float]]] = {
    "mse": _mse,
    "minmax": _whole,
    "percentile": _percentile,
    "entropy": _entropy,
}
METHODS = tuple(_METHODS)
