"""Runs a program block by block with autograd: what a fused model does in train mode and wherever it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from resfuse.engine.executor import check_shapes
from resfuse.engine.spec import MOVING, AffineSpec, ConcatSpec, NormSpec, ProgramSpec, check_operands
from resfuse.training import ops
from resfuse.training.batch_norm import (
    RunningNorm,
    statistics_dtype,
    update_running_statistics,
    values_per_channel,
)
from resfuse.training.plain import activated, moved, normalized, plain_layer
from resfuse.training.split import Block

Update = tuple[RunningNorm, torch.Tensor, torch.Tensor, int]


def run_training(
    spec: ProgramSpec,
    blocks: Sequence[Block],
    inputs: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    norms: Sequence[RunningNorm | None],
) -> list[torch.Tensor]:
    """The program's outputs, differentiable; batch norms in train mode use and update their statistics as in torch.

    Args:
        spec: the program.
        blocks: it, as `resfuse.training.split.split` cuts it.
        inputs: [N, C, H, W] tensors.
        parameters: numbered as the program says.
        norms: for each layer, the batch norm module that it holds.
    """
    check_shapes(spec, inputs)
    buffers: dict[int, torch.Tensor] = dict(enumerate(inputs))
    shapes = spec.buffer_shapes([x.shape for x in inputs])
    check_operands(spec, shapes)
    kept = {output.buffer for output in spec.outputs}
    last = {buffer: i for i, part in enumerate(blocks) for buffer in part.inputs}
    updates: list[Update] = []
    for i, part in enumerate(blocks):
        results = _run_block(spec, part, shapes, [buffers[b] for b in part.inputs], parameters, norms, updates)
        for buffer, result in zip(part.outputs, results, strict=True):  # Dynamo of torch 2.6 knows no dict |= zip
            buffers[buffer] = result
        for buffer in part.inputs:  # what no later block reads need not live until the end
            if last[buffer] == i and buffer not in kept:
                buffers.pop(buffer, None)
    for update in updates:  # not before all went well: where it did not, the original modules may run
        _update(*update)
    results = [buffers[output.buffer] for output in spec.outputs]
    return [y.flatten(1) if output.rank == 2 else y for y, output in zip(results, spec.outputs, strict=True)]


def _run_block(
    spec: ProgramSpec,
    part: Block,
    shapes: list[list[Any]],
    inputs: list[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    norms: Sequence[RunningNorm | None],
    updates: list[Update],
) -> list[torch.Tensor]:
    if part.spec is None:
        (index,) = part.layers
        layer = spec.layers[index]
        if isinstance(layer, AffineSpec):
            return [_affine(layer, inputs, parameters, norms[index], updates)]
        if isinstance(layer, ConcatSpec):
            return [torch.cat(inputs, 1)]
        if isinstance(layer, NormSpec):
            return [normalized(layer, inputs, parameters)]
        if isinstance(layer, MOVING):
            return [moved(layer, inputs[0], shapes[layer.output][2:])]
        return [plain_layer(layer, inputs[0], parameters)]
    own = [parameters[p] for p in part.parameters]
    for place, factor in part.factors:
        own[place] = own[place] * factor
    for place, by_channel in part.channel_scales:
        own[place] = own[place] * parameters[by_channel].reshape(-1, *[1] * (own[place].dim() - 1))
    results = ops.block_forward(inputs, own, part.text)
    for statistics in part.statistics:
        norm = norms[statistics.layer]
        assert norm is not None
        count = values_per_channel(shapes[spec.layers[statistics.layer].output])
        updates.append((norm, results[statistics.mean], results[statistics.variance], count))
    return [activated(part, y, parameters) for y in results[: len(part.outputs)]]


def _affine(
    layer: AffineSpec,
    inputs: list[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    norm: RunningNorm | None,
    updates: list[Update],
) -> torch.Tensor:
    """On torch: ``inputs`` are those of `resfuse.training.split.reads`."""
    x, *rest = inputs
    spec = layer.batch_norm
    if spec is not None:
        weight = None if spec.weight is None else parameters[spec.weight]
        bias = None if spec.bias is None else parameters[spec.bias]
        if norm is not None and norm.training:
            count = values_per_channel(x.shape)
            with torch.no_grad():
                variance, mean = torch.var_mean(x.to(statistics_dtype(x.dtype)), (0, 2, 3), correction=0)
            updates.append((norm, mean, variance, count))
            x = F.batch_norm(x, None, None, weight, bias, True, 0.0, spec.eps)
        else:
            mean, variance = parameters[spec.running_mean], parameters[spec.running_var]
            x = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, spec.eps)
    x = x if layer.factor == 1.0 else x * layer.factor
    if layer.channel_scale is not None:
        x = x * parameters[layer.channel_scale].reshape(1, -1, 1, 1)
    residual = rest.pop(0) if layer.residual is not None else None
    if layer.gate is not None:
        x = x * rest.pop(0)
    if layer.product is not None:
        x = x * rest.pop(0)
    if residual is not None:
        x = x + residual
    return activated(layer, x, parameters)


def _update(norm: RunningNorm, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
    """Running statistics as torch's batch norm keeps them; the variance is unbiased there."""
    if not norm.training or not norm.track_running_stats:
        return
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
        if factor is None:  # a cumulative average
            factor = 1.0 / float(norm.num_batches_tracked)
    factor = 0.0 if factor is None else factor
    if norm.running_mean is not None and norm.running_var is not None:
        update_running_statistics(norm.running_mean, norm.running_var, mean, variance, factor, count)
