"""What moves elements and computes nothing: concatenations, slices, padding, and resampling."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from resfuse.lowering.call import Call
from resfuse.lowering.op import ChannelsOf, Op, Resize, Unsupported

aten = torch.ops.aten
_CHANNELS = (1, -3)
_EXTENT = {2: 0, 3: 1, -2: 0, -1: 1}  # dimensions that are height and width


@dataclasses.dataclass(frozen=True)
class Part:
    """``cut(x, *how)[index]`` as one function."""

    cut: Any
    how: tuple[Any, ...]
    index: int
    __name__ = "part"

    def __call__(self, x: torch.Tensor) -> Any:
        return self.cut(x, *self.how)[self.index]


@dataclasses.dataclass(frozen=True)
class ResizedLike:
    """``F.interpolate(x, other.shape[2:], ...)`` as one function."""

    mode: str
    align_corners: bool | None
    __name__ = "interpolate"

    def __call__(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, tuple(other.shape[2:]), mode=self.mode, align_corners=self.align_corners)


_CUTS = {
    torch.chunk: torch.chunk,
    "chunk": torch.chunk,
    aten.chunk.default: torch.chunk,
    torch.split: torch.split,
    "split": torch.split,
    aten.split.Tensor: torch.split,
    aten.split_with_sizes.default: torch.split,
}


def join_moving(graph: fx.Graph) -> None:
    """Makes one node of each pair of which the first gives no tensor: parts of a split, and resampling to the size of
    another tensor.
    """
    for node in list(graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and type(node.args[1]) is int:
            source = node.args[0]
            how = _cut(source)
            if how is not None:
                _replace(graph, node, Part(_CUTS[source.target], how, node.args[1]), (source.args[0],))
        elif node.target is F.interpolate:
            call = Call(node, _INTERPOLATE, nn.Module())
            other = _sized_like(call.get("size"))
            plain = not any(call.get(name) for name in ("scale_factor", "recompute_scale_factor", "antialias"))
            if other is not None and plain:
                like = ResizedLike(call.get("mode", "nearest"), call.get("align_corners"))
                _replace(graph, node, like, (node.args[0], other))
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.target in _CUTS or _is_size(node)):
            graph.erase_node(node)


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        joined = graph.create_node("call_function", target, args, {}, node.name)
    joined.meta.update(node.meta)
    node.replace_all_uses_with(joined)
    graph.erase_node(node)


def _cut(node: fx.Node) -> tuple[Any, ...] | None:
    """How a node cuts its first argument in parts: the other arguments of the function, if these are numbers."""
    function = _CUTS.get(node.target)
    if function is None or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    names = ("input", "chunks", "dim") if function is torch.chunk else ("input", "split_size", "dim")
    call = Call(node, names, nn.Module())
    sizes, dim = call.get("split_size_or_sections", call.get("split_sizes", call.get(names[1]))), call.get("dim", 0)
    if isinstance(sizes, (list, tuple)):
        sizes = tuple(sizes)
    numbers = sizes if isinstance(sizes, tuple) else (sizes,)
    return (sizes, dim) if all(type(n) is int for n in (*numbers, dim)) and all(n > 0 for n in numbers) else None


def _is_size(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape, or a part of such."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_size(node.args[0])
    return (node.target is getattr and node.args[1] == "shape") or (node.op == "call_method" and node.target == "size")


def _sized_like(size: Any) -> fx.Node | None:
    """The tensor whose height and width a size is."""
    if isinstance(size, fx.Node):
        if size.target is not operator.getitem or size.args[1] not in (slice(2, None), slice(-2, None)):
            return None
        source = size.args[0]
        return source.args[0] if isinstance(source, fx.Node) and is_shape(source) else None  # type: ignore[return-value]
    if isinstance(size, (tuple, list)) and len(size) == 2:
        found = [_length_of(length) for length in size]
        (first, axis), (second, other) = found
        return first if first is not None and first is second and (axis, other) == (0, 1) else None
    return None


def is_shape(node: fx.Node) -> bool:
    """Whether a node reads all of a tensor's shape."""
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target == "size" and len(node.args) == 1 and not node.kwargs


