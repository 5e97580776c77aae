"""A block computed again by torch's own functions, for gradients that are to be differentiated themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from resfuse.engine.spec import ConvSpec, ProgramSpec
from resfuse.training.batch_norm import statistics_dtype
from resfuse.training.plain import plain_layer

Maybe = torch.Tensor | None


def plain_block(
    spec: ProgramSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The outputs of a block, differentiable any number of times."""
    buffers = list(inputs)
    for layer in spec.layers:
        x = buffers[layer.input]
        if not isinstance(layer, ConvSpec):
            buffers.append(plain_layer(layer, x, parameters))
            continue
        y = plain_layer(layer, x, parameters, activate=False)
        norm = layer.batch_norm
        if norm is not None:
            own = norm.running_mean < 0
            mean, variance = (None, None) if own else (parameters[norm.running_mean], parameters[norm.running_var])
            weight = None if norm.weight is None else parameters[norm.weight]
            bias = None if norm.bias is None else parameters[norm.bias]
            y = F.batch_norm(y, mean, variance, weight, bias, own, 0.0, norm.eps)
        if layer.residual is not None:
            y = y + buffers[layer.residual]
        buffers.append(torch.relu(y) if layer.activation == "relu" else y)
    return [buffers[output.buffer] for output in spec.outputs]


def differentiable_gradients(
    spec: ProgramSpec,
    inputs: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    grads: Sequence[Maybe],
    wanted: Sequence[bool],
) -> list[Maybe]:
    """The gradients of a block by its inputs and parameters as functions of these and of ``grads``.

    Computed in float32 where feature maps or parameters are of 16 bits, and rounded to each one's type.

    Args:
        spec: the block.
        inputs, parameters: its own, with their histories.
        grads: of its outputs; None for those that have none.
        wanted: for each input, then each parameter.
    """
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # The same tensor may be there twice: each place gets a view of its own.
        places = [t.view_as(t) if want else t for t, want in zip((*inputs, *parameters), wanted, strict=True)]
        wide = [t.to(statistics_dtype(t.dtype)) for t in places]
        outputs = plain_block(spec, wide[: len(inputs)], wide[len(inputs) :])
        pairs = [
            (y, grad.to(y.dtype))
            for y, grad in zip(outputs, grads, strict=True)
            if grad is not None and y.requires_grad
        ]
        sources = [t for t, want in zip(places, wanted, strict=True) if want]
        if not pairs or not sources:
            return [None] * len(wanted)
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], sources, [grad for _, grad in pairs], create_graph=True, allow_unused=True
            )
        )
        return [next(found) if want else None for want in wanted]
