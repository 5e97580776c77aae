"""What a call of a function or method of torch computes: as users write it, as Dynamo and torch.export record it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.layers.global_avg_pool import is_global
from resfuse.lowering import moving, shuffles
from resfuse.lowering.call import Call
from resfuse.lowering.modules import WRONG_ORDER, softmax
from resfuse.lowering.op import (
    ByteWeights,
    Conv,
    Norm,
    Op,
    Parameter,
    QuantizedWeights,
    Rounding,
    Statistics,
    Unsupported,
    WrittenNorm,
    overwrites,
    pads,
    pair,
)
from resfuse.lowering.steps import ParameterPath
from resfuse.lowering.transposed import DepthToSpace, describe_depth_to_space

aten = torch.ops.aten


def _conv2d(call: Call) -> Op | Unsupported:
    weight, bias = call.parameter("weight"), call.parameter("bias")
    if weight is None or (bias is None and call.get("bias") is not None):
        return Unsupported("a convolution with computed weights")
    tensor = weight[1]
    if tensor.dim() != 4:
        return Unsupported("a convolution of other images than two-dimensional ones")
    if call.get("padding", 0) == "same" and pair(call.get("stride", 1)) != (1, 1):
        return Unsupported("padding='same' with a stride, which torch refuses")
    groups = int(call.get("groups", 1))
    kernel_size = int(tensor.shape[2]), int(tensor.shape[3])
    dilation = pair(call.get("dilation", 1))
    conv = Conv(
        int(tensor.shape[1]) * groups,
        int(tensor.shape[0]),
        weight[0],
        None if bias is None else bias[0],
        kernel_size,
        pair(call.get("stride", 1)),
        dilation,
        pads(call.get("padding", 0), kernel_size, dilation),
        groups,
        bytes=_byte_weights(call),
    )
    return Op("conv", call.inputs, name=_layer_name(call), conv=conv)


def _convolution(call: Call) -> Op | Unsupported:
    return Unsupported("a transposed convolution") if call.get("transposed") else _conv2d(call)


def _linear(call: Call) -> Op | Unsupported:
    weight, bias = call.parameter("weight"), call.parameter("bias")
    if weight is None or (bias is None and call.get("bias") is not None):
        return Unsupported("a linear layer with computed weights")
    out_features, in_features = (int(size) for size in weight[1].shape)
    bias_place = None if bias is None else bias[0]
    conv = Conv(in_features, out_features, weight[0], bias_place, linear=True, bytes=_byte_weights(call))
    return Op("conv", call.inputs, name=_layer_name(call), conv=conv)


def _byte_weights(call: Call) -> ByteWeights | None:
    """Of a layer of `QuantizedWeights`."""
    steps, zeros = call.parameter("weight_scales"), call.parameter("weight_zeros")
    if steps is None or zeros is None:
        return None
    weight, values = call.values("weight"), call.values("weight_scales")
    if weight is not None and weight.is_floating_point():
        weight = None if values is None else weight / values.reshape(-1, *[1] * (weight.dim() - 1))
    fits = weight is not None and sums_fit_winograd(weight)
    return ByteWeights(steps[0], zeros[0], fits)


def sums_fit_winograd(weight: torch.Tensor) -> bool:
    """Whether Winograd's algorithm is exact for bytes times these whole numbers [K, C, R, S]: see docs/int8.md."""
    return bool((weight.detach().float().abs().sum(list(range(1, weight.dim()))) * 255 < 2**26).all())


def _quantized_weights(node: fx.Node, call: QuantizedWeights, model: nn.Module) -> Op | Unsupported:
    names, describe = _TABLE.get(call.layer, ((), None))
    if describe not in (_conv2d, _convolution, _linear):
        return Unsupported(f"{_function_name(call.layer)} of quantised weights")
    axis, low, high, dtype = call.how
    lowest = (-128,) if call.quantize is not None else (-128, -127)
    if axis != 0 or low not in lowest or high != 127 or dtype is not torch.int8:
        return Unsupported(f"weights quantised to {low} ... {high} over dimension {axis}, want bytes by output channel")
    return describe(Call(node, names, model))


