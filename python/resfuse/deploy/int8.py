"""Quantised layers' weights as the integers that they are computed with: a quarter of the bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from resfuse import _core
from resfuse.engine.spec import ConvSpec, ProgramSpec
from resfuse.engine.views import view


def with_integers(
    spec: ProgramSpec, parameters: Sequence[torch.Tensor], names: Sequence[str]
) -> tuple[ProgramSpec, list[torch.Tensor], list[str]]:
    """The same program over int8 weights [K, C, R, S], their steps, and what rounding took from each channel's mean."""
    if not spec.has_bytes:
        return spec, list(parameters), list(names)
    program = _core.Program(spec.to_text())
    weights = _core.WeightSet(program)
    weights.set_parameters([view(p.detach()) for p in parameters])
    tensors, called, layers = list(parameters), list(names), []
    for index, layer in enumerate(spec.layers):
        if not isinstance(layer, ConvSpec) or not spec.computes_bytes(layer) or _is_integer(parameters[layer.weight]):
            layers.append(layer)
            continue
        integers, steps, lost = weights.int8(index, torch.get_num_threads())
        made = [np.ascontiguousarray(integers.transpose(0, 3, 1, 2)), steps, lost]
        first = len(tensors)
        tensors += map(torch.from_numpy, made)
        name = names[layer.weight]
        called += [name, f"{name}_steps", f"{name}_lost"]
        layers.append(
            dataclasses.replace(
                layer, weight=first, weight_steps=first + 1, weight_lost=first + 2, weight_zeros=None, input_means=None
            )
        )
    return dataclasses.replace(spec, layers=tuple(layers)), tensors, called


def _is_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point()
