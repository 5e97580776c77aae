"""The arguments of a call: which are tensors, and what the others are.

A graph holds for calls of one pattern. Tensors are its inputs; numbers, strings, None and the like are part of the
pattern, since code may branch on them; objects of other kinds are inputs whose class alone is known.
"""

from __future__ import annotations

import enum
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Key = tuple[Hashable, ...]

PLAIN_TYPES = (
    type(None), bool, int, float, complex, str, bytes, type(Ellipsis),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
ONE_TENSOR: Key = (("tensor", 0),)


def is_plain(value: object) -> bool:
    """Whether a value is one of those that never change."""
    return type(value) in PLAIN_TYPES or isinstance(value, enum.Enum)


def _is_namedtuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def is_sequence(value: object) -> bool:
    """Whether a value is a tuple or list of a kind that can be made again from its items."""
    return type(value) in (tuple, list, torch.Size) or _is_namedtuple(type(value))


def is_mapping(value: object) -> bool:
    """Whether a value is a dictionary of a kind that can be made again from its items."""
    return type(value) in (dict, OrderedDict)


def rebuilt(like: Any, items: Sequence[Any]) -> Any:
    """A sequence of the kind of ``like``."""
    if _is_namedtuple(type(like)):
        return type(like)(*items)
    return type(like)(items)


def read_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Key, list[Any]]:
    """A call's pattern, which can be compared and hashed, and its inputs in order.

    The same tensor passed twice is one input.
    """
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        return ONE_TENSOR, [args[0]]
    values: list[Any] = []
    key = [_key(value, values) for value in args]
    key += [(name, _key(value, values)) for name, value in kwargs.items()]
    return tuple(key), values


def _key(value: Any, values: list[Any]) -> Hashable:
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return "tensor", _place(value, values)
    if kind is float:
        return kind, value.hex()  # NaN is not equal to itself, and 0.0 is equal to -0.0
    if is_plain(value):
        return kind, value
    if is_sequence(value):
        return (kind, *(_key(item, values) for item in value))
    if is_mapping(value) and all(is_plain(name) for name in value):
        return (kind, *((name, _key(item, values)) for name, item in value.items()))
    if kind is slice:
        return (kind, *(_key(item, values) for item in (value.start, value.stop, value.step)))
    return kind, _place(value, values)


def _place(value: Any, values: list[Any]) -> int:
    for index, other in enumerate(values):
        if other is value:
            return index
    values.append(value)
    return len(values) - 1


def replaced(value: Any, values: list[Any], replacements: Sequence[Any]) -> Any:
    """An argument with its inputs replaced; ``values`` are those that `read_arguments` found."""
    if is_plain(value):
        return value
    if is_sequence(value):
        return rebuilt(value, [replaced(item, values, replacements) for item in value])
    if is_mapping(value) and all(is_plain(name) for name in value):
        return type(value)((name, replaced(item, values, replacements)) for name, item in value.items())
    if type(value) is slice:
        return slice(*(replaced(item, values, replacements) for item in (value.start, value.stop, value.step)))
    return replacements[_place(value, values)]


def guessed_arguments(forward: Callable[..., Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the usual call of a forward: a tensor wherever one must be given, nothing else."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in inspect.signature(forward).parameters.values():
        if parameter.default is not parameter.empty:
            continue
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if positional or (parameter.kind is parameter.VAR_POSITIONAL and not args):
            args.append(torch.empty(0))
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = torch.empty(0)
    return tuple(args), kwargs


def plain_forward(model: nn.Module) -> Callable[..., Any]:
    """A module's own forward, below what resfuse put over it."""
    forward: Callable[..., Any] = getattr(model, "native_forward", None) or model.forward
    return forward
