"""Channel shuffles: the function, the module, and what networks write in their place (a view, a transposition and a
view back), as one node.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from resfuse.lowering.call import Call
from resfuse.lowering.moving import is_shape, length_of
from resfuse.lowering.op import Op, Unsupported
from resfuse.training.plain import shuffle_channels

aten = torch.ops.aten


def join_channel_shuffles(graph: fx.Graph) -> None:
    """Makes one node of each ``x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)``."""
    for node in list(graph.nodes):
        found = _shuffled(node)
        if found is None:
            continue
        with graph.inserting_before(node):
            joined = graph.create_node("call_function", shuffle_channels, found, {}, node.name)
        joined.meta.update(node.meta)
        node.replace_all_uses_with(joined)
        _erase_unused(graph, node)


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """With what was read for it alone."""
    if node.users or node.op == "placeholder":
        return
    sources = node.all_input_nodes
    graph.erase_node(node)
    for source in sources:
        if not source.users and (_is_pure(source) or length_of(source) is not None or is_shape(source)):
            _erase_unused(graph, source)


def _is_pure(node: fx.Node) -> bool:
    return node.target in (*_VIEWS, *_TRANSPOSITIONS, *_PERMUTATIONS, *_COPIES, operator.floordiv)


_VIEWS = ("view", "reshape", torch.reshape, aten.view.default, aten.reshape.default)
_TRANSPOSITIONS = ("transpose", torch.transpose, aten.transpose.int)
_PERMUTATIONS = ("permute", torch.permute, aten.permute.default)
_COPIES = ("contiguous", aten.contiguous.default, aten.clone.default)
_FLATTENINGS = ("flatten", torch.flatten, aten.flatten.using_ints)


def _shuffled(node: fx.Node) -> tuple[fx.Node, int, bool] | None:
    """What a node shuffles the channels of, in how many groups, and whether it copies them first; None where it does
    something else.
    """
    turned = node.args[0] if node.args else None
    if not isinstance(turned, fx.Node):
        return None
    copied = turned.target in _COPIES and len(turned.args) == 1 and not turned.kwargs
    if copied and len(turned.users) == 1:
        turned = turned.args[0]
    if not isinstance(turned, fx.Node) or len(turned.users) != 1 or not _swaps_groups(turned):
        return None
    cut = turned.args[0]
    if not isinstance(cut, fx.Node) or cut.target not in _VIEWS or len(cut.users) != 1 or cut.kwargs:
        return None
    source, lengths = cut.args[0], _lengths(cut)
    if not isinstance(source, fx.Node) or len(lengths) != 5:
        return None
    batch, groups, each, height, width = lengths
    if type(groups) is not int or groups < 2 or not _is_part(each, source, groups):
        return None
    if not all(_is_length(length, source, d) for length, d in ((batch, 0), (height, 2), (width, 3))):
        return None
    if node.target in ("view", aten.view.default) and not copied:  # which torch refuses
        return None
    return (source, groups, copied) if _joins_groups(node, source) else None


def _swaps_groups(node: fx.Node) -> bool:
    if node.kwargs:
        return False
    if node.target in _TRANSPOSITIONS:
        return tuple(node.args[1:]) in ((1, 2), (2, 1))
    return node.target in _PERMUTATIONS and _lengths(node) == (0, 2, 1, 3, 4)


def _joins_groups(node: fx.Node, source: fx.Node) -> bool:
    if node.kwargs:
        return False
    if node.target in _FLATTENINGS:
        return tuple(node.args[1:]) == (1, 2)
    lengths = _lengths(node)
    if node.target not in _VIEWS or len(lengths) != 4:
        return False
    # One length may follow from the others.
    return lengths.count(-1) < 2 and all(n == -1 or _is_length(n, source, d) for d, n in enumerate(lengths))


def _lengths(node: fx.Node) -> tuple[Any, ...]:
    given = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        return tuple(given[0])
    return tuple(given)


def _is_length(value: Any, source: fx.Node, dim: int) -> bool:
    """Whether a number is the length of a dimension of the feature map ``source``, in every call."""
    if type(value) is int:
        example = source.meta.get("example_value", source.meta.get("val"))  # of graphs for one size
        return isinstance(example, torch.Tensor) and example.dim() == 4 and int(example.shape[dim]) == value
    found = length_of(value)
    return found is not None and (found[0], found[1] % 4) == (source, dim)


def _is_part(value: Any, source: fx.Node, groups: int) -> bool:
    """Whether a number is that of a group's channels."""
    if type(value) is int:
        return value == -1 or _is_length(value * groups, source, 1)
    if not isinstance(value, fx.Node) or value.target is not operator.floordiv or value.args[1] != groups:
        return False
    return _is_length(value.args[0], source, 1)


def channel_shuffle(inputs: tuple[fx.Node, ...], groups: Any, path: str = "", views: bool = False) -> Op | Unsupported:
    """Of a function, or of the module at ``path``."""
    if type(groups) is not int or groups < 1:
        return Unsupported(f"channel shuffle of {groups} groups")
    return Op("channel_shuffle", inputs, path, groups=groups, mean=views)


def _function(call: Call) -> Op | Unsupported:
    return channel_shuffle(call.inputs, call.get("groups"))


def _views(call: Call) -> Op | Unsupported:
    return channel_shuffle(call.inputs, call.get("groups"), views=True)


# As `resfuse.lowering.functions` has them.
ENTRIES = (
    (("input", "groups"), _function, (F.channel_shuffle, torch.channel_shuffle, aten.channel_shuffle.default)),
    (("input", "groups", "copies"), _views, (shuffle_channels,)),
)
