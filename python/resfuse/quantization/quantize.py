"""`resfuse.quantize`: a fused model whose whole programs compute with bytes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from resfuse.checks import require_choice, require_module
from resfuse.fused.fuse import fuse
from resfuse.fused.module import FusedModule, require_fused
from resfuse.lowering.ranges import Ranges
from resfuse.quantization.calibration import Calibration
from resfuse.quantization.observer import METHODS
from resfuse.quantization.sensitivity import Layer, kept_for_agreement, layer_noise


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: str = "mse",
    keep: Sequence[str] = (),
    agreement: float | None = None,
    inplace: bool = False,
    progress: bool | None = None,
) -> nn.Module:
    """Quantises a model after training: its convolutions and linear layers compute with bytes (int8).

    The result is what `fuse` returns: the model's class, forward signature, ``state_dict`` keys and the very same
    Parameter and buffer objects. In ``eval()`` without gradients its programs hold feature maps as unsigned bytes, each
    with a scale and a zero point that calibration finds, and weights as signed bytes with a scale for each output
    channel. Sums are exact; an output is rounded once, behind batch norm, residual sum and activation. All CPUs give
    the same bits (but for SiLU, GELU, tanh, sigmoid and softmax, which differ in the last bits of fp32). Weights
    follow every change of the parameters; ranges stay. In ``train()`` mode, where gradients are asked for, and for
    inputs or parameters of other types than float32 the model computes as a fused one.

    ``state_dict()`` carries the ranges under one more key, ``resfuse_ranges`` (a tensor, behind the fused part's path),
    and ``load_state_dict`` takes them from there; a plain model loads it with ``strict=False``.

    Args:
        model: any module that `fuse` takes, with float32 parameters, or a fused one, whose ``algorithm`` stays.
        batches: calibration data, an iterable as a DataLoader is: tensors, tuples whose first element is the input, or
            dictionaries of keyword arguments. Some hundred images that are like those of later use are enough.
        method: how a range follows from the values: "mse" (least mean square error), "minmax", "percentile" or
            "entropy".
        keep: names of layers (``named_modules``) that go on computing with real numbers.
        agreement: of predictions on the calibration data (at most 256 images of it) that must be those of real numbers:
            the layers that lose most are kept until so many are. None: any number.
        inplace: change ``model`` itself instead of a shallow copy.
        progress: whether a progress bar is drawn, if rich is installed; None: where stderr is a terminal.

    Returns:
        The quantised module; `resfuse.report` says what computes with bytes, `resfuse.verify` what that costs.

    Raises:
        TypeError: ``model`` is no module, or ``batches`` hold no tensors.
        ValueError: no batches, values that are NaN or infinite, a feature map of nothing but zeros, parameters that are
            not float32, a ``keep`` that names no layer, or a bad ``method`` or ``agreement``.
        UnsupportedModelError: nothing in ``model`` can be fused.
    """
    require_module("model", model)
    require_choice("method", method, METHODS)
    keep = _require_names(keep)
    if agreement is not None and not (isinstance(agreement, (int, float)) and 0 < agreement <= 1):
        raise ValueError(f"agreement: got {agreement!r}, want a share above 0 and at most 1, or None")
    for name, parameter in model.named_parameters():
        if parameter.dtype is not torch.float32:
            raise ValueError(f"model: {name} is {parameter.dtype}, want float32")
    fast = fuse(model, inplace=inplace, algorithm=_algorithm(model))
    parts = require_fused("model", fast)
    if any(bound.has_bytes for part in parts.values() for bound in part.fusion().binding.programs):
        raise ValueError(
            f"model: the graph of {type(model).__name__} is quantised already; resfuse.fuse takes it as it is"
        )
    modes = {module: module.training for module in fast.modules()}
    try:
        fast.eval()
        calibration = Calibration(parts)
        calibration.take(fast, batches, _bar(progress))
        layers = _layers(calibration, keep)
        ranges = {
            path: Ranges(
                calibration.ranges(path, method),
                tuple(n for n in keep if (path, n) in layers),
                method,
                means=calibration.channel_means(path),
            )
            for path in parts
            if calibration.observers[path]
        }
        if agreement is not None:
            open_layers = [layer for layer in layers if layer[1] not in keep]
            kept, _ = kept_for_agreement(fast, calibration, ranges, open_layers, float(agreement))
            for path, name in kept:
                ranges[path] = dataclasses.replace(ranges[path], keep=(*ranges[path].keep, name))
        noise = layer_noise(fast, calibration, ranges)
        for path, found in ranges.items():
            of_part = {name: value for (p, name), value in noise.items() if p == path}
            parts[path].quantize(dataclasses.replace(found, noise=of_part))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return fast


def _algorithm(model: nn.Module) -> str:
    """What a fused model was fused with."""
    return next((m._resfuse_algorithm for m in model.modules() if isinstance(m, FusedModule)), "auto")


def _require_names(keep: Sequence[str]) -> tuple[str, ...]:
    if isinstance(keep, str) or not all(isinstance(name, str) for name in keep):
        raise TypeError(f"keep: got {keep!r}, want a sequence of layers' names")
    return tuple(keep)


def _layers(calibration: Calibration, keep: Sequence[str]) -> list[Layer]:
    """All layers that may compute with bytes; raises ValueError where ``keep`` names none of them."""
    layers: dict[Layer, None] = {}
    for path, part in calibration.parts.items():
        for binding in part.fusion().graphs.bindings():
            for bound in binding.programs:
                layers.update({(path, layer.name): None for layer in bound.step.spec.layers if layer.kind == "conv"})
    names = {name for _, name in layers}
    for name in keep:
        if name not in names:
            raise ValueError(f"keep: got {name!r}, which is no convolution or linear layer; there are {sorted(names)}")
    return list(layers)


def _bar(progress: bool | None) -> Any:
    if progress is None:
        progress = sys.stderr.isatty()
    if progress:
        try:
            from rich.console import Console
            from rich.progress import track
        except ImportError:
            return iter
        return lambda batches: track(batches, description="calibrating", console=Console(stderr=True), transient=True)
    return iter
