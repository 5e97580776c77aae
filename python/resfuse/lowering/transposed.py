"""Transposed convolutions, as convolutions whose output channels become pixels.

With a stride of s each output row q of such a layer is row q // s of phase q % s, and each phase is an ordinary
convolution of stride 1 by every s-th row of the kernel, turned round. So one convolution computes all phases as
channels, and a `DepthToSpace` puts these in their places (Shi et al., "Is the deconvolution layer the same as a
convolutional layer?", arXiv:1609.07009). Its weights are functions of the layer's own, as those of
`resfuse.lowering.computed_weights` are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.lowering.call import Call
from resfuse.lowering.layouts import suggests_channels_last
from resfuse.lowering.modules import why_not_plain
from resfuse.lowering.op import Op, Unsupported, overwrites, pair, value_of
from resfuse.training.plain import depth_to_space

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class PhaseWeights:
    """The weights [C, K, R, S] of a transposed convolution as those of a convolution [phases * K, C, T, U]."""

    stride: tuple[int, int]
    kernel_size: tuple[int, int]  # on which the layers around depend: `ComputedWeights.reason` asks for it
    __name__ = "phase_weights"

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        inputs, outputs, *kernel = weight.shape
        if tuple(kernel) != self.kernel_size:
            raise ValueError(f"weight: its kernel is {tuple(kernel)}, want {self.kernel_size}")
        high, wide = self.stride
        rows, cols = (-(-length // step) for length, step in zip(kernel, self.stride, strict=True))
        whole = F.pad(weight, (0, cols * wide - kernel[1], 0, rows * high - kernel[0]))
        taps = whole.reshape(inputs, outputs, rows, high, cols, wide).flip(2, 4)
        phases = taps.permute(3, 5, 1, 0, 2, 4).reshape(high * wide * outputs, inputs, rows, cols)
        return _in_format_of(weight, phases)


@dataclasses.dataclass(frozen=True)
class PhaseBias:
    """The bias of each phase."""

    phases: int
    __name__ = "phase_bias"

    def __call__(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        return None if bias is None else bias.repeat(self.phases)


@dataclasses.dataclass(frozen=True)
class DepthToSpace:
    """What `resfuse.engine.spec.DepthToSpaceSpec` says, as a function of feature maps [..., C, H, W]."""

    block: tuple[int, int]
    crop: tuple[int, int, int, int]
    __name__ = "depth_to_space"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _in_format_of(x, depth_to_space(x, self.block, self.crop))


def _in_format_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    last = suggests_channels_last(x.shape, x.stride())
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """One transposed convolution."""

    inputs: fx.Node
    weight: str | fx.Node  # an attribute's path, or the node that reads it
    bias: str | fx.Node | None
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]

    def is_allowed(self) -> bool:
        """Whether torch takes these lengths; what it refuses, it says itself."""
        lengths = zip(self.stride, self.padding, self.output_padding, strict=True)
        return all(step > 0 and pad >= 0 and 0 <= more < step for step, pad, more in lengths)


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_FUNCTIONS = (F.conv_transpose2d, torch.conv_transpose2d, aten.conv_transpose2d.input)


def join_transposed(graph: fx.Graph, model: nn.Module) -> None:
    """Makes a convolution and a `DepthToSpace` of each transposed convolution whose weights are attributes."""
    for node in list(graph.nodes):
        if node.op == "call_module":
            found = _of_module(node, model)
        else:
            found = _of_call(node, model) if node.op == "call_function" and node.target in _FUNCTIONS else None
        if found is not None and found.is_allowed():
            _replace(graph, node, found)


def _of_module(node: fx.Node, model: nn.Module) -> _Transposed | None:
    module = model.get_submodule(str(node.target))
    if type(module) is not nn.ConvTranspose2d or "native" in node.meta or why_not_plain(node, module) is not None:
        return None
    if module.groups != 1 or pair(module.dilation) != (1, 1) or module.padding_mode != "zeros":
        return None
    source: Any = node.args[0]
    return _Transposed(
        source,
        f"{node.target}.weight",
        None if module.bias is None else f"{node.target}.bias",
        (module.weight.shape[2], module.weight.shape[3]),
        pair(module.stride),
        pair(module.padding),
        pair(module.output_padding),
    )


def _of_call(node: fx.Node, model: nn.Module) -> _Transposed | None:
    call = Call(node, _ARGUMENTS, model)
    source, weight, bias = call.get("input"), call.get("weight"), call.get("bias")
    lengths = [call.get(name, default) for name, default in zip(_ARGUMENTS[3:], (1, 0, 0, 1, 1), strict=True)]
    if not all(type(n) is int for given in lengths for n in (given if isinstance(given, (tuple, list)) else (given,))):
        return None
    stride, padding, output_padding, groups, dilation = lengths
    if groups != 1 or pair(dilation) != (1, 1) or not isinstance(source, fx.Node):
        return None
    if not _is_attribute(weight) or not (bias is None or _is_attribute(bias)):
        return None
    value = value_of(weight, model)
    if value is None or value.dim() != 4:
        return None
    kernel = (value.shape[2], value.shape[3])
    return _Transposed(source, weight, bias, kernel, pair(stride), pair(padding), pair(output_padding))


def _is_attribute(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and not any(overwrites(user) for user in node.users)


def _replace(graph: fx.Graph, node: fx.Node, found: _Transposed) -> None:
    before, behind, crop = [], [], []
    for axis in range(2):
        kernel, step, pad = found.kernel_size[axis], found.stride[axis], found.padding[axis]
        whole, left_out = divmod(pad, step)  # rows of a phase that nothing of is kept, and of the next one
        span = kernel + found.output_padding[axis] - 2 * pad + left_out
        rows = -(-span // step)
        before.append(-(-kernel // step) - 1 - whole)
        behind.append(whole - 1 + rows)
        crop.append((left_out, rows * step - span))
    (top, bottom), (left, right) = crop
    phases = math.prod(found.stride)
    with graph.inserting_before(node):
        weight, bias = (
            graph.get_attr(value) if isinstance(value, str) else value for value in (found.weight, found.bias)
        )
        weight = graph.call_function(PhaseWeights(found.stride, found.kernel_size), (weight,))
        bias = None if bias is None else graph.call_function(PhaseBias(phases), (bias,))
        source = found.inputs
        if any(before) or any(behind):
            source = graph.call_function(F.pad, (source, (before[1], behind[1], before[0], behind[0])))
        products = graph.create_node("call_function", F.conv2d, (source, weight, bias), {}, f"{node.name}_phases")
        joined = graph.create_node(
            "call_function", DepthToSpace(found.stride, (top, left, bottom, right)), (products,), {}, node.name
        )
    for made in (products, joined):
        made.meta.update(node.meta)
    node.replace_all_uses_with(joined)
    graph.erase_node(node)


def describe_depth_to_space(node: fx.Node, how: DepthToSpace) -> Op | Unsupported:
    """Of `DepthToSpace`."""
    inputs: Any = node.args
    return Op("depth_to_space", inputs, block=how.block, padding=how.crop)
