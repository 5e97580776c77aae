"""Global average pooling as a function: checks, and the shortest way to the kernel."""

from __future__ import annotations

import torch

from resfuse.checks import require_tensor
from resfuse.engine import pooling
from resfuse.engine.pooling_ops import GlobalAvgPool2dFunction, apply_once
from resfuse.engine.pooling_ops import global_avg_pool2d as operator


def global_avg_pool2d(x: torch.Tensor, keepdim: bool = True) -> torch.Tensor:
    """The mean of each feature map (Lin et al., "Network In Network", 2014, section 3.2).

    The result of ``F.adaptive_avg_pool2d(x, 1)``, summed in fp32 (fp64 for fp64) and rounded once.

    Args:
        x: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16; any strides.
        keepdim: return [N, C, 1, 1] instead of [N, C].

    Returns:
        [N, C, 1, 1] or [N, C] ([C, 1, 1] or [C] for one image), of the input's type and memory format. Differentiable
        any number of times, in reverse and forward mode and under ``torch.func``; an empty batch gives an empty result.

    Raises:
        TypeError: ``x`` is no tensor, or one of another type, or sparse or quantized.
        ValueError: another number of dimensions, no channels, or no pixels.
        NotImplementedError: ``x`` is on a device other than the CPU (or meta).
    """
    traced = isinstance(x, torch.fx.Proxy)  # which may say that it is a tensor
    if not traced and not torch.compiler.is_compiling() and isinstance(x, torch.Tensor):
        if pooling.is_plain(x):  # the dispatcher would cost several times a small tensor's pooling
            if x.requires_grad and torch.is_grad_enabled():
                return apply_once(GlobalAvgPool2dFunction, x, keepdim)
            return pooling.forward(x, keepdim)
        elif x.layout is not torch.strided or x.is_quantized:
            pooling.check_input(x)
    elif not traced:
        require_tensor("x", x)
    result: torch.Tensor = operator(x, keepdim)
    return result
