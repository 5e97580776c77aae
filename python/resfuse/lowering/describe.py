"""What one node of a graph is, in the vocabulary of programs, or why it has no place there."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.layers import Conv2dSame, MaxPool2dSame
from resfuse.pooling import FusedPool, is_global


@dataclasses.dataclass(frozen=True)
class Op:
    """A node that a program can compute: the nodes that it reads, and its module's path ("" for functions)."""

    kind: str  # conv, batch_norm, activation, add, max_pool, global_avg_pool, flatten, linear, identity
    inputs: tuple[fx.Node, ...]
    module: str = ""
    activation: str = ""
    keepdim: bool = True
    pool: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """A node that stays native, and why."""

    reason: str


_ACTIVATION_TYPES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    "relu": "relu",
    "relu_": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
_SOFTMAX_FUNCTIONS = {F.softmax, torch.softmax, "softmax"}
_ADD_FUNCTIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """An int, or a tuple of one or two, as a pair."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def conv_padding(conv: nn.Conv2d) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of a convolution, None for TensorFlow's "same"."""
    if isinstance(conv, Conv2dSame):
        return None
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2
    top, left = pair(conv.padding)  # type: ignore[arg-type]
    return top, left, top, left


def _plain_hooks(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks)


def _describe_module(node: fx.Node, module: nn.Module) -> Op | Unsupported:
    path = str(node.target)
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return Unsupported("called with more than one argument")
    if not _plain_hooks(module):
        return Unsupported("has forward hooks, which must see its tensors")
    inputs = (node.args[0],)
    kind = type(module)
    if kind in (nn.Conv2d, Conv2dSame):
        assert isinstance(module, nn.Conv2d)
        if module.padding_mode != "zeros":
            return Unsupported(f"padding_mode={module.padding_mode!r}")
        return Op("conv", inputs, path)
    if kind is nn.BatchNorm2d:
        assert isinstance(module, nn.BatchNorm2d)
        if module.running_mean is None or module.running_var is None:
            return Unsupported("batch norm without running statistics")
        return Op("batch_norm", inputs, path)
    if kind is nn.Linear:
        return Op("linear", inputs, path)
    if kind in _ACTIVATION_TYPES:
        return Op("activation", inputs, path, activation=_ACTIVATION_TYPES[kind])
    if kind is nn.Softmax:
        assert isinstance(module, nn.Softmax)
        return _softmax(inputs, path, module.dim)
    if kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
        return Op("identity", inputs, path)
    if kind is nn.Flatten:
        assert isinstance(module, nn.Flatten)
        if (module.start_dim, module.end_dim) == (1, -1):
            return Op("flatten", inputs, path)
        return Unsupported(f"flattens dimensions {module.start_dim} to {module.end_dim}, want 1 to -1")
    if kind in (nn.MaxPool2d, MaxPool2dSame):
        assert isinstance(module, nn.MaxPool2d)
        if module.return_indices:
            return Unsupported("returns indices")
        padding = pair(module.padding)
        pool = {
            "kernel_size": pair(module.kernel_size),
            "stride": pair(module.stride),
            "dilation": pair(module.dilation),
            "padding": None if kind is MaxPool2dSame else padding * 2,
            "ceil_mode": module.ceil_mode,
        }
        return Op("max_pool", inputs, path, pool=pool)
    if isinstance(module, FusedPool):
        return Op("global_avg_pool", inputs, path, keepdim=module.keepdim)
    if kind is nn.AdaptiveAvgPool2d:
        assert isinstance(module, nn.AdaptiveAvgPool2d)
        if is_global(module.output_size):
            return Op("global_avg_pool", inputs, path)
        return Unsupported(f"adaptive average pool to {module.output_size}, want 1 x 1")
    return Unsupported(f"{kind.__name__} has no fused form")


def _softmax(inputs: tuple[fx.Node, ...], path: str, dim: Any) -> Op | Unsupported:
    if dim in (1, -1):
        return Op("activation", inputs, path, activation="softmax")
    return Unsupported(f"softmax over dimension {dim}, want 1")


def _describe_call(node: fx.Node) -> Op | Unsupported:
    target = node.target
    tensors = tuple(a for a in node.args if isinstance(a, fx.Node))
    if target in _ADD_FUNCTIONS:
        if len(node.args) == 2 and len(tensors) == 2 and not node.kwargs:
            return Op("add", tensors)
        return Unsupported("adds something other than two tensors, or scales one")
    if len(tensors) != 1 or node.args[0] is not tensors[0]:
        return Unsupported(f"{_name(target)} has no fused form")
    options: dict[Any, Any] = {**dict(enumerate(node.args[1:], 1)), **node.kwargs}
    if target in _ACTIVATION_FUNCTIONS and not set(options) - {"inplace"}:
        return Op("activation", tensors, activation=_ACTIVATION_FUNCTIONS[target])
    if (
        target in _SOFTMAX_FUNCTIONS
        and options.get("dtype") is None
        and not set(options) - {1, "dim", "dtype", "_stacklevel"}
    ):
        return _softmax(tensors, "", options.get(1, options.get("dim")))
    if target in (torch.flatten, "flatten"):
        start, end = options.get(1, options.get("start_dim", 0)), options.get(2, options.get("end_dim", -1))
        if (start, end) == (1, -1):
            return Op("flatten", tensors)
        return Unsupported(f"flattens dimensions {start} to {end}, want 1 to -1")
    if target is F.adaptive_avg_pool2d:
        return (
            Op("global_avg_pool", tensors)
            if is_global(options.get(1, options.get("output_size")))
            else Unsupported("adaptive average pool to another size than 1 x 1")
        )
    if target is torch.ops.resfuse.global_avg_pool2d.default:
        return Op("global_avg_pool", tensors, keepdim=bool(options.get(1, options.get("keepdim", True))))
    if target in (torch.mean, "mean"):
        dims = options.get(1, options.get("dim"))
        keepdim = bool(options.get(2, options.get("keepdim", False)))
        if isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3] and "dtype" not in options:
            return Op("global_avg_pool", tensors, keepdim=keepdim)
        return Unsupported(f"mean over dimensions {dims}, want (2, 3)")
    return Unsupported(f"{_name(target)} has no fused form")


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def describe(node: fx.Node, model: nn.Module) -> Op | Unsupported:
    """A call node as an `Op`, or why it stays native."""
    if node.op == "call_module":
        return _describe_module(node, model.get_submodule(str(node.target)))
    if node.op in ("call_function", "call_method"):
        return _describe_call(node)
    return Unsupported(f"{node.op} node")
