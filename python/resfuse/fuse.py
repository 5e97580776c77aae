"""`resfuse.fuse`: a model that runs the same network faster."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from resfuse.arguments import require_choice, require_module
from resfuse.errors import UnsupportedModelError
from resfuse.fused_module import FusedModule, fused_class
from resfuse.lowering.lower import lower
from resfuse.lowering.steps import Lowered
from resfuse.pooling import replace_pools
from resfuse.runtime.spec import ConvSpec

ALGORITHMS = ("auto", "direct", "winograd", "strassen")


def fuse(
    model: nn.Module, *, inplace: bool = False, algorithm: str = "auto", dtype: torch.dtype | None = None
) -> nn.Module:
    """Fuses the residual blocks, stem and head of a model, for inference and training on CPUs.

    The result has the model's class, forward signature, ``state_dict`` keys and the very same Parameter and buffer
    objects; training either trains both. Under ``eval()`` without gradients its convolutions run with batch norm folded
    in and residual sums and activations in their epilogues, from packed weights that follow every change of the
    parameters. In ``train()`` mode, and wherever gradients are asked for, they run block by block with autograd, on
    fused kernels forward and backward. Wherever fusing would change what can be observed (forward hooks, parametrized
    weights, dropout, autocast, other types than float32) the original modules run, and `resfuse.report` says why.

    Args:
        model: any module. Where torch.fx cannot trace it as a whole (Hugging Face's), the largest of its modules that
            can be traced are fused.
        inplace: change ``model`` itself instead of a shallow copy.
        algorithm: "auto" (a cost model chooses), "direct", "winograd" (for every 3x3
            convolution of stride 1 or 2, and for groups of at least 8 channels at stride 1
            that small-group kernels do not compute), or "strassen" (for every 1x1 convolution
            whose halves of channels fill vectors, in inference).
        dtype: None or torch.float32.

    Returns:
        The fused module.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: an unknown ``algorithm`` or ``dtype``.
        UnsupportedModelError: nothing in ``model`` can be fused.
    """
    require_module("model", model)
    require_choice("algorithm", algorithm, ALGORITHMS)
    if dtype not in (None, torch.float32):
        raise ValueError(f"dtype: got {dtype}, want None or torch.float32 (this version computes in float32 only)")
    parts = _fusible_parts(model, algorithm)
    fast = model if inplace else _shallow_copy(model, {})
    for path, lowered in parts:
        part = fast.get_submodule(path)
        part.__class__ = fused_class(type(part))  # type: ignore[arg-type]  # classes do hash
        assert isinstance(part, FusedModule)
        part.adopt(lowered, algorithm)
    replace_pools(fast)
    return fast


def _fusible_parts(model: nn.Module, algorithm: str) -> list[tuple[str, Lowered]]:
    """The model itself (path ""), or where torch.fx cannot trace it, the largest of its modules that can be fused."""
    parts: list[tuple[str, Lowered]] = []
    failures: list[UnsupportedModelError] = []

    def visit(module: nn.Module, path: str) -> None:
        try:
            lowered = lower(module, algorithm)
        except UnsupportedModelError as error:
            failures.append(error)
            for name, child in module.named_children():
                visit(child, f"{path}.{name}".lstrip("."))
            return
        if any(isinstance(layer, ConvSpec) and _is_conv(layer) for p in lowered.programs for layer in p.spec.layers):
            parts.append((path, lowered))
        elif not path:
            failures.append(UnsupportedModelError(_explain(model, lowered)))

    visit(model, "")
    if not parts:
        raise failures[0]
    return parts


def _is_conv(layer: ConvSpec) -> bool:
    return layer.batch_norm is not None or layer.kernel_size != (1, 1) or layer.residual is not None


def _shallow_copy(module: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
    """A module tree of its own over the same parameters and buffers."""
    if id(module) in memo:
        return memo[id(module)]
    copy = type(module).__new__(type(module))
    memo[id(module)] = copy
    state = module.__getstate__() if isinstance(module, FusedModule) else module.__dict__
    for name, value in state.items():
        # Registries (parameters, buffers, hooks, modules) are the copy's own; what they hold is shared.
        copy.__dict__[name] = value.copy() if name.startswith("_") and isinstance(value, (dict, set)) else value
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else _shallow_copy(child, memo)
    return copy


def _explain(model: nn.Module, lowered: Lowered) -> str:
    found = Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
    kinds = ", ".join(f"{count} {name}" for name, count in found.most_common(8)) or "no layers"
    reasons = "; ".join(f"{step.node.name}: {step.reason}" for step in lowered.natives[:5])
    return (
        f"model: nothing in {type(model).__name__} can be fused. Looked for residual blocks (convolution, batch norm, "
        f"activation, sum), a stem (convolution, batch norm, ReLU, max-pool) and a head (global average pool, flatten, "
        f"linear); found {kinds}." + (f" Not fused: {reasons}." if reasons else "")
    )
