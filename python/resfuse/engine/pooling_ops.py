"""Global average pooling as torch sees it: operators, fake kernels, derivatives, batching rules.

Not ``torch.library.custom_op``: its autograd has neither forward mode nor ``torch.func``. Both operators are linear, so
each derivative is the operator itself or the other one.

Under autocast the operator falls through, as torch's own pooling does on CPUs: it keeps its input's type, and sums in
fp32 whatever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from resfuse.engine import pooling

_library = torch.library.Library("resfuse", "FRAGMENT")
_library.define(
    "global_avg_pool2d(Tensor x, bool keepdim=True) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
_library.define(
    "global_avg_pool2d_backward(Tensor grad, SymInt[] size, bool channels_last) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
global_avg_pool2d = torch.ops.resfuse.global_avg_pool2d.default
global_avg_pool2d_backward = torch.ops.resfuse.global_avg_pool2d_backward.default


with torch.inference_mode():
    _PLAIN_KEYS = {torch._C._dispatch_keys(torch.empty(0)).raw_repr()}
_PLAIN_KEYS.add(torch._C._dispatch_keys(torch.empty(0)).raw_repr())

# (grad mode, forward grad mode) of the caller under torch.func: autograd.Function turns both off, but below one level
# of transforms may lie another that needs them.
Modes = tuple[bool, bool] | None


def _below_autograd(modes: Modes, op: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    if modes is None:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)
    with (
        torch._C._AutoDispatchBelowAutograd(),
        torch.set_grad_enabled(modes[0]),
        forward_ad._set_fwd_grad_enabled(modes[1]),
    ):
        return op(*args)


def _pool(x: torch.Tensor, keepdim: bool) -> torch.Tensor:
    result: torch.Tensor = global_avg_pool2d(x, keepdim)
    return result


def _spread(grad: torch.Tensor, size: Sequence[int], channels_last: bool) -> torch.Tensor:
    result: torch.Tensor = global_avg_pool2d_backward(grad, size, channels_last)
    return result


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] > 1 and x.stride()[1] == 1


def _batch_first(x: torch.Tensor, dim: int | None) -> torch.Tensor:
    """The vmapped dimension joined with the batch."""
    assert dim is not None
    return x.movedim(dim, 0).flatten(0, 1)


class GlobalAvgPool2dFunction(torch.autograd.Function):
    """Forward and reverse mode of `global_avg_pool2d`."""

    @staticmethod
    def forward(x: torch.Tensor, keepdim: bool, modes: Modes) -> torch.Tensor:
        if pooling.is_plain(x):
            return pooling.forward(x, keepdim)
        return _below_autograd(modes, global_avg_pool2d, x, keepdim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, ctx.keepdim, _ = inputs
        ctx.size, ctx.channels_last = x.shape, _is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # Gradients may come batched (is_grads_batched), which only their dispatch keys show.
        plain = pooling.is_plain(grad) and torch._C._dispatch_keys(grad).raw_repr() in _PLAIN_KEYS
        if plain and not torch.is_grad_enabled():
            return pooling.backward(grad, ctx.size, ctx.channels_last), None, None
        return _spread(grad, ctx.size, ctx.channels_last), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        return _pool(tangent, ctx.keepdim)


class GlobalAvgPool2dBackwardFunction(torch.autograd.Function):
    """Forward and reverse mode of `global_avg_pool2d_backward`."""

    @staticmethod
    def forward(grad: torch.Tensor, size: Sequence[int], channels_last: bool, modes: Modes) -> torch.Tensor:
        if pooling.is_plain(grad):
            return pooling.backward(grad, size, channels_last)
        return _below_autograd(modes, global_avg_pool2d_backward, grad, size, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        grad, ctx.size, ctx.channels_last, _ = inputs
        ctx.keepdim = grad.dim() == len(ctx.size)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _pool(grad, ctx.keepdim), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        return _spread(tangent, ctx.size, ctx.channels_last)


def apply_once(function: type[torch.autograd.Function], *args: Any) -> torch.Tensor:
    """One level of autograd: the dispatcher comes here once for each level of ``torch.func``.

    ``Function.apply`` would dispatch over these levels itself, and takes 20 us to bind the arguments.
    """
    result: torch.Tensor
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    if torch._C._functorch.maybe_current_level() is None:
        result = apply(*args, None)
        return result
    modes = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
    with enable_single_level_autograd_function():
        result = apply(*args, modes)
        return result


def _autograd_forward(x: torch.Tensor, keepdim: bool = True) -> torch.Tensor:
    return apply_once(GlobalAvgPool2dFunction, x, keepdim)


def _autograd_backward(grad: torch.Tensor, size: Sequence[int], channels_last: bool) -> torch.Tensor:
    return apply_once(GlobalAvgPool2dBackwardFunction, grad, size, channels_last)


def _vmap_forward(
    info: Any, in_dims: tuple[Any, ...], x: torch.Tensor, keepdim: bool = True
) -> tuple[torch.Tensor, int]:
    if x.dim() == 4:  # of unbatched images
        return global_avg_pool2d(x.movedim(in_dims[0], 0), keepdim), 0
    y = global_avg_pool2d(x.movedim(in_dims[0], 0).flatten(0, 1), keepdim)
    return y.unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], grad: torch.Tensor, size: Sequence[int], channels_last: bool
) -> tuple[torch.Tensor, int]:
    grad = grad.movedim(in_dims[0], 0)
    if len(size) == 3:
        return global_avg_pool2d_backward(grad, [info.batch_size, *size], channels_last), 0
    images = [info.batch_size * size[0], *size[1:]]
    dx = global_avg_pool2d_backward(grad.flatten(0, 1), images, channels_last)
    return dx.unflatten(0, (info.batch_size, -1)), 0


_library.impl("global_avg_pool2d", pooling.forward, "CPU")
_library.impl("global_avg_pool2d", _autograd_forward, "Autograd")
_library.impl("global_avg_pool2d_backward", pooling.backward, "CPU")
_library.impl("global_avg_pool2d_backward", _autograd_backward, "Autograd")
torch.library.register_vmap(global_avg_pool2d, _vmap_forward, lib=_library)
torch.library.register_vmap(global_avg_pool2d_backward, _vmap_backward, lib=_library)


@torch.library.register_fake("resfuse::global_avg_pool2d", lib=_library)  # type: ignore[untyped-decorator]
def _(x: torch.Tensor, keepdim: bool = True) -> torch.Tensor:
    pooling.check_input(x)
    size = pooling.pooled_size(x.shape, keepdim)
    if keepdim and _is_channels_last(x):
        c = x.shape[1]
        return x.new_empty_strided(size, (c, 1, c, c))
    return x.new_empty(size)


@torch.library.register_fake("resfuse::global_avg_pool2d_backward", lib=_library)  # type: ignore[untyped-decorator]
def _(grad: torch.Tensor, size: Sequence[Any], channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last and len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format)
