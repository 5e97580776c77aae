"""Memory formats: what the plain model would have returned, and which nodes can tell.

Programs write feature maps in channels_last memory. Where torch's own layers would have written contiguous memory, such
a tensor is handed on as it is through nodes whose results do not depend on it, and made contiguous before any other
node, or the caller, can see it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.engine.planes import to_contiguous
from resfuse.engine.spec import (
    AffineSpec,
    ChannelShuffleSpec,
    ConcatSpec,
    ConvSpec,
    GlobalAvgPoolSpec,
    LayerSpec,
    NormSpec,
    ProgramSpec,
)
from resfuse.lowering.modules import has_hooks, qualified_name

# Modules and functions that compute the same from either format, and whose results have the format of what they read.
_BLIND_MODULES = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.Upsample, nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.Mish, nn.PReLU, nn.Hardtanh,
    nn.Softplus, nn.Identity, nn.ZeroPad2d,
)  # fmt: skip
_BLIND_FOREIGN = (
    "timm.DropPath",
    "timm.PReLU",
    "torchvision.StochasticDepth",
    "timm.BatchNormAct2d",
    "torchvision.FrozenBatchNorm2d",
)
_BLIND_FUNCTIONS = frozenset({
    torch.cat, torch.relu, torch.sigmoid, torch.tanh, torch.add, torch.mul, torch.sub, torch.max_pool2d,
    torch.conv2d, torch.conv_transpose2d, F.conv2d, F.conv_transpose2d, F.interpolate, F.relu, F.relu6, F.silu, F.gelu,
    F.sigmoid, F.tanh, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.mish, F.prelu, torch.prelu,
    F.hardtanh, torch.clamp, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.batch_norm, F.group_norm, F.pad,
    operator.add, operator.mul, operator.sub, operator.iadd, operator.imul, operator.isub,
})  # fmt: skip
_BLIND_METHODS = frozenset(
    {
        "relu",
        "relu_",
        "sigmoid",
        "sigmoid_",
        "tanh",
        "tanh_",
        "add",
        "add_",
        "mul",
        "mul_",
        "sub",
        "sub_",
        "size",
        "dim",
        "numel",
    }
)
_BLIND_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda", "layout")


def is_blind(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node computes the same from either format, and hands the format on."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        known = type(module) in _BLIND_MODULES or qualified_name(module) in _BLIND_FOREIGN
        return (
            known
            and not has_hooks(module)
            and "forward" not in vars(module)
            and not getattr(module, "return_indices", False)
        )
    if node.target is getattr:
        return node.args[1] in _BLIND_ATTRIBUTES
    if node.op == "call_method":
        return node.target in _BLIND_METHODS
    blind = node.target in _BLIND_FUNCTIONS or getattr(node.target, "__name__", "") == "boolean_dispatch"
    return blind and not node.kwargs.get("return_indices", False)


def suggests_channels_last(shape: Sequence[Any], strides: Sequence[Any]) -> bool:
    """``Tensor::suggest_memory_format`` of torch: whether torch takes strides for those of channels_last memory."""
    if len(shape) != 4 or strides[1] == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if shape[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * shape[d] if shape[d] > 1 else strides[d]
    return True


def plain_formats(
    spec: ProgramSpec, shapes: Sequence[Sequence[Any]], inputs: Sequence[bool | None], weights: Sequence[bool]
) -> list[bool | None]:
    """For each buffer of a program, whether torch's own layers would have written it in channels_last memory.

    Args:
        spec: the program.
        shapes: of its buffers.
        inputs: the same of its inputs; None for strides of neither dense format, which elementwise functions keep.
        weights: for each layer, whether it has weights in channels_last memory.
    """
    formats = list(inputs)
    for layer, weight in zip(spec.layers, weights, strict=True):
        _, channels, height, width = shapes[len(formats)]
        source = formats[layer.input]
        if source is None and isinstance(layer, AffineSpec):
            formats.append(None)
            continue
        channels_last = bool(source) or weight
        if isinstance(layer, NormSpec) and layer.groups == 0:
            channels_last = True  # it comes densely from where channels are the last dimension
        if isinstance(layer, ChannelShuffleSpec) and layer.views:
            channels_last = False
        if isinstance(layer, ConcatSpec):
            channels_last = all(bool(formats[part]) for part in layer.parts)
        # Where memory is in both formats at once, torch's elementwise functions write it as contiguous, others do not.
        if (isinstance(layer, GlobalAvgPoolSpec) and layer.mean) or channels == height == width == 1:
            channels_last = False
        elif channels == 1 or height == width == 1:
            channels_last = channels_last and not _ends_elementwise(layer, height * width)
        formats.append(channels_last)
    return formats


def _ends_elementwise(layer: LayerSpec, pixels: Any) -> bool:
    activates = getattr(layer, "activation", "none") not in ("none", "prelu")  # which keeps the strides that it reads
    if isinstance(layer, AffineSpec):
        if layer == AffineSpec(
            layer.name, layer.input, layer.output, activation="prelu", slopes=layer.slopes, writes=layer.writes
        ):
            return False
        gated = layer.gate is not None and layer.residual is None and not activates
        return not gated or pixels == 1
    if isinstance(layer, ConvSpec):
        return layer.batch_norm is not None or layer.residual is not None or activates
    return False


def contiguous_outputs(
    spec: ProgramSpec, inputs: Sequence[torch.Tensor], contiguous: Sequence[bool], parameters: Sequence[torch.Tensor]
) -> list[int] | None:
    """Which of a program's outputs torch's own layers would have returned as contiguous; None: some in other strides.

    Args:
        spec: the program.
        inputs: its inputs.
        contiguous: of each, whether it would be contiguous in the plain model, whatever it is here.
        parameters: its parameters.
    """
    sources = [False if plain else _format(x) for x, plain in zip(inputs, contiguous, strict=True)]
    windows = [  # of layers that are no elementwise ones, for which torch only asks which format strides resemble
        False if plain else suggests_channels_last(x.shape, x.stride())
        for x, plain in zip(inputs, contiguous, strict=True)
    ]
    weights = [  # of linear layers: those of feature maps have them where channels are the last dimension
        isinstance(layer, ConvSpec)
        and (
            parameters[layer.weight].dim() == 2
            or suggests_channels_last(parameters[layer.weight].shape, parameters[layer.weight].stride())
        )
        for layer in spec.layers
    ]
    weights = [
        weight or (layer.input < len(inputs) and windows[layer.input] and not isinstance(layer, AffineSpec))
        for layer, weight in zip(spec.layers, weights, strict=True)
    ]
    shapes = spec.buffer_shapes([x.shape for x in inputs])
    formats = plain_formats(spec, shapes, sources, weights)
    if any(formats[output.buffer] is None for output in spec.outputs if output.rank == 4):
        return None
    return [i for i, output in enumerate(spec.outputs) if output.rank == 4 and not formats[output.buffer]]


def _format(x: torch.Tensor) -> bool | None:
    """Whether a tensor is in channels_last memory; None where it is in neither dense format."""
    if suggests_channels_last(x.shape, x.stride()) and x.is_contiguous(memory_format=torch.channels_last):
        return True
    return False if x.is_contiguous() else None


def made_contiguous(x: torch.Tensor) -> torch.Tensor:
    """A tensor in contiguous memory, with the strides that torch gives such a tensor."""
    y = to_contiguous(x)
    _, c, h, w = y.shape
    # One channel or one pixel: contiguous in either format, but for the strides of dimensions of size 1.
    return y if y.stride() == (c * h * w, h * w, w, 1) else y.flatten().view(y.shape)


class _PlainGradient(torch.autograd.Function):
    """Hands a tensor on, and its gradient back in contiguous memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return made_contiguous(grad) if grad is not None and grad.dim() == 4 else grad


def with_plain_gradient(x: Any) -> Any:
    """A program's input whose gradient comes in the memory format in which torch's own layers would give it."""
    if not isinstance(x, torch.Tensor) or not x.requires_grad or x.dim() != 4:
        return x
    if not torch.is_grad_enabled() or suggests_channels_last(x.shape, x.stride()):
        return x
    return _PlainGradient.apply(x)  # type: ignore[no-untyped-call]
