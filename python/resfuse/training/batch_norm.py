"""Batch norm, residual sum and ReLU in one pass each way (Ioffe & Szegedy, "Batch Normalization", 2015).

float32, bfloat16 and float16 run on the core, other types on torch. Statistics of 16-bit feature maps are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from resfuse import _core
from resfuse.engine.executor import DTYPES
from resfuse.engine.memory import dense, empty
from resfuse.engine.views import view
from resfuse.engine.weights import note_change

Maybe = torch.Tensor | None


class CalledNorm:
    """The running statistics of a call of ``F.batch_norm`` in train mode, shown as ``nn.BatchNorm2d`` shows its own."""

    training = True
    track_running_stats = True
    num_batches_tracked: Maybe = None  # counted elsewhere

    def __init__(self, running_mean: torch.Tensor, running_var: torch.Tensor, momentum: float | None) -> None:
        self.running_mean = running_mean
        self.running_var = running_var
        self.momentum = momentum


RunningNorm = nn.BatchNorm2d | CalledNorm


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm with the mean and biased variance that it normalises with."""

    mean: torch.Tensor
    variance: torch.Tensor
    weight: Maybe
    bias: Maybe
    eps: float
    batch_statistics: bool  # mean and variance depend on the input

    @property
    def inverse_deviation(self) -> torch.Tensor:
        return (self.variance + self.eps).rsqrt()

    @property
    def scale(self) -> torch.Tensor:
        inverse = self.inverse_deviation
        return inverse if self.weight is None else inverse * self.weight

    @property
    def shift(self) -> torch.Tensor:
        return torch.zeros_like(self.mean) if self.bias is None else self.bias


def values_per_channel(shape: Sequence[Any]) -> int:
    """Of a batch that takes its own statistics; raises torch's ValueError for a single one."""
    count: int = shape[0] * shape[2] * shape[3]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(shape)}")
    return count


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the statistics of feature maps of a type, and of what they are normalised with."""
    return torch.float32 if dtype in DTYPES else dtype


def _on_core(x: torch.Tensor) -> bool:
    return x.dtype in DTYPES and x.numel() > 0


def _row(x: torch.Tensor) -> torch.Tensor:
    return x[None, :, None, None]


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel."""
    dtype = statistics_dtype(x.dtype)
    if not _on_core(x):
        variance, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
        return mean, variance
    mean, variance = x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)
    _core.norm_statistics(view(dense(x)), view(mean), view(variance), torch.get_num_threads())
    return mean, variance


@torch.no_grad()
def update_running_statistics(
    running_mean: torch.Tensor, running_var: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, factor: float,
    count: int,
) -> None:  # fmt: skip
    """Moves the running statistics by ``factor``, as torch does; it keeps the unbiased variance of ``count`` values."""
    if not torch.compiler.is_compiling():
        # torch's own batch norm does not count this either: a call of it may have saved these tensors for its backward.
        note_change(running_mean, running_var)
        running_mean, running_var = running_mean.data, running_var.data
    # Rounded once, also where they are of 16 bits.
    running_mean.copy_((running_mean.to(mean.dtype) * (1 - factor)).add_(mean, alpha=factor))
    running_var.copy_((running_var.to(mean.dtype) * (1 - factor)).add_(variance, alpha=factor * count / (count - 1)))


def apply(x: torch.Tensor, residual: Maybe, norm: Norm, relu: bool) -> torch.Tensor:
    """``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``."""
    if not _on_core(x):
        y = (x - _row(norm.mean)) * _row(norm.scale) + _row(norm.shift)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    y = empty(x.shape, x.dtype)
    _core.norm_forward(
        view(dense(x)),
        None if residual is None else view(dense(residual)),
        view(norm.mean),
        view(norm.scale),
        view(norm.shift.contiguous()),
        relu,
        view(y),
        torch.get_num_threads(),
    )
    return y


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of the input, the residual (None where not wanted), the weight and the bias, these in the statistics' type."""

    x: torch.Tensor
    residual: Maybe
    weight: torch.Tensor
    bias: torch.Tensor


def backward(
    grad: torch.Tensor, x: torch.Tensor, y: Maybe, norm: Norm, relu: bool, wants_residual: bool, overwrite: bool
) -> Gradients:
    """The gradients.

    Args:
        grad: of the result.
        x: what was normalised.
        y: the result where a residual was added; without one it is computed again from x as it is needed.
        norm, relu: as in `apply`.
        wants_residual: whether a residual's gradient is asked for.
        overwrite: whether ``grad``'s memory may be written.
    """
    if not _on_core(x):
        return _plain_backward(grad, x, y, norm, relu, wants_residual)
    grad, x = dense(grad), dense(x)
    dweight, dbias = torch.empty_like(norm.mean), torch.empty_like(norm.mean)
    computed = relu and y is None
    residual = None
    if wants_residual:
        residual = grad if overwrite or not relu else empty(x.shape, x.dtype)
    dx = grad if overwrite and residual is not grad else empty(x.shape, x.dtype)
    _core.norm_backward(
        view(grad),
        view(dense(y)) if relu and y is not None else None,
        view(norm.scale) if computed else None,
        view(norm.shift.contiguous()) if computed else None,
        view(x),
        view(norm.mean),
        view(norm.inverse_deviation),
        None if norm.weight is None else view(norm.weight.contiguous()),
        norm.batch_statistics,
        view(dx),
        view(residual) if residual is not None and relu else None,
        view(dweight),
        view(dbias),
        torch.get_num_threads(),
    )
    return Gradients(dx, residual, dweight, dbias)


def _plain_backward(
    grad: torch.Tensor, x: torch.Tensor, y: Maybe, norm: Norm, relu: bool, wants_residual: bool
) -> Gradients:
    if relu:
        output = apply(x, None, norm, False) if y is None else y
        grad = torch.where(output <= 0, 0.0, grad)
    normal = (x - _row(norm.mean)) * _row(norm.inverse_deviation)
    dbias, dweight = grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))
    dx = grad
    if norm.batch_statistics and x.numel() > 0:
        count = x.numel() // x.shape[1]
        dx = grad - _row(dbias) / count - normal * _row(dweight) / count
    return Gradients(dx * _row(norm.scale), grad if wants_residual else None, dweight, dbias)
