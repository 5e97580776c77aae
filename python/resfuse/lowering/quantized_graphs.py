"""Graphs that others quantised, as torchao's PT2E and torch.export write them.

There ``dequantize(quantize(x))`` stands wherever a feature map is rounded to bytes, and convolutions take
``dequantize(weight)``. Each such group becomes one node here, so that it is either a part of a program or runs as it
was, as a whole.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from resfuse.lowering.op import QuantizedWeights, Rounding

# By name: the operators are defined by whichever of torch.ao and torchao was imported.
_QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_QUANTIZE_WEIGHTS = "quantized_decomposed.quantize_per_channel.default"
_DEQUANTIZE_WEIGHTS = "quantized_decomposed.dequantize_per_channel.default"


def join_quantized(graph: fx.Graph) -> None:
    """Puts one node in the place of each rounding, and of each layer with quantised weights."""
    joined = False
    roundings: dict[tuple[fx.Node, Rounding], fx.Node] = {}
    for node in list(graph.nodes):
        if _is(node, _DEQUANTIZE):
            joined |= _join_rounding(node, graph, roundings)
        elif node.op == "call_function" and len(node.args) > 1 and _is(node.args[1], _DEQUANTIZE_WEIGHTS):
            joined |= _join_weights(node, graph)
    if joined:
        for node in reversed(list(graph.nodes)):
            if not node.users and any(_is(node, name) for name in (_QUANTIZE, _QUANTIZE_WEIGHTS, _DEQUANTIZE_WEIGHTS)):
                graph.erase_node(node)


def _is(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and str(node.target) == name


def _join_rounding(node: Any, graph: fx.Graph, made: dict[tuple[fx.Node, Rounding], fx.Node]) -> bool:
    quantize = node.args[0]
    if not _is(quantize, _QUANTIZE) or node.kwargs or quantize.kwargs or node.args[1:] != quantize.args[1:]:
        return False
    if not all(isinstance(value, (int, float)) for value in node.args[1:5]):
        return False  # computed
    source = quantize.args[0]
    key = (source, Rounding(quantize.target, node.target, tuple(node.args[1:])))
    if key not in made:  # graphs have a dequantize for each reader
        with graph.inserting_after(quantize):
            made[key] = graph.call_function(key[1], (source,))
        made[key].meta = dict(node.meta)
    _replace(node, made[key], graph)
    return True


def _join_weights(node: Any, graph: fx.Graph) -> bool:
    dequantize = node.args[1]
    weight, scales, zeros, *how = dequantize.args
    quantize = None
    if _is(weight, _QUANTIZE_WEIGHTS):  # not computed beforehand
        if weight.kwargs or weight.args[1:] != dequantize.args[1:]:
            return False
        quantize, weight = weight.target, weight.args[0]
    tensors = (weight, scales, zeros)
    if dequantize.kwargs or not all(isinstance(n, fx.Node) and n.op in ("get_attr", "placeholder") for n in tensors):
        return False
    layer = QuantizedWeights(node.target, quantize, dequantize.target, tuple(how))
    kwargs = {**node.kwargs, "weight_scales": scales, "weight_zeros": zeros}
    with graph.inserting_before(node):
        new = graph.call_function(layer, (node.args[0], weight, *node.args[2:]), kwargs)
    new.meta = dict(node.meta)
    _replace(node, new, graph)
    return True


def _replace(node: fx.Node, new: fx.Node, graph: fx.Graph) -> None:
    node.replace_all_uses_with(new)
    graph.erase_node(node)
