"""What one node of a graph is, in the vocabulary of programs, or why it has no place there."""

from __future__ import annotations

from torch import fx, nn

from resfuse.lowering.functions import describe_call
from resfuse.lowering.modules import describe_module, is_random
from resfuse.lowering.op import Op, Unsupported

# Modules without a fused form whose results are tensors of their own.
_OWNERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.Upsample, nn.MaxPool2d, nn.AvgPool2d)


def describe(node: fx.Node, model: nn.Module) -> Op | Unsupported:
    """A call node as an `Op`, or why it stays native."""
    if "native" in node.meta:
        return Unsupported(f"its code {node.meta['native']}")
    if node.op == "call_module":
        op = describe_module(node, model.get_submodule(str(node.target)))
    elif node.op in ("call_function", "call_method"):
        op = describe_call(node, model)
    else:
        return Unsupported(f"{node.op} node")
    if isinstance(op, Op) and op.inplace and not _owns(op.inputs[0], model):
        return Unsupported("changes in place what others read too")
    return op


def _owns(node: fx.Node, model: nn.Module) -> bool:
    """Whether a value's memory is read through this node's one user alone."""
    if len(node.users) > 1 or node.op in ("placeholder", "get_attr"):
        return False
    op = describe(node, model)
    if isinstance(op, Unsupported):  # which may return a view of what it was given, or that itself
        if node.op != "call_module" or "native" in node.meta:
            return False
        module = model.get_submodule(str(node.target))
        source = node.args[0] if is_random(module) else None  # it returns what it is given, or a tensor of its own
        return type(module) in _OWNERS or (isinstance(source, fx.Node) and _owns(source, model))
    # These are views of what they read.
    return op.kind not in ("flatten", "slice", "permute") or _owns(op.inputs[0], model)
