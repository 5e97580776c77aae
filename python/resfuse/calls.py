"""What one call of fused programs needs: whether they may run at all, and whether with autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resfuse.lowering.binding import BoundProgram
from resfuse.training.run import run_training


def native_reason(tensors: Sequence[torch.Tensor]) -> str | None:
    """Why a call with these inputs has to run the original code, or None."""
    if not all([t.is_cpu and t.dtype is torch.float32 and t.layout is torch.strided for t in tensors]):
        return "an input is not a dense float32 tensor on the CPU"
    if torch.is_grad_enabled() and any([t.shape[0] == 0 for t in tensors if t.dim() > 0]):
        return "the batch is empty"
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "torch.jit is tracing it"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled"
    if torch._C._functorch.maybe_current_level() is not None:
        return "a torch.func transform is active"
    return None


def asks_for_gradients(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result of these tensors is to be differentiated."""
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors])


def train_program(
    bound: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Runs a program block by block, with autograd."""
    return run_training(bound.step.spec, bound.blocks(), inputs, parameters, bound.norms(parameters))
