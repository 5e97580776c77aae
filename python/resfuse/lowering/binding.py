"""Ties lowered steps to the modules of one model, and notices when the model is no longer the one that was lowered."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from resfuse import _core
from resfuse.lowering.op import overwrites
from resfuse.lowering.steps import Lowered, NodeParameter, NormMode, ParameterPath, ProgramStep, Step
from resfuse.runtime import ops
from resfuse.runtime.executor import executor_of
from resfuse.runtime.spec import AffineSpec, ConvSpec
from resfuse.training.batch_norm import CalledNorm, RunningNorm
from resfuse.training.split import Block, split

_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


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
    overwritten: str | None  # the value that it changes in place


def _overwrites(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    return overwrites(node) and bool(node.all_input_nodes)


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


class ModeChangedError(Exception):
    """A module on whose train mode the graph depends is in the other one."""


class BoundProgram:
    """A program step and where its parameters are: in modules, or among the arguments of the graph."""

    def __init__(self, step: ProgramStep, model: nn.Module) -> None:
        self.step = step
        self.text = step.text
        self.inputs = [node.name for node in step.inputs]
        self.outputs = [node.name for node in step.outputs]
        self.last_plan: _core.Plan | None = None  # of the last call as a whole
        self.aliases = [(node.name, other.name) for node, other in step.aliases]
        self._sources: list[tuple[dict[str, Any] | None, str]] = [_source(path, model) for path in step.parameters]
        places = [(tensors, name) for tensors, name in self._sources if tensors is not None]
        self._reader = _core.DictReader(places) if len(places) == len(self._sources) else None
        self._norms = [_norm(mode, model) for mode in step.norms]
        # Dynamo reads this table: the usual states are in it from the start.
        self._blocks: dict[tuple[bool, ...], tuple[Block, ...]] = {}
        for training in (False, True):
            self._split(tuple(norm is not None and training for norm in self._norms))

    def _split(self, batch_statistics: tuple[bool, ...]) -> tuple[Block, ...]:
        self._blocks[batch_statistics] = split(self.step.spec, batch_statistics)
        return self._blocks[batch_statistics]

    def blocks(self) -> tuple[Block, ...]:
        """The program in blocks that can be differentiated, for the batch norms' present modes."""
        own = tuple([norm is not None and norm.training for norm in self._norms])
        blocks = self._blocks.get(own)
        return self._split(own) if blocks is None else blocks

    def parameters(self, arguments: Mapping[str, Any] = _NO_ARGUMENTS) -> list[torch.Tensor]:
        """The parameters as they are now; ``arguments`` are the graph's, where parameters come with them."""
        if self._reader is None or torch.compiler.is_compiling():
            return [arguments[name] if tensors is None else tensors[name] for tensors, name in self._sources]
        return self._reader.values()

    def norms(self, parameters: Sequence[torch.Tensor]) -> list[RunningNorm | None]:
        """For each layer, the batch norm that may take the batch's statistics; ``parameters`` are the program's."""
        norms: list[RunningNorm | None] = []
        for norm, layer in zip(self._norms, self.step.spec.layers, strict=True):
            if isinstance(norm, NormMode):
                assert isinstance(layer, (ConvSpec, AffineSpec))
                assert layer.batch_norm is not None
                mean, variance = parameters[layer.batch_norm.running_mean], parameters[layer.batch_norm.running_var]
                norms.append(CalledNorm(mean, variance, norm.momentum))
            else:
                norms.append(norm)
        return norms

    def trains(self) -> bool:
        """Whether a batch norm takes its statistics from the batch."""
        return any([norm is not None and norm.training for norm in self._norms])

    def always_trains(self) -> bool:
        """Whether a batch norm does so in every mode."""
        return any([isinstance(norm, NormMode) and norm.training for norm in self._norms])

    def norm_modules(self) -> list[nn.BatchNorm2d]:
        """The batch norms whose modes decide that."""
        return [norm for norm in self._norms if isinstance(norm, nn.BatchNorm2d)]


def _source(parameter: ParameterPath | NodeParameter, model: nn.Module) -> tuple[dict[str, Any] | None, str]:
    if isinstance(parameter, NodeParameter):
        return None, parameter.name
    module = model.get_submodule(parameter.module)
    if parameter.name in module._parameters:
        return module._parameters, parameter.name
    return (module._buffers if parameter.name in module._buffers else module.__dict__), parameter.name


def _norm(mode: NormMode | None, model: nn.Module) -> nn.BatchNorm2d | NormMode | None:
    if mode is None or mode.module is None:
        return mode
    module = model.get_submodule(mode.module)
    assert isinstance(module, nn.BatchNorm2d)
    return module


