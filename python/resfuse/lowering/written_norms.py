"""Batch norms that are written by hand, as detection code has them: four tensors, ``x * scale + shift``.

They are recognised by what they compute, not by one spelling: a node's value is expanded into a sum of products of the
image, the four tensors and ``1 / sqrt(var + eps)``. It is a batch norm where that sum is
``x w / sqrt(var + eps) - mean w / sqrt(var + eps) + b`` (Ioffe & Szegedy, 2015, for inference).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from resfuse.lowering.native import native_call, run_native
from resfuse.lowering.op import WrittenNorm, value_of

Factor = tuple[Any, ...]
Terms = dict[tuple[Factor, ...], float]  # products of factors, and how often they are in the sum

_SHAPES = ("reshape", "view", "unsqueeze", "to", "float", "type", "type_as", "expand_as")
_MOST_TERMS = 16


def join_written_norms(graph: fx.Graph, model: nn.Module) -> None:
    """Puts one node in the place of each batch norm that is written by hand."""
    joined = False
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "call_method") and node.users:
            joined |= _join(node, graph, model)
    if joined:
        _erase_unused(graph, model)


def _join(node: fx.Node, graph: fx.Graph, model: nn.Module) -> bool:
    terms = _Expansion(model).terms(node)
    if terms is None or len(terms) not in (2, 3):
        return False
    found = _match(terms)
    if found is None:
        return False
    x, roles, eps = found
    inner = _between(node, x, model)
    if inner is None or any(user not in inner for n in inner[:-1] for user in n.users if _reads(n, x)):
        return False
    sources = dict.fromkeys(source for n in inner for source in n.all_input_nodes)
    tensors = [source for source in sources if source is not x and _is_vector(source, model)]
    channels = {value.shape for role in roles.values() if (value := value_of(role, model)) is not None}
    if len(channels) != 1 or len(next(iter(channels))) != 1:
        return False
    calls, inputs = [native_call(n, model) for n in inner], [n.name for n in (x, *tensors)]

    def run(values: list[Any]) -> Any:
        env: dict[str, Any] = dict(zip(inputs, values, strict=True))
        for call in calls:
            env[call.name] = run_native(call, model, env)
        return env[calls[-1].name]

    with graph.inserting_before(node):
        names = ("running_mean", "running_var", "weight", "bias")
        new = graph.call_function(WrittenNorm(run, eps), (x, tensors, *(roles.get(name) for name in names)))
    new.meta["tensor"] = True
    node.replace_all_uses_with(new)
    for n in reversed(inner):
        if not n.users:
            graph.erase_node(n)
    return True


def _between(node: fx.Node, x: fx.Node, model: nn.Module) -> list[fx.Node] | None:
    """The nodes that compute a value from ``x`` and attributes alone, in order; None where there is anything else."""
    found: dict[fx.Node, None] = {}

    def visit(n: fx.Node) -> bool:
        if n is x or n in found or _is_vector(n, model):
            return True
        if n.op not in ("call_function", "call_method") or not all(visit(source) for source in n.all_input_nodes):
            return False
        found[n] = None
        return True

    return list(found) if visit(node) else None


def _reads(node: fx.Node, x: fx.Node) -> bool:
    """Whether a value depends on the image; what is computed of parameters alone may be used elsewhere, too."""
    return node is x or any(_reads(source, x) for source in node.all_input_nodes)


def _erase_unused(graph: fx.Graph, model: nn.Module) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.op == "get_attr" or "of_parameters" in node.meta):
            graph.erase_node(node)


def _is_vector(node: fx.Node, model: nn.Module) -> bool:
    """Whether a value is a parameter or buffer of one dimension; in Dynamo's graphs these are arguments."""
    value = value_of(node, model) if node.op in ("get_attr", "placeholder") else None
    return value is not None and value.dim() == 1


def _match(terms: Terms) -> tuple[fx.Node, dict[str, fx.Node], float] | None:
    """The image, which tensor is what, and epsilon."""
    rest = dict(terms)
    (scaled,) = [key for key in rest if any(f[0] == "x" for f in key)] or [()]
    x = [f for f in scaled if f[0] == "x"]
    inverse = [f for f in scaled if f[0] == "inverse"]
    weights = [f for f in scaled if f[0] == "tensor"]
    if len(x) != 1 or len(inverse) != 1 or len(weights) > 1 or rest.pop(scaled) != 1.0:
        return None
    roles = {"running_var": inverse[0][1]}
    if weights:
        roles["weight"] = weights[0][1]
    for key, factor in rest.items():
        tensors = [f for f in key if f[0] == "tensor"]
        if inverse[0] in key and factor == -1.0:
            for weight in weights:
                if weight not in tensors:
                    return None
                tensors.remove(weight)
            if len(tensors) != 1 or len(key) != 2 + len(weights) or "running_mean" in roles:
                return None
            roles["running_mean"] = tensors[0][1]
        elif len(key) == 1 and tensors and factor == 1.0 and "bias" not in roles:
            roles["bias"] = tensors[0][1]
        else:
            return None
    return (x[0][1], roles, inverse[0][2]) if "running_mean" in roles else None