def _rounding(node: fx.Node, rounding: Rounding) -> Op | Unsupported:
    scale, zero, low, high, dtype = rounding.how
    shifts = {(0, 255, torch.uint8): 0, (-128, 127, torch.int8): 128}
    shift = shifts.get((low, high, dtype))
    if shift is None:
        return Unsupported(f"rounds to {low} ... {high}, want all of a byte")
    return Op("round", (node.args[0],), range=(float(scale), int(zero) + shift))  # type: ignore[arg-type]


def _batch_norm(call: Call) -> Op | Unsupported:
    mean, variance = call.parameter("running_mean"), call.parameter("running_var")
    if mean is None or variance is None:
        return Unsupported("batch norm without running statistics")
    weight, bias = call.parameter("weight"), call.parameter("bias")
    if any(found is None and call.get(name) is not None for name, found in (("weight", weight), ("bias", bias))):
        return Unsupported("a batch norm with computed weights")
    training, momentum = call.get("training", False), call.get("momentum", 0.1)
    if not isinstance(training, bool) or isinstance(momentum, fx.Node):
        return Unsupported("a batch norm whose mode is computed")
    norm = Norm(
        int(mean[1].shape[0]),
        None if weight is None else weight[0],
        None if bias is None else bias[0],
        mean[0],
        variance[0],
        float(call.get("eps", 1e-5)),
        training=training,
        momentum=momentum,
    )
    return Op("batch_norm", call.inputs, name=call.node.name, norm=norm)


def _written_norm(node: fx.Node, call: WrittenNorm, model: nn.Module) -> Op | Unsupported:
    """Of `resfuse.lowering.written_norms`."""
    names = ("input", "tensors", "running_mean", "running_var", "weight", "bias")
    arguments = Call(node, names, model)
    found = {name: arguments.parameter(name) for name in names[2:]}
    mean, variance = found["running_mean"], found["running_var"]
    assert mean is not None
    assert variance is not None
    weight, bias = found["weight"], found["bias"]
    norm = Norm(
        int(mean[1].shape[0]),
        None if weight is None else weight[0],
        None if bias is None else bias[0],
        mean[0],
        variance[0],
        call.eps,
    )
    name = mean[0].module if isinstance(mean[0], ParameterPath) else ""
    return Op("batch_norm", arguments.inputs, name=name or node.name, norm=norm)


def _window(call: Call) -> dict[str, Any]:
    kernel_size, stride = pair(call.get("kernel_size")), call.get("stride")
    return {
        "kernel_size": kernel_size,
        "stride": pair(stride) if stride not in (None, [], ()) else kernel_size,
        "padding": pair(call.get("padding", 0)) * 2,
        "ceil_mode": bool(call.get("ceil_mode", False)),
    }


def _max_pool2d(call: Call) -> Op | Unsupported:
    if call.get("return_indices", False):
        return Unsupported("returns indices")
    pool = {**_window(call), "dilation": pair(call.get("dilation", 1))}
    return Op("max_pool", call.inputs, pool=pool)


def _avg_pool2d(call: Call) -> Op | Unsupported:
    if call.get("divisor_override") is not None:
        return Unsupported("average pool with a divisor of its own")
    pool = {**_window(call), "count_include_pad": bool(call.get("count_include_pad", True))}
    return Op("avg_pool", call.inputs, pool=pool)


def _adaptive_avg_pool2d(call: Call) -> Op | Unsupported:
    if is_global(call.get("output_size")):
        return Op("global_avg_pool", call.inputs)
    return Unsupported("adaptive average pool to another size than 1 x 1")


def _global_avg_pool2d(call: Call) -> Op | Unsupported:
    return Op("global_avg_pool", call.inputs, keepdim=bool(call.get("keepdim", True)))


def _mean(call: Call) -> Op | Unsupported:
    dims = call.get("dim")
    whole = isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]
    if whole and call.get("dtype") is None:
        return Op("global_avg_pool", call.inputs, keepdim=bool(call.get("keepdim", False)), mean=True)
    return Unsupported(f"mean over dimensions {dims}, want (2, 3)")


def _flatten(call: Call) -> Op | Unsupported:
    start, end = call.get("start_dim", 0), call.get("end_dim", -1)
    if (start, end) == (1, -1):
        return Op("flatten", call.inputs)
    return Unsupported(f"flattens dimensions {start} to {end}, want 1 to -1")


def _softmax(call: Call) -> Op | Unsupported:
    if call.get("dtype") is not None:
        return Unsupported("softmax to another type")
    return softmax(call.inputs, "", call.get("dim"))


