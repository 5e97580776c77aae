"""Ties lowered steps to the modules of one model, and notices when the model is no longer the one that was lowered."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from resfuse.lowering.steps import Lowered, ProgramStep
from resfuse.runtime import ops
from resfuse.runtime.spec import ConvSpec, LayerSpec
from resfuse.training.split import Block, split


@dataclasses.dataclass(frozen=True)
class _Value:
    """Stands in an argument template for a value computed earlier."""

    name: str


@dataclasses.dataclass(frozen=True)
class _NativeCall:
    """A native node without its graph: Dynamo can trace plain data, but not fx.Node."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any


def _template(arguments: Any) -> Any:
    return fx.node.map_arg(arguments, lambda node: _Value(node.name))  # type: ignore[arg-type, return-value]


def _fill(template: Any, env: dict[str, Any]) -> Any:
    if isinstance(template, _Value):
        return env[template.name]
    if isinstance(template, (tuple, list)):
        return type(template)([_fill(item, env) for item in template])
    if isinstance(template, dict):
        return {key: _fill(item, env) for key, item in template.items()}
    if isinstance(template, slice):
        return slice(_fill(template.start, env), _fill(template.stop, env), _fill(template.step, env))
    return template


class StructureChangedError(Exception):
    """A module that was lowered has been replaced."""


def _batch_norm_of(layer: LayerSpec, step: ProgramStep, model: nn.Module) -> nn.BatchNorm2d | None:
    if not isinstance(layer, ConvSpec) or layer.batch_norm is None:
        return None
    module = model.get_submodule(step.parameters[layer.batch_norm.running_mean].module)
    assert isinstance(module, nn.BatchNorm2d)
    return module


class BoundProgram:
    """A program step and where its parameters are."""

    def __init__(self, step: ProgramStep, model: nn.Module) -> None:
        self.step = step
        self.text = step.text
        self.inputs = [node.name for node in step.inputs]
        self.outputs = [node.name for node in step.outputs]
        self._sources: list[tuple[dict[str, Any], str]] = []
        for path in step.parameters:
            module = model.get_submodule(path.module)
            tensors: dict[str, Any] = module._parameters if path.name in module._parameters else module._buffers
            self._sources.append((tensors, path.name))
        self.norms = [_batch_norm_of(layer, step, model) for layer in step.spec.layers]
        # Dynamo reads this table: the usual states are in it from the start.
        self._blocks: dict[tuple[bool, ...], tuple[Block, ...]] = {}
        for training in (False, True):
            self._split(tuple(norm is not None and training for norm in self.norms))

    def _split(self, batch_statistics: tuple[bool, ...]) -> tuple[Block, ...]:
        self._blocks[batch_statistics] = split(self.step.spec, batch_statistics)
        return self._blocks[batch_statistics]

    def blocks(self) -> tuple[Block, ...]:
        """The program in blocks that can be differentiated, for the batch norms' present modes."""
        own = tuple([norm is not None and norm.training for norm in self.norms])
        blocks = self._blocks.get(own)
        return self._split(own) if blocks is None else blocks

    def parameters(self) -> list[torch.Tensor]:
        """The parameters as they are now."""
        return [tensors[name] for tensors, name in self._sources]


ProgramRunner = Callable[[BoundProgram, list[torch.Tensor]], list[torch.Tensor]]