class _Expansion:
    """Expands values into sums of products."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._x: fx.Node | None = None

    def terms(self, value: Any) -> Terms | None:
        """The expansion of a node or number; None where it has none, or reads two images."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {(): float(value)}
        if not isinstance(value, fx.Node):
            return None
        if _is_vector(value, self._model):
            return {(("tensor", value),): 1.0}
        if value.op in ("call_function", "call_method"):
            expanded = self._call(value)
            if expanded is not None:
                if not any(f[0] == "x" for key in expanded for f in key):
                    value.meta["of_parameters"] = True
                return expanded if len(expanded) <= _MOST_TERMS else None
        if self._x is not None and self._x is not value:
            return None
        self._x = value
        return {(("x", value),): 1.0}

    def _call(self, node: fx.Node) -> Terms | None:
        name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
        args = node.args
        if name in _SHAPES or (node.target is operator.getitem and _adds_dimensions(args[1])):
            first = self._parameters_only(args[0])
            return first
        if node.kwargs or not args:
            return None
        handler = _HANDLERS.get(name)
        if handler is None or len(args) != handler[0]:
            return None
        if name == "pow" and not (isinstance(args[1], float) and args[1] == -0.5):
            return None
        if name in ("rsqrt", "sqrt", "pow", "reciprocal"):
            return handler[1](self._parameters_only(args[0]))
        operands = [self.terms(arg) for arg in args]
        if any(operand is None for operand in operands):
            return None
        with_image = [any(f[0] == "x" for key in operand or () for f in key) for operand in operands]
        if any(with_image):
            vectors = [
                arg for arg, image in zip(args, with_image, strict=True) if isinstance(arg, fx.Node) and not image
            ]
            if not all(_is_of_channels(vector, self._model) for vector in vectors):
                return None
        return handler[1](*operands)

    def _parameters_only(self, value: Any) -> Terms | None:
        if not isinstance(value, fx.Node):
            return None
        inner = _Expansion(self._model)
        terms = inner.terms(value)
        return None if inner._x is not None else terms


def _is_of_channels(node: fx.Node, model: nn.Module) -> bool:
    """Whether a value that is computed of parameters has the shape [..., C, 1, 1]."""
    try:
        with torch.no_grad():
            value = _value(node, model)
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(value, torch.Tensor) and value.dim() >= 3 and value.shape[-2] == value.shape[-1] == 1


def _value(node: Any, model: nn.Module) -> Any:
    if not isinstance(node, fx.Node):
        return node
    if node.op in ("get_attr", "placeholder"):
        return value_of(node, model)
    if node.target in ("to", "float", "type", "type_as"):
        return _value(node.args[0], model)
    args = [_value(arg, model) for arg in node.args]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:])
    return node.target(*args, **node.kwargs)  # type: ignore[operator]


def _adds_dimensions(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is Ellipsis or item == slice(None) for item in items)


def _add(a: Terms, b: Terms, sign: float = 1.0) -> Terms:
    total = dict(a)
    for key, factor in b.items():
        total[key] = total.get(key, 0.0) + sign * factor
    return {key: factor for key, factor in total.items() if factor != 0.0}


def _multiply(a: Terms, b: Terms) -> Terms:
    total: Terms = {}
    for p, f in a.items():
        for q, g in b.items():
            key = tuple(sorted((*p, *q), key=lambda factor: (factor[0], factor[1].name, factor[2:])))
            total[key] = total.get(key, 0.0) + f * g
    return total


def _root(terms: Terms | None, kind: str) -> Terms | None:
    """The square root of ``var + eps``, or its inverse."""
    if terms is None or len(terms) != 2 or () not in terms:
        return None
    ((variance, factor),) = [(key, f) for key, f in terms.items() if key != ()]
    eps = terms[()]
    if factor != 1.0 or len(variance) != 1 or variance[0][0] != "tensor" or not 0 < eps < math.inf:
        return None
    return {((kind, variance[0][1], eps),): 1.0}


def _inverted(terms: Terms | None) -> Terms | None:
    if terms is None or len(terms) != 1:
        return None
    ((key, factor),) = terms.items()
    if factor != 1.0 or len(key) != 1 or key[0][0] != "root":
        return None
    return {(("inverse", *key[0][1:]),): 1.0}


def _divide(a: Terms, b: Terms) -> Terms | None:
    inverse = _inverted(b)
    return None if inverse is None else _multiply(a, inverse)


_HANDLERS: dict[str, tuple[int, Callable[..., Terms | None]]] = {
    "add": (2, _add),
    "sub": (2, lambda a, b: _add(a, b, -1.0)),
    "mul": (2, _multiply),
    "neg": (1, lambda a: _multiply(a, {(): -1.0})),
    "truediv": (2, _divide),
    "div": (2, _divide),
    "addcmul": (3, lambda a, b, c: _add(a, _multiply(b, c))),
    "rsqrt": (1, lambda a: _root(a, "inverse")),
    "sqrt": (1, lambda a: _root(a, "root")),
    "pow": (2, lambda a: _root(a, "inverse")),
    "reciprocal": (1, _inverted),
}