def _dropout(call: Call) -> Op | Unsupported:
    if call.get("training", True) is False or call.get("p", 0.5) == 0:
        return Op("identity", call.inputs)
    return Unsupported("drops at random")


def _gelu(call: Call) -> Op | Unsupported:
    if call.get("approximate", "none") != "none":
        return Unsupported("GELU by tanh has no fused form")
    return Op("activation", call.inputs, activation="gelu")


def _two_tensors(kind: str, inplace: bool) -> Callable[[Call], Op | Unsupported]:
    def describe(call: Call) -> Op | Unsupported:
        both = call.get("input"), call.get("other")
        if kind == "add" and any(call.parameter(name) is not None for name in ("input", "other")):
            return Unsupported("a sum with a parameter")
        scales = kind == "multiply" and any(call.parameter(name) is not None for name in ("input", "other"))
        if not scales and all(isinstance(node, fx.Node) for node in both) and not call.unknown("input", "other"):
            return Op(kind, both, inplace=inplace)
        if kind == "multiply" and not call.unknown("input", "other"):
            for node, name in ((both[0], "other"), (both[1], "input")):
                parameter = call.parameter(name)
                if parameter is not None and isinstance(node, fx.Node) and not inplace:
                    shape = tuple(map(int, parameter[1].shape))
                    return Op("channel_scale", (node,), parameter=parameter[0], shape=shape)
            for node, number in (both, both[::-1]):
                if isinstance(node, fx.Node) and _is_number(number):
                    return Op("scale", (node,), factor=float(number), inplace=inplace)
        return Unsupported(f"{_function_name(call.node.target)} of something other than two tensors")

    return describe


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _quotient(call: Call) -> Op | Unsupported:
    number = call.get("other")
    if _is_number(number) and number != 0 and not call.unknown("input", "other"):
        return Op("scale", call.inputs, factor=1.0 / float(number))
    return Unsupported("a quotient by something other than a number")


# The number that an activation takes, and its default.
_SLOPES = {"leaky_relu": ("negative_slope", 0.01), "elu": ("alpha", 1.0)}


def _activation(name: str, inplace: bool = False) -> Callable[[Call], Op | Unsupported]:
    def describe(call: Call) -> Op | Unsupported:
        parameter, usual = _SLOPES.get(name, ("", 0.0))
        unknown = call.unknown("input", "inplace", parameter)
        if unknown:
            return Unsupported(f"{name} with {unknown[0]}")
        slope = float(call.get(parameter, usual))
        return Op(
            "activation", call.inputs, activation=name, slope=slope, inplace=inplace or bool(call.get("inplace", False))
        )

    return describe


def _prelu(call: Call) -> Op | Unsupported:
    slopes = call.parameter("weight")
    if slopes is None:
        return Unsupported("prelu with computed slopes")
    shape = tuple(map(int, slopes[1].shape))
    return Op("activation", call.inputs, activation="prelu", parameter=slopes[0], shape=shape)


def _norm_places(call: Call, what: str) -> tuple[Parameter | None, Parameter | None, int | None] | Unsupported:
    """Weight and bias of a norm, and its channels where a weight tells them."""
    weight, bias = call.parameter("weight"), call.parameter("bias")
    if any(found is None and call.get(name) is not None for name, found in (("weight", weight), ("bias", bias))):
        return Unsupported(f"a {what} with computed weights")
    channels = None if weight is None else int(weight[1].shape[0])
    return None if weight is None else weight[0], None if bias is None else bias[0], channels


def _group_norm(call: Call) -> Op | Unsupported:
    found = _norm_places(call, "group norm")
    if isinstance(found, Unsupported):
        return found
    statistics = Statistics(int(call.get("num_groups")), found[0], found[1], float(call.get("eps", 1e-5)), found[2])
    return Op("norm", call.inputs, name=_layer_name(call), statistics=statistics)


def _layer_norm(call: Call) -> Op | Unsupported:
    shape, found = call.get("normalized_shape"), _norm_places(call, "layer norm")
    if not isinstance(shape, (tuple, list)) or len(shape) != 1 or not isinstance(shape[0], int):
        return Unsupported("a layer norm over other than the last dimension")
    if isinstance(found, Unsupported):
        return found
    statistics = Statistics(0, found[0], found[1], float(call.get("eps", 1e-5)), int(shape[0]))
    return Op("norm", call.inputs, name=_layer_name(call), statistics=statistics)


