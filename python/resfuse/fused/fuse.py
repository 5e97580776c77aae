"""`resfuse.fuse`: a model that runs the same network faster."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from resfuse.checks import require_choice, require_module
from resfuse.engine.executor import DTYPES
from resfuse.engine.spec import ConvSpec
from resfuse.errors import UnsupportedModelError
from resfuse.fused.copies import shallow_copy
from resfuse.fused.module import FusedModule, fused_class
from resfuse.layers.global_avg_pool import replace_pools
from resfuse.lowering.lower import lower
from resfuse.lowering.steps import Lowered

ALGORITHMS = ("auto", "direct", "winograd", "strassen")


def fuse(
    model: nn.Module, *, inplace: bool = False, algorithm: str = "auto", dtype: torch.dtype | None = None
) -> nn.Module:
    """Fuses the residual blocks, stem and head of a model, for inference and training on CPUs.

    The result has the model's class, forward signature, ``state_dict`` keys and the very same Parameter and buffer
    objects; training either trains both. Under ``eval()`` without gradients its convolutions run with batch norm folded
    in and residual sums and activations in their epilogues, from packed weights that follow every change of the
    parameters. In ``train()`` mode, and wherever gradients are asked for, they run block by block with autograd, on
    fused kernels forward and backward. Whatever is done to the model later (attributes, hooks, patched code, replaced
    modules, other arguments) is seen at the next call. Wherever fusing would change what can be observed (hooks,
    dropout, autocast while gradients are asked for, other types than float32, bfloat16 and float16) the original
    modules run, and `resfuse.report` says why.

    Args:
        model: any module. Where torch.fx cannot trace it as a whole (Hugging Face's), the largest of its modules that
            can be traced are fused.
        inplace: change ``model`` itself instead of a shallow copy.
        algorithm: "auto" (a cost model chooses), "direct", "winograd" (for every 3x3
            convolution of stride 1 or 2, and for groups of at least 8 channels at stride 1
            that small-group kernels do not compute), or "strassen" (for every 1x1 convolution
            whose halves of channels fill vectors, in inference).
        dtype: what whole programs compute in: torch.float32, torch.bfloat16 or torch.float16; None: the inputs' type.
            The model takes and returns tensors of its parameters' type all the same. With 16-bit feature maps sums are
            taken in fp32, and each value is rounded once, when it is stored. Training computes in the parameters' type.

    Returns:
        The fused module.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: an unknown ``algorithm`` or ``dtype``.
        UnsupportedModelError: nothing in ``model`` can be fused.
    """
    require_module("model", model)
    require_choice("algorithm", algorithm, ALGORITHMS)
    require_choice("dtype", dtype, (None, *DTYPES))
    fast = model if inplace else shallow_copy(model)
    parts = _fuse_parts(fast, algorithm, dtype)
    replace_pools(fast, parts)
    return fast


def _fuse_parts(model: nn.Module, algorithm: str, dtype: torch.dtype | None) -> list[str]:
    """Fuses the model itself (path ""), or where torch.fx cannot trace it, the largest of its modules that can be."""
    parts: list[str] = []
    failures: list[UnsupportedModelError] = []

    def visit(module: nn.Module, path: str) -> None:
        plain: Any = type(module)
        try:
            if "forward" in vars(module):
                raise UnsupportedModelError(f"model: the forward of {plain.__name__} was replaced on the instance")
            module.__class__ = fused_class(plain)
            assert isinstance(module, FusedModule)
            lowered = lower(module, algorithm)
        except UnsupportedModelError as error:
            module.__class__ = plain
            failures.append(error)
            for name, child in module.named_children():
                visit(child, f"{path}.{name}".lstrip("."))
            return
        if any(isinstance(layer, ConvSpec) and _is_conv(layer) for p in lowered.programs for layer in p.spec.layers):
            module.adopt(lowered, algorithm, dtype)
            parts.append(path)
            return
        module.__class__ = plain
        if not path:
            failures.append(UnsupportedModelError(_explain(model, lowered)))

    visit(model, "")
    if not parts:
        raise failures[0]
    return parts


def _is_conv(layer: ConvSpec) -> bool:
    return layer.batch_norm is not None or layer.kernel_size != (1, 1) or layer.residual is not None


def _explain(model: nn.Module, lowered: Lowered) -> str:
    found = Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
    kinds = ", ".join(f"{count} {name}" for name, count in found.most_common(8)) or "no layers"
    reasons = "; ".join(f"{step.node.name}: {step.reason}" for step in lowered.natives[:5])
    return (
        f"model: nothing in {type(model).__name__} can be fused. Looked for residual blocks (convolution, batch norm, "
        f"activation, sum), a stem (convolution, batch norm, ReLU, max-pool) and a head (global average pool, flatten, "
        f"linear); found {kinds}." + (f" Not fused: {reasons}." if reasons else "")
    )
