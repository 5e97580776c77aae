"""What code asked of sizes while it was traced: the graph holds for inputs of sizes that give the same answers."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

SIZE_FUNCTIONS = frozenset({
    operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
    operator.neg, operator.abs, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    operator.and_, operator.or_, operator.not_,
})  # fmt: skip
_METHODS = ("size", "dim", "numel", "ndimension")
_ATTRIBUTES = ("shape", "ndim")

Evaluate = Callable[[Sequence[Any]], Any]
Inside = Callable[[fx.Node], Evaluate | None]


@dataclasses.dataclass(frozen=True)
class Condition:
    """A question about the inputs' sizes and the answer that the code was given."""

    evaluate: Evaluate
    answer: bool

    def holds(self, inputs: Sequence[Any]) -> bool:
        """Whether a call's inputs give the same answer."""
        try:
            return bool(self.evaluate(inputs)) == self.answer
        except (TypeError, ValueError, IndexError, ZeroDivisionError, RuntimeError, AttributeError):
            return False  # the code itself will say so


class _Shape(tuple[int, ...]):
    """A shape that knows which of its lengths were looked at."""

    read: set[int]

    def __getitem__(self, key: Any) -> Any:
        places = range(len(self))[key]
        self.read.update(places if isinstance(places, range) else [places])
        return tuple.__getitem__(self, key)

    def _all(self) -> tuple[int, ...]:
        self.read.update(range(len(self)))
        return tuple(tuple.__iter__(self))

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __add__(self, other: Any) -> Any:
        return self._all() + tuple(other)

    def __eq__(self, other: object) -> bool:
        return self._all() == other

    def __ne__(self, other: object) -> bool:
        return self._all() != other

    def __lt__(self, other: Any) -> bool:
        return self._all() < tuple(other)

    def __le__(self, other: Any) -> bool:
        return self._all() <= tuple(other)

    def __gt__(self, other: Any) -> bool:
        return self._all() > tuple(other)

    def __ge__(self, other: Any) -> bool:
        return self._all() >= tuple(other)

    __hash__ = tuple.__hash__


class _Watched:
    """What a condition may ask of a tensor."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = _Shape(shape)
        self.shape.read = set()
        self.ndim = len(shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        return math.prod(self.shape)


def dimensions_asked(conditions: Sequence[Condition], inputs: Sequence[Any]) -> set[int]:
    """The dimensions of any of the inputs whose lengths the conditions depend on."""
    watched = [_Watched(x.shape) if isinstance(x, torch.Tensor) else x for x in inputs]
    for condition in conditions:
        condition.holds(watched)
    return {place for x in watched if isinstance(x, _Watched) for place in x.shape.read}


def question_about_sizes(node: fx.Node, inputs: Sequence[fx.Node], inside: Inside) -> Evaluate | None:
    """A node's value as a function of the sizes of the graph's inputs; None where it depends on more than these.

    ``inside`` finds the sizes of a value that is no input.
    """

    def of_tensor(source: Any, read: Callable[[Any], Any]) -> Evaluate | None:
        if not isinstance(source, fx.Node):
            return None
        if source in inputs:
            index = list(inputs).index(source)
            return lambda values: read(values[index])
        value = inside(source)
        return None if value is None else lambda values: read(value(values))

    if node.op == "call_function" and node.target is getattr:
        source, name = node.args
        return of_tensor(source, operator.attrgetter(str(name))) if name in _ATTRIBUTES else None
    if node.op == "call_method" and node.target in _METHODS and not node.kwargs:
        source, *rest = node.args
        if any(not isinstance(argument, int) for argument in rest):
            return None
        return of_tensor(source, lambda x: getattr(x, str(node.target))(*rest))
    if node.op != "call_function" or node.target not in SIZE_FUNCTIONS or node.kwargs:
        return None
    parts: list[Evaluate] = []
    for argument in node.args:
        part = question_about_sizes(argument, inputs, inside) if isinstance(argument, fx.Node) else _constant(argument)
        if part is None:
            return None
        parts.append(part)
    target: Any = node.target
    return lambda values: target(*[part(values) for part in parts])


def _constant(value: Any) -> Evaluate | None:
    plain = isinstance(value, (int, float, slice, str, type(None))) or (
        isinstance(value, tuple) and all(isinstance(item, (int, float)) for item in value)
    )
    return (lambda _: value) if plain else None