def _permute(call: Call) -> Op | Unsupported:
    dims = call.get("dims")
    if not isinstance(dims, (tuple, list)):
        dims = call.node.args[1:]
    if all(isinstance(d, int) for d in dims):
        order = tuple(d % 4 for d in dims)
        if order in ((0, 2, 3, 1), (0, 3, 1, 2)):
            return Op("permute", call.inputs, to_pixels=order == (0, 2, 3, 1))
    return Unsupported(f"permutes dimensions to {tuple(dims)}")


def _clamp(call: Call) -> Op | Unsupported:
    return _bounded(call, "clamp", call.get("min"), call.get("max"))


def _hardtanh(call: Call) -> Op | Unsupported:
    return _bounded(call, "hardtanh", call.get("min_val", -1.0), call.get("max_val", 1.0))


def _bounded(call: Call, name: str, low: Any, high: Any) -> Op | Unsupported:
    unknown = call.unknown("input", "min", "max", "min_val", "max_val", "inplace")
    if unknown:
        return Unsupported(f"{name} with {unknown[0]}")
    if not all(bound is None or (_is_number(bound) and math.isfinite(bound)) for bound in (low, high)):
        return Unsupported(f"clamps to {low} ... {high}, want finite numbers")
    bounds = None if low is None else float(low), None if high is None else float(high)
    if bounds == (None, None):
        return Unsupported("clamps to nothing")
    if name == "hardtanh" and low > high:
        return Unsupported(WRONG_ORDER)
    return Op("activation", call.inputs, activation=name, bounds=bounds, inplace=overwrites(call.node))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_CONV = _names("input weight bias stride padding dilation groups")
_NORM = _names("input running_mean running_var weight bias training momentum eps")
_ATEN_NORM = _names("input weight bias running_mean running_var training momentum eps cudnn_enabled")
_POOL = _names("input kernel_size stride padding dilation ceil_mode return_indices")
_BOTH = _names("input other")
_Entry = tuple[tuple[str, ...], Callable[[Call], Op | Unsupported]]

_TABLE: dict[Any, _Entry] = {}


def _enter(names: tuple[str, ...], describe: Callable[[Call], Op | Unsupported], *targets: Any) -> None:
    _TABLE.update(dict.fromkeys(targets, (names, describe)))


_enter(_CONV, _conv2d, torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding)
_enter(_names("input weight bias stride padding dilation transposed output_padding groups"), _convolution,
       aten.convolution.default)  # fmt: skip
_enter(_names("input weight bias"), _linear, F.linear, torch._C._nn.linear, aten.linear.default)
_enter(_NORM, _batch_norm, F.batch_norm)
_enter(_ATEN_NORM, _batch_norm, torch.batch_norm, aten.batch_norm.default)
_enter(_POOL, _max_pool2d, F.max_pool2d, torch.max_pool2d, aten.max_pool2d.default)
_enter(_names("input num_groups weight bias eps"), _group_norm, F.group_norm, torch.group_norm,
       aten.group_norm.default)  # fmt: skip
_enter(_names("input normalized_shape weight bias eps"), _layer_norm, F.layer_norm, torch.layer_norm,
       aten.layer_norm.default)  # fmt: skip
_enter(_names("input min max"), _clamp, torch.clamp, torch.clip, torch.clamp_, torch.clip_, "clamp", "clip", "clamp_",
       "clip_", aten.clamp.default)  # fmt: skip
_enter(_names("input min"), _clamp, torch.clamp_min, "clamp_min", aten.clamp_min.default)
_enter(_names("input max"), _clamp, torch.clamp_max, "clamp_max", aten.clamp_max.default)
_enter(_names("input min_val max_val inplace"), _hardtanh, F.hardtanh, F.hardtanh_, aten.hardtanh.default)
_enter(_names("input dims"), _permute, torch.permute, "permute", aten.permute.default)
_enter(_names("input kernel_size stride padding ceil_mode count_include_pad divisor_override"), _avg_pool2d,
       F.avg_pool2d, aten.avg_pool2d.default)  # fmt: skip
