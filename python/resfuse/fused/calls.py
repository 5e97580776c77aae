"""What one call of fused programs needs: whether they may run at all, and whether with autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.autograd import forward_ad

from resfuse.engine.executor import DTYPES
from resfuse.engine.weights import PLAIN_TENSORS
from resfuse.lowering.binding import BoundProgram, RefusedError
from resfuse.training.run import run_training


def tool_reason(inputs: Sequence[Any]) -> str | None:
    """Why a call has to run the original code whatever it is called with, or None: tools that must see all of it."""
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0:
        return "a torch_dispatch or torch_function mode must see what the original modules do"
    if torch._C._is_tracing():
        return "torch.jit is tracing it"
    if torch._C._functorch.maybe_current_level() is not None:
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if any([isinstance(x, fx.Proxy) for x in inputs]):
        return "torch.fx is tracing it"
    return None


def autocast_dtype() -> torch.dtype | None:
    """What ``torch.autocast("cpu")`` has convolutions compute in; None where it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def input_reason(tensors: Sequence[torch.Tensor]) -> str | None:
    """Why programs cannot compute these inputs, or None."""
    if not all([t.is_cpu and t.dtype in DTYPES and t.layout is torch.strided for t in tensors]):
        return "an input is not a dense float32, bfloat16 or float16 tensor on the CPU"
    if not all([t.dtype is tensors[0].dtype for t in tensors]):
        return "its inputs are of several types"
    if not all([type(t) in PLAIN_TENSORS for t in tensors]):
        return "an input is of a subclass of torch.Tensor"
    return None


def has_empty_batch(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether there is an input without images: nothing to compute, and strides that follow rules of their own."""
    return any([t.shape[0] == 0 for t in tensors if t.dim() > 0])


def are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether tensors of any type are only their memory, so that functions of ours may take the place of modules."""
    return all([type(t) in PLAIN_TENSORS and t.is_cpu and t.layout is torch.strided for t in tensors])


def is_exporting() -> bool:
    """Whether torch.export is at work."""
    return bool(getattr(torch.compiler, "is_exporting", lambda: False)())


def asks_for_gradients(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result of these tensors is to be differentiated."""
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors])


def train_program(
    bound: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Runs a program block by block, with autograd; raises RefusedError for one of bytes, which nothing learns."""
    if bound.has_bytes:
        raise RefusedError("gradients are asked for, and its graph is quantised")
    return run_training(bound.step.spec, bound.blocks(), inputs, parameters, bound.norms(parameters))


def refuse(bound: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Runs no program: its nodes run one by one."""
    raise RefusedError("programs compute in float32")
