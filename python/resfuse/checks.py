"""Checks of arguments: exceptions that name the argument, what it got and what it wants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def require_module(name: str, value: object) -> None:
    """Raises TypeError for what is no module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: got {type(value).__name__}, want a torch.nn.Module")


def require_tensor(name: str, value: object) -> None:
    """Raises TypeError for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, want a torch.Tensor")


def require_positive(name: str, value: object) -> None:
    """Raises ValueError for what is no int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, want a positive integer")


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises ValueError for what is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, want one of {', '.join(map(repr, choices))}")


def require_epsilon(name: str, value: object) -> None:
    """Raises ValueError for what is no positive, finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{name}: got {value!r}, want a positive number")


def pair_of(name: str, value: object, least: int) -> tuple[int, int]:
    """An int or two, as a pair; raises ValueError for anything else and for less than ``least``."""
    values = [value, value] if isinstance(value, int) else list(value) if isinstance(value, (tuple, list)) else []
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values):
        raise ValueError(f"{name}: got {value!r}, want an int or two, at least {least}")
    return int(values[0]), int(values[1])
