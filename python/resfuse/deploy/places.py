"""The places of a program's parameters: those it reads, in order, and each tensor once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from resfuse.engine.spec import ProgramSpec

_PLACES = (
    "weight", "bias", "weight_steps", "weight_zeros", "weight_lost", "input_means", "channel_scale", "slopes",
    "running_mean", "running_var",
)  # fmt: skip


def compact(
    spec: ProgramSpec, tensors: Sequence[torch.Tensor], names: Sequence[str]
) -> tuple[ProgramSpec, dict[str, torch.Tensor]]:
    """The program over the tensors that it reads, in the order of the dictionary."""
    found: dict[str, torch.Tensor] = {}
    new: dict[int, int] = {}

    def place(old: int) -> int:
        if old in new:
            return new[old]
        tensor, name, number = tensors[old], names[old], 1
        while name in found and found[name] is not tensor:
            number += 1
            name = f"{names[old]}.{number}"
        found.setdefault(name, tensor)
        new[old] = list(found).index(name)
        return new[old]

    layers = tuple(_replaced(layer, place) for layer in spec.layers)
    return dataclasses.replace(spec, layers=layers), found


def _replaced(part: Any, place: Callable[[int], int]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in _PLACES and value is not None:
            changes[field.name] = place(value)
        elif field.name == "batch_norm" and value is not None:
            changes[field.name] = _replaced(value, place)
    return dataclasses.replace(part, **changes)
