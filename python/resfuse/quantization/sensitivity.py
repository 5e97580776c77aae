"""Which layers lose most as bytes, and how often predictions stay the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from resfuse.lowering.ranges import Ranges
from resfuse.quantization.calibration import Batch, Calibration, Trial, run_trial

Layer = tuple[str, str]  # a part's path and a layer's name
_IMAGES = 2  # of a batch, that layers' noise is taken of


def tensors_of(result: Any) -> list[torch.Tensor]:
    """All tensors of a model's result, in order."""
    flat: list[torch.Tensor] = []
    torch.utils._pytree.tree_map_only(torch.Tensor, flat.append, result)
    return flat


def decibels(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Signal-to-noise ratio of a tensor, given what it would be without noise."""
    noise = float((other.double() - exact.double()).square().sum())
    signal = float(exact.double().square().sum())
    return math.inf if noise == 0 else (10 * math.log10(signal / noise) if signal > 0 else -math.inf)


def agreement_of(results: Sequence[Any], others: Sequence[Any]) -> float:
    """Share of predictions (the largest of the classes, of each image or pixel) that are the same."""
    same = count = 0
    for result, other in zip(results, others, strict=True):
        a, b = tensors_of(result)[0], tensors_of(other)[0]
        if a.dim() < 2:
            a, b = a[None], b[None]
        equal = a.argmax(1) == b.argmax(1)
        same += int(equal.sum())
        count += equal.numel()
    return same / count


def layer_noise(model: nn.Module, calibration: Calibration, ranges: Mapping[str, Ranges]) -> dict[Layer, float]:
    """Signal-to-noise ratio of each convolution's output on the first batch, with all before it computed with bytes."""
    exact, quantized = Trial(calibration, {}, inner=True), Trial(calibration, ranges, inner=True)
    for runner in (exact, quantized):
        run_trial(model, calibration.batches[:1], runner)
    few = slice(0, _IMAGES)
    return {layer: decibels(value[few], quantized.layers[layer][few]) for layer, value in exact.layers.items()}


def kept_for_agreement(
    model: nn.Module, calibration: Calibration, ranges: Mapping[str, Ranges], layers: Sequence[Layer], wanted: float
) -> tuple[list[Layer], float]:
    """The fewest of the most sensitive layers that must stay real numbers for so many equal predictions, and the share
    that is then reached.

    A layer is the more sensitive, the more noise there is in the model's output where it alone computes with bytes.
    """

    def with_kept(kept: Sequence[Layer]) -> dict[str, Ranges]:
        return {
            path: dataclasses.replace(r, keep=(*r.keep, *(name for p, name in kept if p == path)))
            for path, r in ranges.items()
        }

    def reached(kept: Sequence[Layer]) -> float:
        results = run_trial(model, calibration.batches, Trial(calibration, with_kept(kept)))
        return agreement_of(calibration.results, results)

    share = reached([])
    if share >= wanted:
        return [], share
    ordered = _by_sensitivity(model, calibration.batches[0], calibration, with_kept, layers)
    most, fewest = len(ordered), 0
    shares = {most: 1.0}  # nothing is bytes
    while most - fewest > 1:
        middle = (most + fewest) // 2
        shares[middle] = reached(ordered[:middle])
        if shares[middle] >= wanted:
            most = middle
        else:
            fewest = middle
    return list(ordered[:most]), shares[most]


def _by_sensitivity(
    model: nn.Module, batch: Batch, calibration: Calibration, with_kept: Any, layers: Sequence[Layer]
) -> list[Layer]:
    exact = tensors_of(calibration.results[0])[0]

    def noise(layer: Layer) -> float:
        others = [other for other in layers if other != layer]
        (result,) = run_trial(model, [batch], Trial(calibration, with_kept(others)))
        return decibels(exact, tensors_of(result)[0])

    return sorted(layers, key=noise)
