"""Ties lowered steps to the modules of one model, and notices when the model is no longer the one that was lowered."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from resfuse.lowering.steps import Lowered, ProgramStep
from resfuse.runtime import ops


class StructureChangedError(Exception):
    """A module that was lowered has been replaced."""


class BoundProgram:
    """A program step and where its parameters are."""

    def __init__(self, step: ProgramStep, model: nn.Module) -> None:
        self.step = step
        self._sources: list[tuple[dict[str, Any], str]] = []
        for path in step.parameters:
            module = model.get_submodule(path.module)
            tensors: dict[str, Any] = module._parameters if path.name in module._parameters else module._buffers
            self._sources.append((tensors, path.name))

    def parameters(self) -> list[torch.Tensor]:
        """The parameters as they are now."""
        return [tensors[name] for tensors, name in self._sources]


ProgramRunner = Callable[[BoundProgram, list[torch.Tensor]], list[torch.Tensor]]


class Binding:
    """Runs the steps of a lowered graph on one model."""

    def __init__(self, lowered: Lowered, model: nn.Module) -> None:
        self.lowered = lowered
        self.programs = [BoundProgram(step, model) for step in lowered.programs]
        self._placeholders = [node for node in lowered.graph.nodes if node.op == "placeholder"]
        self._attributes = [node for node in lowered.graph.nodes if node.op == "get_attr"]
        self._output = next(node for node in lowered.graph.nodes if node.op == "output")
        self._children: list[tuple[dict[str, Any], str, nn.Module]] = []
        self._eval_only: list[tuple[str, nn.Module]] = []
        self._watched: list[tuple[str, nn.Module]] = []
        self._watch(model)
        by_step = {bound.step: bound for bound in self.programs}
        self._steps = [by_step.get(step, step) if isinstance(step, ProgramStep) else step for step in lowered.steps]
        self._freed = self._last_uses()

    def _watch(self, model: nn.Module) -> None:
        paths: dict[str, None] = {}
        for bound in self.programs:
            for module in bound.step.modules:
                parts = module.split(".")
                for depth in range(1, len(parts) + 1):
                    paths[".".join(parts[:depth])] = None
        for path in paths:
            parent, _, name = path.rpartition(".")
            module = model.get_submodule(path)
            self._children.append((model.get_submodule(parent)._modules, name, module))
            self._watched.append((path, module))
            if isinstance(module, (_BatchNorm, _DropoutNd)):
                self._eval_only.append((path, module))

    def _last_uses(self) -> list[list[fx.Node]]:
        """For each step, the values that no later step reads."""
        last: dict[fx.Node, int] = {}
        for index, step in enumerate(self._steps):
            reads = step.step.inputs if isinstance(step, BoundProgram) else step.node.all_input_nodes
            last.update(dict.fromkeys(reads, index))
        freed: list[list[fx.Node]] = [[] for _ in self._steps]
        kept = set(self._output.all_input_nodes)
        for node, index in last.items():
            if node not in kept:
                freed[index].append(node)
        return freed

    def check_structure(self) -> None:
        """Raises StructureChangedError when a lowered module is no longer in its place."""
        for modules, name, module in self._children:
            if modules.get(name) is not module:
                raise StructureChangedError(name)

    def native_reason(self) -> str | None:
        """Why the fused modules must run natively in their present state, or None."""
        for path, module in self._eval_only:
            if module.training:
                return f"{path} is in train mode"
        for path, module in self._watched:
            if module._forward_hooks or module._forward_pre_hooks:
                return f"{path} has forward hooks, which must see its tensors"
        return None

    def run(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run_program: ProgramRunner | None = None,
    ) -> Any:
        """The model's result; ``run_program`` replaces the plain running of a program step."""
        env = self._bind(args, kwargs)
        for node in self._attributes:
            env[node] = operator.attrgetter(str(node.target))(model)
        for step, freed in zip(self._steps, self._freed, strict=True):
            if isinstance(step, BoundProgram):
                inputs = [env[node] for node in step.step.inputs]
                if run_program is None:
                    results = ops.program(inputs, step.parameters(), step.step.text)
                else:
                    results = run_program(step, inputs)
                env.update(zip(step.step.outputs, results, strict=True))
            else:
                env[step.node] = _run_native(step.node, model, env)
            for node in freed:
                del env[node]
        return fx.node.map_arg(self._output.args[0], env.__getitem__)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[fx.Node, Any]:
        if len(args) > len(self._placeholders):
            raise TypeError(f"forward: got {len(args)} positional arguments, want at most {len(self._placeholders)}")
        env: dict[fx.Node, Any] = dict(zip(self._placeholders, args, strict=False))
        rest = dict(kwargs)
        for node in self._placeholders[len(args) :]:
            if str(node.target) in rest:
                env[node] = rest.pop(str(node.target))
            elif node.args:
                env[node] = node.args[0]
            else:
                raise TypeError(f"forward: missing the argument {node.target!r}")
        if rest:
            raise TypeError(f"forward: got an unexpected argument {next(iter(rest))!r}")
        return env


def _run_native(node: fx.Node, model: nn.Module, env: dict[fx.Node, Any]) -> Any:
    args = fx.node.map_arg(node.args, env.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