class Binding:
    """Runs the steps of a lowered graph on one model."""

    def __init__(self, lowered: Lowered, model: nn.Module) -> None:
        self.lowered = lowered
        self.programs = [BoundProgram(step, model) for step in lowered.programs]
        nodes = list(lowered.graph.nodes)
        self._placeholders = [(n.name, str(n.target), bool(n.args), *n.args) for n in nodes if n.op == "placeholder"]
        self._attributes = [(n.name, str(n.target)) for n in nodes if n.op == "get_attr"]
        self._output = _template(next(n for n in nodes if n.op == "output").args[0])
        self._children: list[tuple[dict[str, Any], str, nn.Module]] = []
        self._dropouts: list[tuple[str, _DropoutNd]] = []
        self._watched: list[tuple[str, nn.Module]] = []
        self._watch(model)
        programs = iter(self.programs)
        self._steps: list[BoundProgram | _NativeCall] = []
        for step in lowered.steps:
            if isinstance(step, ProgramStep):
                self._steps.append(next(programs))
            else:
                node = step.node
                call = _NativeCall(node.name, node.op, node.target, _template(node.args), _template(node.kwargs))
                self._steps.append(call)
        self._freed = self._last_uses()

    def _watch(self, model: nn.Module) -> None:
        paths: dict[str, None] = {}
        for bound in self.programs:
            for used in bound.step.modules:
                parts = used.split(".")
                for depth in range(1, len(parts) + 1):
                    paths[".".join(parts[:depth])] = None
        for path in paths:
            parent, _, name = path.rpartition(".")
            module = model.get_submodule(path)
            self._children.append((model.get_submodule(parent)._modules, name, module))
            self._watched.append((path, module))
            if isinstance(module, _DropoutNd):
                self._dropouts.append((path, module))

    def _last_uses(self) -> list[list[str]]:
        """For each step, the values that no later step reads."""
        last: dict[str, int] = {}
        for index, step in enumerate(self.lowered.steps):
            reads = step.inputs if isinstance(step, ProgramStep) else step.node.all_input_nodes
            last.update({node.name: index for node in reads})
        output = next(node for node in self.lowered.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            last.pop(node.name, None)
        freed: list[list[str]] = [[] for _ in self.lowered.steps]
        for name, index in last.items():
            freed[index].append(name)
        return freed

    def check_structure(self) -> None:
        """Raises StructureChangedError when a lowered module is no longer in its place."""
        for modules, name, module in self._children:
            if modules.get(name) is not module:
                raise StructureChangedError(name)

    def native_reason(self) -> str | None:
        """Why the fused modules must run natively in their present state, or None."""
        for path, dropout in self._dropouts:
            if dropout.training and dropout.p > 0:
                return f"{path} drops at random in train mode"
        for path, module in self._watched:
            if module._forward_hooks or module._forward_pre_hooks:
                return f"{path} has forward hooks, which must see its tensors"
            if "parametrizations" in module._modules:
                return f"{path} has parametrized weights"
        return None

    def trains(self) -> bool:
        """Whether a batch norm takes its statistics from the batch."""
        return any([norm is not None and norm.training for bound in self.programs for norm in bound.norms])

    def run(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run_program: ProgramRunner | None = None,
    ) -> Any:
        """The model's result; ``run_program`` replaces the plain running of a program step."""
        env = self._bind(args, kwargs)
        for name, target in self._attributes:
            env[name] = operator.attrgetter(target)(model)
        for step, freed in zip(self._steps, self._freed, strict=True):
            if isinstance(step, _NativeCall):
                env[step.name] = _run_native(step, model, env)
            else:
                inputs = [env[name] for name in step.inputs]
                if run_program is None:
                    results = ops.run_program(inputs, step.parameters(), step.text)
                else:
                    results = run_program(step, inputs)
                for name, result in zip(step.outputs, results, strict=True):
                    env[name] = result
            for name in freed:
                del env[name]
        return _fill(self._output, env)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._placeholders):
            raise TypeError(f"forward: got {len(args)} positional arguments, want at most {len(self._placeholders)}")
        env: dict[str, Any] = {}
        rest = dict(kwargs)
        for index, (name, target, has_default, *default) in enumerate(self._placeholders):
            if index < len(args):
                env[name] = args[index]
            elif target in rest:
                env[name] = rest.pop(target)
            elif has_default:
                env[name] = default[0]
            else:
                raise TypeError(f"forward: missing the argument {target!r}")
        if rest:
            raise TypeError(f"forward: got an unexpected argument {next(iter(rest))!r}")
        return env


def _run_native(call: _NativeCall, model: nn.Module, env: dict[str, Any]) -> Any:
    args, kwargs = _fill(call.args, env), _fill(call.kwargs, env)
    if call.op == "call_module":
        return model.get_submodule(str(call.target))(*args, **kwargs)
    if call.op == "call_method":
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)
    return call.target(*args, **kwargs)
