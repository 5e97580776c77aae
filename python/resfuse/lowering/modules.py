"""What a module of a graph computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.capture.code import globals_read
from resfuse.capture.recorder import HOOKS
from resfuse.layers.global_avg_pool import FusedPool, is_global
from resfuse.layers.same import Conv2dSame, MaxPool2dSame
from resfuse.lowering import moving
from resfuse.lowering.op import Conv, Norm, Op, Statistics, Unsupported, pads, pair
from resfuse.lowering.shuffles import channel_shuffle
from resfuse.lowering.steps import ParameterPath

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU6: "relu6",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Mish: "mish",
    nn.ELU: "elu",
}


WRONG_ORDER = "hardtanh of bounds in the wrong order, which torch refuses"
_FUNCTIONS = dict(vars(F))  # as they are before anybody patches them


def qualified_name(module: nn.Module) -> str:
    """Of a module's class, as it is imported from its library's first package."""
    kind = type(module)
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def _parameter(path: str, module: nn.Module, name: str) -> ParameterPath | None:
    return None if getattr(module, name, None) is None else ParameterPath(path, name)


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called around a module's forward or its backward."""
    return any(getattr(module, name) for name in HOOKS)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module computes what its library's code says: nobody has patched its forward or its class's."""
    if "forward" in vars(module):
        return False
    for name in ("forward", "_conv_forward"):
        function = getattr(type(module), name, None)
        library = str(getattr(function, "__module__", "")).split(".")[0]
        if function is not None and library not in ("torch", "torchvision", "timm", "resfuse"):
            return False
    code = getattr(type(module).forward, "__code__", None)
    called = [] if code is None else [chain[1] for chain in globals_read(code) if chain[0] == "F" and len(chain) > 1]
    return all(getattr(F, name, None) is _FUNCTIONS.get(name) for name in called)


def is_prelu(module: nn.Module) -> bool:
    """torch's PReLU, or timm's."""
    return type(module) is nn.PReLU or qualified_name(module) == "timm.PReLU"


def activation_of(module: nn.Module, path: str) -> dict[str, Any] | str:
    """What an `Op` knows of an activation module, or why it has no fused form."""
    kind = type(module)
    if kind is nn.GELU or qualified_name(module) == "timm.GELU":
        exact = getattr(module, "approximate", "none") == "none"
        return {"activation": "gelu"} if exact else "GELU by tanh has no fused form"
    if kind is nn.Identity:
        return {"activation": "none"}
    if is_prelu(module):
        assert isinstance(module.weight, torch.Tensor)
        slopes = _parameter(path, module, "weight")
        return {"activation": "prelu", "parameter": slopes, "shape": tuple(module.weight.shape)}
    if kind is nn.Hardtanh:
        assert isinstance(module, nn.Hardtanh)
        low, high = float(module.min_val), float(module.max_val)
        return {"activation": "hardtanh", "bounds": (low, high)} if low <= high else WRONG_ORDER
    if kind in _ACTIVATIONS:
        slope = float(getattr(module, "negative_slope", getattr(module, "alpha", 0.0)))
        return {"activation": _ACTIVATIONS[kind], "slope": slope}
    return f"{kind.__name__} has no fused form"


def _conv(module: nn.Module, path: str, inputs: tuple[fx.Node, ...], same: bool = False) -> Op | Unsupported:
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return Unsupported(f"padding_mode={module.padding_mode!r}")
    if module.padding == "same" and pair(module.stride) != (1, 1):
        return Unsupported("padding='same' with a stride, which torch refuses")
    kernel_size, dilation = pair(module.kernel_size), pair(module.dilation)
    weight = _parameter(path, module, "weight")
    assert weight is not None
    conv = Conv(
        module.in_channels,
        module.out_channels,
        weight,
        _parameter(path, module, "bias"),
        kernel_size,
        pair(module.stride),
        dilation,
        None if same else pads(module.padding, kernel_size, dilation),
        module.groups,
    )
    return Op("conv", inputs, path, conv=conv)


def _conv_same(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    return _conv(module, path, inputs, same=True)


def _linear(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.Linear)
    bias = _parameter(path, module, "bias")
    conv = Conv(module.in_features, module.out_features, ParameterPath(path, "weight"), bias, linear=True)
    return Op("conv", inputs, path, conv=conv)


def _batch_norm(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.BatchNorm2d)
    mean, variance = _parameter(path, module, "running_mean"), _parameter(path, module, "running_var")
    if mean is None or variance is None:
        return Unsupported("batch norm without running statistics")
    weight, bias = _parameter(path, module, "weight"), _parameter(path, module, "bias")
    norm = Norm(module.num_features, weight, bias, mean, variance, module.eps, path)
    return Op("batch_norm", inputs, path, norm=norm)


def _frozen_batch_norm(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    """Of torchvision and timm: buffers alone, which no mode changes."""
    assert isinstance(module.weight, torch.Tensor)
    channels = module.weight.shape[0]
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (ParameterPath(path, name) for name in names)
    norm = Norm(int(channels), weight, bias, mean, variance, float(module.eps))  # type: ignore[arg-type]
    return Op("batch_norm", inputs, path, norm=norm)


def _with_activation(describe: _Describe) -> _Describe:
    """timm's batch norms hold a DropBlock (usually nothing) and an activation."""

    def with_activation(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
        op = describe(module, path, inputs)
        if isinstance(op, Unsupported):
            return op
        if type(module.drop) is not nn.Identity:
            return Unsupported("batch norm with dropped blocks")
        assert isinstance(module.act, nn.Module)
        activation = activation_of(module.act, f"{path}.act")
        if isinstance(activation, str):
            return Unsupported(activation)
        return Op("batch_norm", inputs, path, norm=op.norm, **activation)

    return with_activation


def softmax(inputs: tuple[fx.Node, ...], path: str, dim: Any) -> Op | Unsupported:
    """Of a module ("" for a call), over channels."""
    if dim in (1, -1):
        return Op("activation", inputs, path, activation="softmax")
    return Unsupported(f"softmax over dimension {dim}, want 1")


def _flatten(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.Flatten)
    if (module.start_dim, module.end_dim) == (1, -1):
        return Op("flatten", inputs, path)
    return Unsupported(f"flattens dimensions {module.start_dim} to {module.end_dim}, want 1 to -1")


def _window(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    return {
        "kernel_size": pair(module.kernel_size),
        "stride": pair(module.stride),
        "padding": pair(module.padding) * 2,
        "ceil_mode": module.ceil_mode,
    }


def _max_pool(module: nn.Module, path: str, inputs: tuple[fx.Node, ...], same: bool = False) -> Op | Unsupported:
    assert isinstance(module, nn.MaxPool2d)
    if module.return_indices:
        return Unsupported("returns indices")
    pool = {**_window(module), "dilation": pair(module.dilation)}
    if same:
        pool["padding"] = None
    return Op("max_pool", inputs, path, pool=pool)


def _max_pool_same(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    return _max_pool(module, path, inputs, same=True)


def _avg_pool(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.AvgPool2d)
    if module.divisor_override is not None:
        return Unsupported("average pool with a divisor of its own")
    pool = {**_window(module), "count_include_pad": module.count_include_pad}
    return Op("avg_pool", inputs, path, pool=pool)


def _adaptive_avg_pool(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    if is_global(module.output_size):
        return Op("global_avg_pool", inputs, path)
    return Unsupported(f"adaptive average pool to {module.output_size}, want 1 x 1")


def _fast_avg_pool(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    """timm's: a mean over given dimensions."""
    if tuple(getattr(module, "dim", ())) != (2, 3):
        return Unsupported("averages over other dimensions than rows and columns")
    return Op("global_avg_pool", inputs, path, keepdim=getattr(module, "flatten", False) is not True)


def _group_norm(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.GroupNorm)
    weight, bias = _parameter(path, module, "weight"), _parameter(path, module, "bias")
    statistics = Statistics(module.num_groups, weight, bias, module.eps, module.num_channels)
    return Op("norm", inputs, path, statistics=statistics)


def _layer_norm(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) != 1:
        return Unsupported("a layer norm over other than the last dimension")
    weight, bias = _parameter(path, module, "weight"), _parameter(path, module, "bias")
    return Op("norm", inputs, path, statistics=Statistics(0, weight, bias, module.eps, module.normalized_shape[0]))


def _upsample(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    assert isinstance(module, nn.Upsample)
    return moving.resize(
        inputs, module.mode, module.align_corners, module.size, module.scale_factor, module.recompute_scale_factor
    )


def _pad(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    return moving.pad(inputs, module.padding, "constant", getattr(module, "value", 0))


def _channel_shuffle(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    return channel_shuffle(inputs, module.groups, path)


def _identity(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    return Op("identity", inputs, path)


def _random(module: nn.Module, path: str, inputs: tuple[fx.Node, ...]) -> Op | Unsupported:
    return Unsupported("drops at random in train mode") if module.training else _identity(module, path, inputs)


_Describe = Callable[[nn.Module, str, tuple[fx.Node, ...]], Op | Unsupported]
_EXACT: dict[type[nn.Module], _Describe] = {
    nn.Conv2d: _conv,
    Conv2dSame: _conv_same,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.Identity: _identity,
    nn.Dropout: _random,
    nn.Dropout2d: _random,
    nn.Flatten: _flatten,
    nn.MaxPool2d: _max_pool,
    MaxPool2dSame: _max_pool_same,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.ChannelShuffle: _channel_shuffle,
    nn.ZeroPad2d: _pad,
    nn.ConstantPad2d: _pad,
}
# Leaves of other libraries, whose own code says the same in another way.
_FOREIGN: dict[str, _Describe] = {
    "timm.Conv2dSame": _conv_same,
    "timm.MaxPool2dSame": _max_pool_same,
    "timm.BatchNormAct2d": _with_activation(_batch_norm),
    "timm.FrozenBatchNormAct2d": _with_activation(_frozen_batch_norm),
    "timm.FrozenBatchNorm2d": _frozen_batch_norm,
    "torchvision.FrozenBatchNorm2d": _frozen_batch_norm,
    "timm.FastAdaptiveAvgPool": _fast_avg_pool,
    "timm.DropPath": _random,
    "timm.DropBlock2d": _random,
    "torchvision.StochasticDepth": _random,
}


def is_leaf(module: nn.Module) -> bool:
    """Whether tracing stops at a module although its library's code could be traced."""
    return isinstance(module, FusedPool) or _describer(module) is not None


def _describer(module: nn.Module) -> _Describe | None:
    return _EXACT.get(type(module)) or _FOREIGN.get(qualified_name(module))


def is_random(module: nn.Module) -> bool:
    """Whether a leaf drops values at random in train mode, and in eval mode returns what it was given."""
    return _describer(module) is _random


def why_not_plain(node: fx.Node, module: nn.Module) -> str | None:
    """Why a call of a module is more than its library's code for one tensor; None where it is that."""
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return "called with more than one argument"
    if "parametrizations" in module._modules:
        return "has parametrized weights, which are computed at each call"
    if has_hooks(module):
        return "has hooks, which must see its tensors"
    return None if has_own_forward(module) else "its forward was replaced"


def describe_module(node: fx.Node, module: nn.Module) -> Op | Unsupported:
    """A module's call as an `Op`, or why it stays native."""
    path = str(node.target)
    reason = why_not_plain(node, module)
    if reason is not None:
        return Unsupported(reason)
    inputs: Any = node.args
    describe = _describer(module)
    if describe is not None:
        return describe(module, path, inputs)
    if isinstance(module, FusedPool):
        return Op("global_avg_pool", inputs, path, keepdim=module.keepdim)
    if type(module) is nn.Softmax:
        return softmax(inputs, path, module.dim)
    activation = activation_of(module, path)
    if isinstance(activation, str):
        return Unsupported(activation)
    return Op("activation", inputs, path, inplace=bool(getattr(module, "inplace", False)), **activation)