ProgramRunner = Callable[[BoundProgram, list[torch.Tensor], list[torch.Tensor]], list[torch.Tensor]]


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
        self._watched: list[tuple[str, nn.Module]] = []
        self._watch(model)
        programs = iter(self.programs)
        self._steps: list[BoundProgram | _NativeCall] = []
        for step in lowered.steps:
            if isinstance(step, ProgramStep):
                self._steps.append(next(programs))
            else:
                node = step.node
                self._steps.append(
                    _NativeCall(
                        node.name,
                        node.op,
                        node.target,
                        _template(node.args),
                        _template(node.kwargs),
                        node.all_input_nodes[0].name if _overwrites(node, model) else None,
                    )
                )
        self._freed = self._last_uses()
        self._modes = [(model.get_submodule(path), mode) for path, mode in lowered.modes]
        self._facts = self._usual_facts()
        self._usual = _core.DictWatch(*self._facts)
        self._usually_trains = any([bound.always_trains() for bound in self.programs])

    def _watch(self, model: nn.Module) -> None:
        paths: dict[str, None] = {}
        for used in (*(path for bound in self.programs for path in bound.step.modules), *self.lowered.passed):
            parts = used.split(".")
            for depth in range(1, len(parts) + 1):
                paths[".".join(parts[:depth])] = None
        for path in paths:
            parent, _, name = path.rpartition(".")
            module = model.get_submodule(path)
            self._children.append((model.get_submodule(parent)._modules, name, module))
            self._watched.append((path, module))

    def _last_uses(self) -> list[list[str]]:
        """For each step, the values that no later step reads."""
        last: dict[str, int] = {}
        for index, step in enumerate(self.lowered.steps):
            last.update(dict.fromkeys(_reads(step), index))
        output = next(node for node in self.lowered.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            last.pop(node.name, None)
        freed: list[list[str]] = [[] for _ in self.lowered.steps]
        for name, index in last.items():
            freed[index].append(name)
        return freed

    def _usual_facts(self) -> tuple[list[tuple[dict[str, Any], str, Any]], list[dict[Any, Any]]]:
        """What holds in most calls: the modules are those that were lowered, in the modes that the graph depends on,
        without hooks and parametrizations, and no batch norm takes its statistics from the batch."""
        modules = [module for _, module in self._watched]
        modes = [*self._modes, *((norm, False) for bound in self.programs for norm in bound.norm_modules())]
        parents = [m._modules for m in modules if m._modules]
        leaves = [m._modules for m in modules if not m._modules]
        hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        held = [(vars(module), "training", mode) for module, mode in modes]
        return [*held, *self._children, *((parent, "parametrizations", None) for parent in parents)], [*leaves, *hooks]

    def _is_as_usual(self) -> bool:
        return not torch.compiler.is_compiling() and self._usual.holds()

    def check_structure(self) -> None:
        """Raises StructureChangedError or ModeChangedError where the graph is no longer the model's."""
        if self._is_as_usual():
            return
        for modules, name, module in self._children:
            if modules.get(name) is not module:
                raise StructureChangedError(name)
        for module, mode in self._modes:
            if module.training is not mode:
                raise ModeChangedError

    def native_reason(self) -> str | None:
        """Why the fused modules must run natively in their present state, or None."""
        if self._is_as_usual():
            return None
        for path, module in self._watched:
            if module._forward_hooks or module._forward_pre_hooks:
                return f"{path} has forward hooks, which must see its tensors"
            if "parametrizations" in module._modules:
                return f"{path} has parametrized weights"
        return None

    def trains(self) -> bool:
        """Whether a batch norm takes its statistics from the batch."""
        if self._is_as_usual():
            return self._usually_trains
        return any([bound.trains() for bound in self.programs])

    def not_as_programs(self) -> str | None:
        """Why a call without gradients would not run whole programs in the modules' present state, or None."""
        return "is in train mode" if self.trains() else self.native_reason()

    def run(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run_program: ProgramRunner | None = None,
    ) -> Any:
        """The model's result; ``run_program`` replaces the plain running of a program step."""
        env = self._bind(args, kwargs)
        made: set[str | None] = set()  # by programs
        for name, target in self._attributes:
            env[name] = operator.attrgetter(target)(model)
        for step, freed in zip(self._steps, self._freed, strict=True):
            if isinstance(step, _NativeCall):
                if step.overwritten in made and run_program is not None:
                    _own(env, step.overwritten)
                env[step.name] = _run_native(step, model, env)
            else:
                inputs = [env[name] for name in step.inputs]
                if not all([isinstance(x, torch.Tensor) for x in inputs]):
                    raise ValueError(f"{step.inputs}: want tensors, got {[type(x).__name__ for x in inputs]}")
                parameters = step.parameters(env)
                if run_program is None:
                    results = ops.run_program(inputs, parameters, step.text)
                    if not torch.compiler.is_compiling():
                        step.last_plan = executor_of(step.text).last_plan
                else:
                    results = run_program(step, inputs, parameters)
                made.update(step.outputs)
                for name, result in zip(step.outputs, results, strict=True):
                    env[name] = result
                for name, other in step.aliases:
                    env[name] = env[other]
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


def _own(env: dict[str, Any], name: str | None) -> None:
    """Before a value is overwritten, which a program's backward may need as it is: all its names mean a copy then."""
    value = env[str(name)]
    copied = value.clone()
    for other, same in env.items():
        if same is value:
            env[other] = copied


def _reads(step: Step) -> list[str]:
    """Names of the values that a step needs."""
    if not isinstance(step, ProgramStep):
        return [node.name for node in step.node.all_input_nodes]
    arguments = [p.name for p in step.parameters if isinstance(p, NodeParameter)]
    return [*(node.name for node in step.inputs), *arguments]


def _run_native(call: _NativeCall, model: nn.Module, env: dict[str, Any]) -> Any:
    args, kwargs = _fill(call.args, env), _fill(call.kwargs, env)
    if call.op == "call_module":
        return model.get_submodule(str(call.target))(*args, **kwargs)
    if call.op == "call_method":
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)
    return call.target(*args, **kwargs)
