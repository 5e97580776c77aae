"""Class activation maps: what global average pooling gives for free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from resfuse.checks import require_module, require_tensor
from resfuse.engine.spec import ConvSpec, GlobalAvgPoolSpec
from resfuse.errors import UnsupportedModelError
from resfuse.fused.fuse import fuse
from resfuse.fused.module import FusedModule, fused_parts
from resfuse.inspect.probe import probe
from resfuse.layers.global_avg_pool import FusedPool
from resfuse.lowering.steps import ProgramStep


def class_activation_map(
    model: nn.Module, x: torch.Tensor, class_index: int | Sequence[int] | torch.Tensor | None = None
) -> torch.Tensor:
    """Where in the image a classifier with global average pooling found a class.

    ``map[n, y, x] = sum_k w[class, k] * f[n, k, y, x]``, with f the feature maps before the pooling and w the weights
    of the linear layer behind it (Zhou et al., "Learning Deep Features for Discriminative Localization", 2016, eq. 2).

    Args:
        model: a classifier (fused or not) that ends in global average pooling and one linear layer; eval mode.
        x: [N, C, H, W], float32.
        class_index: one class for all images, one for each, or None for each image's highest logit.

    Returns:
        [N, h, w], float32, in the extent of the last feature maps.

    Raises:
        UnsupportedModelError: the model has no such head.
        ValueError: ``model`` is in train mode, or ``class_index`` does not fit the classes or the batch.
    """
    require_module("model", model)
    require_tensor("x", x)
    fast = fuse(model) if next(fused_parts(model), None) is None else model
    if not isinstance(fast, FusedModule):
        return _by_hooks(fast, x, class_index)
    reason = fast.fusion().not_as_programs()
    if reason is not None:
        raise ValueError(f"model: {reason}; class activation maps want a model in eval mode without hooks")
    binding = fast.fusion().binding_for(x)
    for step in binding.lowered.programs:
        head = _head(step)
        if head is not None:
            break
    else:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} does not end in global average pooling and one linear layer"
        )
    pool, linear = head
    _, kept = probe(fast, (x,), lambda s: (pool.input, linear.output) if s is step else ())
    features, logits = kept[step][pool.input], kept[step][linear.output].flatten(1)
    bound = next(b for b in binding.programs if b.step is step)
    parameters = bound.parameters(binding.computed_weights(fast))
    weight = parameters[linear.weight].detach()
    classes = _classes(class_index, logits)
    return torch.einsum("nk,nkhw->nhw", weight[classes], features)


def _by_hooks(
    model: nn.Module, x: torch.Tensor, class_index: int | Sequence[int] | torch.Tensor | None
) -> torch.Tensor:
    """For a model that was fused in parts: its pool and its linear layer are modules."""
    if model.training:
        raise ValueError("model: is in train mode; class activation maps want a model in eval mode")
    pools = [m for m in model.modules() if isinstance(m, FusedPool)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if len(pools) != 1 or len(linears) != 1:
        raise UnsupportedModelError(
            f"model: {type(model).__name__} has {len(pools)} global average pools and {len(linears)} linear layers, "
            f"want one of each"
        )
    seen: dict[str, torch.Tensor] = {}
    holders = [m for m in model.modules() if isinstance(m, FusedModule) and linears[0] in set(m.modules())]
    logits_of = holders[0] if holders else linears[0]
    handles = [
        pools[0].register_forward_pre_hook(lambda module, args: seen.update(features=args[0])),
        logits_of.register_forward_hook(lambda module, args, output: seen.update(logits=output)),
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    weight = linears[0].weight.detach()
    features, logits = seen.get("features"), seen.get("logits")
    if features is None or logits is None or features.shape[1] != weight.shape[1]:
        raise UnsupportedModelError(f"model: {type(model).__name__} does not pool what its linear layer reads")
    return torch.einsum("nk,nkhw->nhw", weight[_classes(class_index, logits)], features)


def _head(step: ProgramStep) -> tuple[GlobalAvgPoolSpec, ConvSpec] | None:
    pools = {layer.output: layer for layer in step.spec.layers if isinstance(layer, GlobalAvgPoolSpec)}
    for layer in step.spec.layers:
        pool = pools.get(layer.input)
        if pool is not None and isinstance(layer, ConvSpec) and layer.batch_norm is None:
            return pool, layer
    return None


def _classes(class_index: int | Sequence[int] | torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    batch, count = logits.shape
    if class_index is None:
        return logits.argmax(dim=1)
    try:
        classes = torch.as_tensor(class_index)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"class_index: got {class_index!r}, want an integer, integers or None") from None
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"class_index: got dtype {classes.dtype}, want integers")
    if classes.dim() > 1 or (classes.dim() == 1 and len(classes) != batch):
        raise ValueError(
            f"class_index: got shape {list(classes.shape)}, want one class or one for each of {batch} images"
        )
    if bool(((classes < 0) | (classes >= count)).any()):
        raise ValueError(f"class_index: got {class_index}, want classes from 0 to {count - 1}")
    return classes.long().expand(batch)
