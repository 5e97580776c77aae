"""A plain model and its fused copy, to which the same things are done."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

import resfuse


def conv_norm_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """The piece that all of these networks are made of."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Twins:
    """The two models; `call` runs both and compares all that can be seen of a call."""

    def __init__(self, model: nn.Module) -> None:
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and isinstance(module.running_mean, torch.Tensor):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
        self.plain = model
        self.fused = resfuse.fuse(copy.deepcopy(model))

    def do(self, change: Callable[[nn.Module], Any]) -> Twins:
        """The same to both."""
        change(self.plain)
        change(self.fused)
        return self

    def call(self, *args: Any, backward: bool = False, **kwargs: Any) -> Any:
        """Both models' results, which must agree; gives the fused one's. Gradients too, where they are enabled."""
        backward = backward and torch.is_grad_enabled()
        seen = [self._call(model, args, kwargs, backward) for model in (self.plain, self.fused)]
        (plain, plain_args, plain_state), (fused, fused_args, fused_state) = seen
        assert_alike(fused, plain)
        assert_alike(fused_args, plain_args)
        assert_buffers_alike(self.fused, self.plain)
        assert torch.equal(plain_state, fused_state), "random numbers were drawn in another way"
        if backward:
            for (name, a), (_, b) in zip(self.plain.named_parameters(), self.fused.named_parameters(), strict=True):
                assert (a.grad is None) == (b.grad is None), name
                if a.grad is not None:
                    assert torch.equal(a.grad.isnan(), b.grad.isnan()), name
                    error = (a.grad - b.grad).nan_to_num().norm() / a.grad.nan_to_num().norm().clamp_min(1e-3)
                    assert error < 2e-2, f"{name}: gradients differ by {error:.1e}"
        return fused

    def _call(self, model: nn.Module, args: Any, kwargs: Any, backward: bool) -> tuple[Any, Any, torch.Tensor]:
        args = copy.deepcopy(args)
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.set_grad_enabled(backward):
                try:
                    result = model(*args, **kwargs)
                except Exception as error:
                    return error, args, torch.get_rng_state()
            if backward:
                model.zero_grad()
                leaves = [y for y in tree_flatten(result)[0] if isinstance(y, torch.Tensor) and y.requires_grad]
                sum((y * torch.linspace(0.5, 1.5, y.numel()).view(y.shape)).sum() for y in leaves).backward()
        return result, args, torch.get_rng_state()


def assert_alike(fused: Any, plain: Any, error: float = 1e-4) -> None:
    """Two results of the same form, types, memory formats and nearly the same numbers; ``error`` is relative."""
    assert type(fused) is type(plain), (fused, plain)
    if isinstance(plain, torch.Tensor):
        assert fused.dtype is plain.dtype
        assert fused.shape == plain.shape
        assert fused.stride() == plain.stride()
        assert fused.requires_grad == plain.requires_grad
        scale = float(plain.detach().double().nan_to_num().square().mean().sqrt()) if plain.numel() else 1.0
        torch.testing.assert_close(fused, plain, rtol=10 * error, atol=error * max(scale, 1e-3), equal_nan=True)
    elif isinstance(plain, (tuple, list)):
        assert len(fused) == len(plain)
        for a, b in zip(fused, plain, strict=True):
            assert_alike(a, b, error)
    elif isinstance(plain, dict):
        assert list(fused) == list(plain)
        for key in plain:
            assert_alike(fused[key], plain[key], error)
    elif hasattr(plain, "__dict__") and not isinstance(plain, Exception):
        assert_alike(vars(fused), vars(plain), error)
    elif not isinstance(plain, Exception):
        assert fused == plain


def assert_buffers_alike(fused: nn.Module, plain: nn.Module) -> None:
    """Running statistics and counters."""
    ours, theirs = dict(fused.named_buffers()), dict(plain.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        torch.testing.assert_close(
            ours[name], buffer, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random images."""
    return torch.randn(shape or (2, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