def length_of(node: Any) -> tuple[fx.Node, int] | None:
    """The tensor and the dimension, as it was written, whose length a node is."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return None
    if node.target == "size" and len(node.args) == 2:
        source, dim = node.args
    elif node.target is operator.getitem and isinstance(node.args[0], fx.Node) and is_shape(node.args[0]):
        source, dim = node.args[0].args[0], node.args[1]
    else:
        return None
    return (source, dim) if isinstance(source, fx.Node) and type(dim) is int else None


def _length_of(length: Any) -> tuple[fx.Node | None, int]:
    """The tensor whose height (0) or width (1) a number is."""
    if isinstance(length, fx.Node) and length.target is operator.getitem and isinstance(length.args[1], int):
        shape, dim = length.args
        other = _sized_like(shape) if isinstance(shape, fx.Node) else None
        if other is not None:  # of its height and width alone
            return other, {0: 0, 1: 1, -2: 0, -1: 1}.get(dim, -1)  # type: ignore[arg-type]
    found = length_of(length)
    return (found[0], _EXTENT[found[1]]) if found is not None and found[1] in _EXTENT else (None, -1)


def describe_part(node: fx.Node, part: Part) -> Op | Unsupported:
    """Of `Part`."""
    sizes, dim = part.how
    if dim not in _CHANNELS:
        return Unsupported(f"parts along dimension {dim}, want channels (1)")
    if isinstance(sizes, tuple):
        index = part.index + len(sizes) if part.index < 0 else part.index
        if not 0 <= index < len(sizes):
            return Unsupported(f"part {part.index} of {len(sizes)}")
        channels = ChannelsOf(sum(sizes[:index]), sum(sizes[: index + 1]))
    elif part.cut is torch.chunk:
        channels = ChannelsOf(chunks=sizes, index=part.index)
    else:
        channels = ChannelsOf(split=sizes, index=part.index)
    return Op("slice", (node.args[0],), channels=channels)  # type: ignore[arg-type]


def describe_resized_like(node: fx.Node, like: ResizedLike) -> Op | Unsupported:
    """Of `ResizedLike`."""
    inputs: Any = node.args
    return _resized(inputs, like.mode, like.align_corners)


def _resized(inputs: tuple[fx.Node, ...], mode: Any, align_corners: Any, **how: Any) -> Op | Unsupported:
    if mode not in ("nearest", "bilinear"):
        return Unsupported(f"resamples by mode={mode!r}, want 'nearest' or 'bilinear'")
    return Op("resize", inputs, resize=Resize(mode == "bilinear", bool(align_corners), **how))


def resize(
    inputs: tuple[fx.Node, ...], mode: Any, align_corners: Any, size: Any, scale: Any, recompute: Any = None
) -> Op | Unsupported:
    """Of ``F.interpolate`` and ``nn.Upsample``."""
    if (size is None) == (scale is None):
        return Unsupported("resamples to no size, or by no factor")
    if size is not None:
        lengths = size if isinstance(size, (tuple, list)) else (size, size)
        if len(lengths) != 2 or not all(type(length) is int for length in lengths):
            return Unsupported("resamples to a size that is computed")
        return _resized(inputs, mode, align_corners, size=tuple(lengths))
    factors = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    if len(factors) != 2 or not all(isinstance(factor, (int, float)) for factor in factors):
        return Unsupported("resamples by factors that are computed")
    if recompute and not all(float(factor).is_integer() for factor in factors):
        return Unsupported("resamples by recomputed factors")
    return _resized(inputs, mode, align_corners, scale=tuple(map(float, factors)))


def _interpolate(call: Call) -> Op | Unsupported:
    if call.get("antialias", False):
        return Unsupported("resamples with antialias")
    scale, recompute = call.get("scale_factor"), call.get("recompute_scale_factor")
    return resize(
        call.inputs, call.get("mode", "nearest"), call.get("align_corners"), call.get("size"), scale, recompute
    )


def _aten_resize(mode: str) -> Any:
    def describe(call: Call) -> Op | Unsupported:
        size, scale = call.get("output_size"), call.get("scale_factors")
        return resize(call.inputs, mode, call.get("align_corners"), size, scale)

    return describe


def _concat(call: Call) -> Op | Unsupported:
    parts, dim = call.get("tensors"), call.get("dim", 0)
    if not isinstance(parts, (tuple, list)) or not all(isinstance(part, fx.Node) for part in parts) or not parts:
        return Unsupported("joins other than a list of tensors")
    if dim not in _CHANNELS:
        return Unsupported(f"joins along dimension {dim}, want channels (1)")
    return Op("concat", tuple(parts))


def _getitem(call: Call) -> Op | Unsupported:
    key = call.get("key")
    if isinstance(key, tuple) and len(key) >= 2:
        first, channels, *others = key
        whole = first == slice(None) and all(item == slice(None) or item is Ellipsis for item in others)
        if whole and isinstance(channels, slice) and channels.step in (None, 1):
            bounds = channels.start, channels.stop
            if all(bound is None or type(bound) is int for bound in bounds):
                return Op("slice", call.inputs, channels=ChannelsOf(*bounds))
    return Unsupported("takes other elements than some channels")


def pad(inputs: tuple[fx.Node, ...], padding: Any, mode: Any, value: Any) -> Op | Unsupported:
    """Of ``F.pad`` and the modules of constant padding; ``padding``: left, right, top, bottom."""
    if mode != "constant" or value not in (None, 0):
        return Unsupported(f"pads by mode={mode!r} and value={value}, want zeros")
    if isinstance(padding, int):
        padding = (padding,) * 4
    if not isinstance(padding, (tuple, list)) or not all(type(length) is int for length in padding):
        return Unsupported("pads by lengths that are computed")
    if len(padding) not in (2, 4):
        return Unsupported(f"pads {len(padding) // 2} dimensions, want height and width")
    left, right, top, bottom = (*padding, 0, 0)[:4]
    return Op("pad", inputs, padding=(top, left, bottom, right))


def _pad(call: Call) -> Op | Unsupported:
    return pad(call.inputs, call.get("pad"), call.get("mode", "constant"), call.get("value"))


_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
# As `resfuse.lowering.functions` has them: names of arguments, what describes a call, the functions.
ENTRIES: tuple[tuple[tuple[str, ...], Any, tuple[Any, ...]], ...] = (
    (("tensors", "dim"), _concat, (torch.cat, torch.concat, torch.concatenate, aten.cat.default)),
    (("input", "key"), _getitem, (operator.getitem,)),
    (_INTERPOLATE, _interpolate, (F.interpolate,)),
    (("input", "pad", "mode", "value"), _pad, (F.pad, torch._C._nn.pad)),
    (("input", "pad", "value"), _pad, (aten.constant_pad_nd.default,)),
    (("input", "output_size", "scale_factors"), _aten_resize("nearest"), (aten.upsample_nearest2d.vec,)),
    (
        ("input", "output_size", "align_corners", "scale_factors"),
        _aten_resize("bilinear"),
        (aten.upsample_bilinear2d.vec,),
    ),
)
