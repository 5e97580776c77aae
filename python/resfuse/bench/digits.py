"""Real images that need no download."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F


def _table() -> Path:
    """scikit-learn's file, found without importing the package: its wheel brings an OpenMP runtime of its own, whose
    threads would disturb torch's."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError('the digits come with scikit-learn: pip install "resfuse[bench]"', name="sklearn")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: [N, 3, size, size] float32 in [-1, 1], labels 0 to 9."""

    size: int
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def load_digits(size: int = 16, held_out: float = 0.2, seed: int = 0) -> Digits:
    """The 1,797 scans (8 x 8, 17 grey levels; Alpaydin & Kaynak, 1998), shuffled, enlarged, as RGB.

    Args:
        size: height and width in pixels.
        held_out: share of the scans kept for testing.
        seed: of the shuffle.
    """
    table = torch.from_numpy(np.loadtxt(_table(), delimiter=","))
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    x = table[order, :-1].float().reshape(-1, 1, 8, 8) / 8 - 1
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1).contiguous()
    y = table[order, -1].long()
    test = round(held_out * len(y))
    return Digits(size, x[test:], y[test:], x[:test], y[:test])
