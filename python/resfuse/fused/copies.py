"""Module trees over the same parameters and buffers: fused ones, and plain ones of fused ones."""

from __future__ import annotations

import types
from collections.abc import Callable

from torch import nn


def shallow_copy(module: nn.Module, class_of: Callable[[nn.Module], type[nn.Module]] = type) -> nn.Module:
    """A module tree of its own over the same parameters and buffers."""
    copies: dict[int, nn.Module] = {}
    copied = _copy(module, class_of, copies)
    for made in copies.values():
        for name, value in vars(made).items():
            # A forward that was patched on an instance belongs to the copy of that instance.
            if isinstance(value, types.MethodType) and id(value.__self__) in copies:
                made.__dict__[name] = types.MethodType(value.__func__, copies[id(value.__self__)])
    return copied


def _copy(
    module: nn.Module, class_of: Callable[[nn.Module], type[nn.Module]], copies: dict[int, nn.Module]
) -> nn.Module:
    if id(module) in copies:
        return copies[id(module)]
    kind = class_of(module)
    copy: nn.Module = object.__new__(kind)  # GraphModule.__new__ would make another class
    copies[id(module)] = copy
    state = module.__getstate__() if hasattr(module, "native_forward") else vars(module)
    for name, value in state.items():
        # Registries (parameters, buffers, hooks, modules) are the copy's own; what they hold is shared.
        copy.__dict__[name] = value.copy() if name.startswith("_") and isinstance(value, (dict, set)) else value
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else _copy(child, class_of, copies)
    return copy


def plain_class(module: nn.Module) -> type[nn.Module]:
    """A module's class without what resfuse mixed into it."""
    plain: type[nn.Module] = vars(type(module)).get("_resfuse_plain", type(module))
    return plain


def plain_copy(module: nn.Module) -> nn.Module:
    """The plain model that a fused one was made from, over the same parameters and buffers."""
    copy = shallow_copy(module, plain_class)
    for part in copy.modules():
        for name in ("_resfuse_algorithm", "_resfuse_dtype", "_resfuse_ranges"):
            part.__dict__.pop(name, None)
    return copy
