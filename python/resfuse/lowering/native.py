"""Nodes of a graph that run as they did: one by one, on torch."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx, nn

from resfuse.capture.arguments import is_mapping, is_sequence, rebuilt
from resfuse.capture.tracer import set_attribute
from resfuse.engine import pooling
from resfuse.engine.global_avg_pool import global_avg_pool2d
from resfuse.lowering.describe import describe
from resfuse.lowering.layouts import is_blind
from resfuse.lowering.op import Op, overwrites


@dataclasses.dataclass(frozen=True)
class Value:
    """Stands in an argument template for a value computed earlier."""

    name: str


@dataclasses.dataclass(frozen=True)
class NativeCall:
    """A node without its graph: Dynamo can trace plain data, but not fx.Node."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    inputs: tuple[str, ...]
    overwritten: str | None  # the value that it changes in place
    blind: bool  # see `resfuse.lowering.layouts`
    pools: bool  # a global average pool, which has a kernel of its own
    keepdim: bool = True


def native_call(node: fx.Node, model: nn.Module) -> NativeCall:
    """A node as a call."""
    op = describe(node, model)
    pool = op if isinstance(op, Op) and op.kind == "global_avg_pool" else None
    return NativeCall(
        node.name,
        node.op,
        node.target,
        template(node.args),
        template(node.kwargs),
        tuple(source.name for source in node.all_input_nodes),
        node.all_input_nodes[0].name if _overwrites(node, model) else None,
        is_blind(node, model),
        pool is not None and node.op == "call_module",
        pool is None or pool.keepdim,
    )


def _overwrites(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    return overwrites(node) and bool(node.all_input_nodes)


def template(arguments: Any) -> Any:
    """Arguments with values in the place of nodes."""
    return fx.node.map_arg(arguments, lambda node: Value(node.name))  # type: ignore[arg-type, return-value]


def fill(template: Any, env: dict[str, Any]) -> Any:
    """The inverse of `template`."""
    if isinstance(template, Value):
        return env[template.name]
    if isinstance(template, (tuple, list)):
        return rebuilt(template, [fill(item, env) for item in template]) if is_sequence(template) else (
            type(template)([fill(item, env) for item in template])
        )  # fmt: skip
    if isinstance(template, dict):
        filled = {key: fill(item, env) for key, item in template.items()}
        return type(template)(filled) if is_mapping(template) else filled
    if isinstance(template, slice):
        return slice(fill(template.start, env), fill(template.stop, env), fill(template.step, env))
    return template


def run_native(call: NativeCall, model: nn.Module, env: dict[str, Any]) -> Any:
    """The value of a node."""
    args, kwargs = fill(call.args, env), fill(call.kwargs, env)
    if call.op == "call_module":
        if call.pools and not torch.compiler.is_compiling() and pooling.replaces_torch(args[0]):
            return global_avg_pool2d(args[0], call.keepdim)
        return model.get_submodule(str(call.target))(*args, **kwargs)
    if call.op == "call_method":
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)
    if call.op == "get_attr":
        return operator.attrgetter(str(call.target))(model)
    if call.target is set_attribute:
        path, name, value = args
        return setattr(model.get_submodule(path), name, value)
    return call.target(*args, **kwargs)