_enter(_names("input output_size"), _adaptive_avg_pool2d, F.adaptive_avg_pool2d, aten.adaptive_avg_pool2d.default)
_enter(_names("input keepdim"), _global_avg_pool2d, torch.ops.resfuse.global_avg_pool2d.default)
_enter(_names("input dim keepdim"), _mean, torch.mean, "mean", aten.mean.dim)
_enter(_names("input start_dim end_dim"), _flatten, torch.flatten, "flatten", aten.flatten.using_ints)
_enter(_names("input dim _stacklevel dtype"), _softmax, F.softmax)
_enter(_names("input dim dtype"), _softmax, torch.softmax, "softmax", aten.softmax.int)
_enter(_names("input p training inplace"), _dropout, F.dropout, F.dropout2d)
_enter(_names("input p training"), _dropout, aten.dropout.default, torch.dropout)
_enter(_names("input weight"), _prelu, F.prelu, torch.prelu, "prelu", aten.prelu.default)
_enter(_names("input approximate"), _gelu, F.gelu, aten.gelu.default)
_enter(_BOTH, _two_tensors("add", False), operator.add, torch.add, "add", aten.add.Tensor)
_enter(_BOTH, _two_tensors("add", True), operator.iadd, "add_", aten.add_.Tensor)
_enter(_BOTH, _two_tensors("multiply", False), operator.mul, torch.mul, "mul", aten.mul.Tensor)
_enter(_BOTH, _two_tensors("multiply", True), operator.imul, "mul_", aten.mul_.Tensor)
_enter(_BOTH, _quotient, operator.truediv, torch.div, torch.true_divide, "div", aten.div.Tensor)
for _names_of_arguments, _describe, _targets in (*moving.ENTRIES, *shuffles.ENTRIES):
    _enter(_names_of_arguments, _describe, *_targets)
for _name in ("relu", "tanh", "sigmoid", "silu", "leaky_relu", "relu6", "hardsigmoid", "hardswish", "mish", "elu"):
    _sources = [getattr(F, _name, None), getattr(torch, _name, None), _name]
    _written = [f"{_name}_", getattr(torch, f"{_name}_", None), getattr(F, f"{_name}_", None)]
    if _name != "elu":  # which takes two numbers more there
        _sources.append(getattr(aten, _name).default)
        _written.append(getattr(aten, f"{_name}_").default)
    _arguments = ("input", _SLOPES[_name][0], "inplace") if _name in _SLOPES else ("input", "inplace")
    _enter(_arguments, _activation(_name), *[target for target in _sources if target is not None])
    _enter(_arguments, _activation(_name, True), *[target for target in _written if target is not None])


def describe_call(node: fx.Node, model: nn.Module) -> Op | Unsupported:
    """A function's or method's call as an `Op`, or why it stays native."""
    if isinstance(node.target, WrittenNorm):
        return _written_norm(node, node.target, model)
    if isinstance(node.target, Rounding):
        return _rounding(node, node.target)
    if isinstance(node.target, QuantizedWeights):
        return _quantized_weights(node, node.target, model)
    if isinstance(node.target, moving.Part):
        return moving.describe_part(node, node.target)
    if isinstance(node.target, DepthToSpace):
        return describe_depth_to_space(node, node.target)
    if isinstance(node.target, moving.ResizedLike):
        return moving.describe_resized_like(node, node.target)
    entry = _TABLE.get(node.target)
    if entry is None:
        return Unsupported(f"{_function_name(node.target)} has no fused form")
    names, describe = entry
    call = Call(node, names, model)
    if names[0] == "input" and not call.inputs:
        return Unsupported(f"{_function_name(node.target)} of something other than a tensor")
    return describe(call)


def _layer_name(call: Call) -> str:
    """The path of the layer that a weight or bias belongs to; Dynamo spells it out in a placeholder's name.

    Quantised weights belong to the graph itself, but not their biases.
    """
    for found in (call.parameter("weight"), call.parameter("bias")):
        name = "" if found is None else _module_of(found[0])
        if name:
            return name
    return call.node.name


def _module_of(parameter: Parameter) -> str:
    if isinstance(parameter, ParameterPath):
        return parameter.module
    name = parameter.name.removeprefix("l_self_modules_").removeprefix("l_model_modules_")
    layer, separator, _ = name.partition("_parameters_")
    return layer.replace("_modules_", ".") if separator else ""


def _function_name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
