"""Ties lowered steps to the modules of one model and runs them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from resfuse import _core
from resfuse.capture.arguments import is_mapping, is_sequence, rebuilt
from resfuse.capture.tracer import Output
from resfuse.engine import ops
from resfuse.engine.executor import DTYPES, executor_of
from resfuse.engine.spec import AffineSpec, ConvSpec, OutputSpec, ProgramSpec, reads
from resfuse.engine.weights import require_plain
from resfuse.lowering.computed_weights import ComputedWeights
from resfuse.lowering.layouts import contiguous_outputs, is_blind, made_contiguous, with_plain_gradient
from resfuse.lowering.native import NativeCall, fill, native_call, run_native, template
from resfuse.lowering.ranges import Ranges, int8_spec, mean_buffers
from resfuse.lowering.steps import Lowered, NodeParameter, NormMode, ParameterPath, ProgramStep, Step
from resfuse.training.batch_norm import CalledNorm, RunningNorm
from resfuse.training.split import Block, split

_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
_MOST_LAYOUTS = 64


class RefusedError(ValueError):
    """A program cannot compute these inputs: its nodes run one by one."""


class BoundProgram:
    """A program step and where its parameters are: in modules, or among the arguments of the graph."""

    def __init__(self, step: ProgramStep, model: nn.Module, ranges: Ranges | None = None) -> None:
        self.step = step
        self.text = step.text
        self.has_bytes = step.spec.has_bytes  # of the graph's own
        self._other_types = tuple(step.spec.other_types)
        self.inputs = [node.name for node in step.inputs]
        self.outputs = [node.name for node in step.outputs]
        self.last_plan: _core.Plan | None = None  # of the last call as a whole
        # Names of its buffers, and its form that computes with bytes.
        self.names = [*self.inputs, *(node.name for node in step.nodes)]
        self.ranges: Ranges | None = None
        self.int8: ProgramSpec | None = None
        self.int8_text: str | None = None
        self.means: list[torch.Tensor] = []
        if ranges is not None:
            self.quantize(ranges)
        self.aliases = [(node.name, other.name) for node, other in step.aliases]
        self._sources: list[tuple[dict[str, Any] | None, str]] = [_source(path, model) for path in step.parameters]
        places = [(tensors, name) for tensors, name in self._sources if tensors is not None]
        self._reader = _core.DictReader(places) if len(places) == len(self._sources) else None
        self._norms = [_norm(mode, model) for mode in step.norms]
        # The nodes themselves, for inputs that the program refuses, and those that nothing else reads.
        self.calls = [native_call(node, model) for node in step.all_nodes]
        kept = {*self.outputs, *(name for name, _ in self.aliases)}
        self.inner = [call.name for call in self.calls if call.name not in kept]
        self.handed_out = [i for i, node in enumerate(step.outputs) if _is_handed_out(node, step, model)]
        self.returns_feature_maps = any(output.rank == 4 for output in step.spec.outputs)
        self._layouts: dict[tuple[Any, ...], list[int] | None] = {}
        # For each input, whether all that read it are convolutions.
        others = [layer.input for layer in step.spec.layers if not isinstance(layer, ConvSpec)]
        others += [b for layer in step.spec.layers for b in reads(layer)[1:]]
        self._feeds_convolutions = [i not in others for i in range(len(step.inputs))]
        self._scales_channels = any(getattr(layer, "channel_scale", None) is not None for layer in step.spec.layers)
        # Dynamo reads this table: the usual states are in it from the start.
        self._blocks: dict[tuple[bool, ...], tuple[Block, ...]] = {}
        for training in (False, True):
            self._split(tuple(norm is not None and training for norm in self._norms))

    def quantize(self, ranges: Ranges) -> None:
        """Whole programs compute with bytes from now on, where there are ranges for it."""
        self.ranges = ranges
        self.int8 = int8_spec(self.step.spec, self.names, ranges)
        self.int8_text = None if self.int8 is None else self.int8.to_text()
        self.means = self.means_of(ranges)

    def means_of(self, ranges: Ranges) -> list[torch.Tensor]:
        """What stands behind the other parameters of the program of bytes that these ranges make."""
        buffers = mean_buffers(self.step.spec, self.names, ranges)
        return [ranges.mean_tensors[self.names[buffer]] for buffer in buffers]

    def with_outputs(self, outputs: Sequence[OutputSpec]) -> ProgramSpec:
        """The program that runs as a whole, returning other buffers as real numbers."""
        spec = self.step.spec.with_outputs(outputs)
        return spec if self.ranges is None else int8_spec(spec, self.names, self.ranges) or spec

    def whole(
        self, inputs: Sequence[torch.Tensor], parameters: list[torch.Tensor], dtype: torch.dtype | None
    ) -> tuple[str, list[torch.Tensor]]:
        """The program to run as a whole and its parameters: of bytes where it was quantised and all is float32."""
        if self.int8_text is None or dtype not in (None, torch.float32):
            return self.text, parameters
        plain = all([x.dtype is torch.float32 for x in (*inputs, *parameters)])
        return (self.int8_text, [*parameters, *self.means]) if plain else (self.text, parameters)

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

    def plain_outputs(
        self, inputs: Sequence[torch.Tensor], contiguous: Sequence[bool], parameters: Sequence[torch.Tensor]
    ) -> list[int]:
        """The outputs that are contiguous in the plain model; raises as `contiguous_outputs` does."""
        if self.returns_feature_maps and all([x.dim() == 4 for x in inputs]):
            return self.contiguous_outputs(inputs, contiguous, parameters)
        return []

    def contiguous_outputs(
        self, inputs: Sequence[torch.Tensor], contiguous: Sequence[bool], parameters: Sequence[torch.Tensor]
    ) -> list[int]:
        """`resfuse.lowering.layouts.contiguous_outputs` of this program; remembers what it found.

        Raises:
            RefusedError: the plain model would return other strides than those of a dense memory format.
        """
        spec = self.step.spec
        if torch.compiler.is_compiling():
            found = contiguous_outputs(spec, inputs, contiguous, parameters)
        else:
            key = (tuple(contiguous), *[(x.shape, x.stride()) for x in inputs], *map(torch.Tensor.stride, parameters))
            if key not in self._layouts:
                if len(self._layouts) >= _MOST_LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = contiguous_outputs(spec, inputs, contiguous, parameters)
            found = self._layouts[key]
        if found is None:
            raise RefusedError("elementwise layers keep an input's strides, which are in no dense memory format")
        return found

    def refusal(
        self, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], autocast: torch.dtype | None
    ) -> str | None:
        """Why it cannot compute these inputs with these parameters as torch does, or None. (No exception: Dynamo.)"""
        if autocast is None:
            if parameters and parameters[0].dtype is not inputs[0].dtype:
                return f"inputs are of {inputs[0].dtype}, parameters of {parameters[0].dtype}"
            if torch.compiler.is_compiling():  # else weights are looked at when they are packed
                real = [p for i, p in enumerate(parameters) if i not in self._other_types]
                if not all([p.dtype is real[0].dtype for p in real]):
                    return "its parameters are of several types"
            return None
        if autocast not in DTYPES or not all([p.dtype is torch.float32 for p in parameters]):
            return f"autocast to {autocast} of parameters that are not float32"
        if self._scales_channels:
            return "under autocast a feature map times a parameter is float32"
        for x, feeds_convolutions in zip(inputs, self._feeds_convolutions, strict=True):
            # Convolutions cast what they read; others would compute in float32.
            if x.dtype is not autocast and not (feeds_convolutions and x.dtype is torch.float32):
                return "under autocast a layer that is no convolution reads float32"
        return None

    @property
    def reads_own_parameters(self) -> bool:
        """Whether all its parameters are the model's own."""
        return self._reader is not None

    def own_parameters(self) -> list[torch.Tensor]:
        """Those that are the model's own."""
        if self._reader is not None:
            return self.parameters()
        return [tensors[name] for tensors, name in self._sources if tensors is not None]

    def require_parameters(self) -> None:
        """Raises ValueError where the core cannot read the model's own parameters, KeyError where one is missing."""
        parameters = self.own_parameters()
        half = bool(parameters) and parameters[0].dtype in DTYPES
        require_plain(parameters, parameters[0].dtype if half else torch.float32, self._other_types)

    def trains(self) -> bool:
        """Whether a batch norm takes its statistics from the batch."""
        return any([norm is not None and norm.training for norm in self._norms])

    def always_trains(self) -> bool:
        """Whether a batch norm does so in every mode."""
        return any([isinstance(norm, NormMode) and norm.training for norm in self._norms])

    def norm_modules(self) -> list[nn.BatchNorm2d]:
        """The batch norms whose modes decide that."""
        return [norm for norm in self._norms if isinstance(norm, nn.BatchNorm2d)]


def _is_handed_out(output: fx.Node, step: ProgramStep, model: nn.Module) -> bool:
    """Whether all that reads an output of a program, outside it, can tell memory formats: users, and most nodes."""
    own = set(step.all_nodes)
    nodes = [output, *(node for node, other in step.aliases if other is output)]
    readers = {reader for node in nodes for reader in node.users if reader not in own and reader.target is not getattr}
    return not any(reader.op != "output" and is_blind(reader, model) for reader in readers)


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

# How programs run instead, where somebody watches calls that would run them as a whole.
watcher: ContextVar[ProgramRunner | None] = ContextVar("watcher", default=None)


class Binding:
    """Runs the steps of a lowered graph on one model."""

    def __init__(self, lowered: Lowered, model: nn.Module, ranges: Ranges | None = None) -> None:
        self.lowered = lowered
        self.programs = [BoundProgram(step, model, ranges) for step in lowered.programs]
        nodes = list(lowered.graph.nodes)
        self._placeholders = [n.name for n in nodes if n.op == "placeholder"]
        self._attributes = [(n.name, str(n.target)) for n in nodes if n.op == "get_attr"]
        output = next(n for n in nodes if n.op == "output")
        self._outputs = template(output.args[0])
        self._result = None if lowered.trace is None else lowered.trace.template
        self._computed = ComputedWeights(lowered.computed_weights, model) if lowered.computed_weights else None
        programs = iter(self.programs)
        self._steps: list[BoundProgram | NativeCall] = [
            next(programs) if isinstance(step, ProgramStep) else native_call(step.node, model) for step in lowered.steps
        ]
        self._freed = self._last_uses(output)
        self.only_program = self._only_program(output)
        # Values whose gradients others may see, in the memory format that these have: those of native nodes, and what
        # nodes that cannot tell formats make of such, as they hand the gradient's format on.
        self._seen = {*self._placeholders}
        for step in self._steps:
            if isinstance(step, NativeCall) and (not step.blind or not self._seen.isdisjoint(step.inputs)):
                self._seen.add(step.name)
        self.refusal: str | None = None  # of the last call: why a program could not compute its inputs

    def _only_program(self, output: fx.Node) -> BoundProgram | None:
        """The program that computes all results from the model's own parameters, if there is one."""
        bound = self._steps[0] if len(self._steps) == 1 else None
        if not isinstance(bound, BoundProgram) or self._computed is not None or not bound.reads_own_parameters:
            return None
        made = {*bound.outputs, *(name for name, _ in bound.aliases)}
        return bound if made.issuperset(node.name for node in output.all_input_nodes) else None

    @property
    def pools(self) -> bool:
        """Whether a global average pool is among what runs natively or may."""
        calls = [c for step in self._steps for c in (step.calls if isinstance(step, BoundProgram) else [step])]
        return any(call.pools for call in calls)

    def _last_uses(self, output: fx.Node) -> list[list[str]]:
        """For each step, the values that no later step reads; a program keeps its own to itself."""
        inner = {name for bound in self.programs for name in bound.inner}
        last: dict[str, int] = {}
        for index, step in enumerate(self.lowered.steps):
            last.update(dict.fromkeys(_reads(step), index))
        for node in output.all_input_nodes:
            last.pop(node.name, None)
        freed: list[list[str]] = [[] for _ in self.lowered.steps]
        for name, index in last.items():
            if name not in inner:
                freed[index].append(name)
        return freed

    def parameters(self, model: nn.Module) -> list[torch.Tensor]:
        """What programs compute with, and what their weights are computed from."""
        found = [p for bound in self.programs for p in bound.own_parameters()]
        return found if self._computed is None else [*found, *self._computed.sources(model).values()]

    def computed_weights(self, model: nn.Module, learns: bool = False) -> dict[str, Any]:
        """The weights that the graph's nodes compute, by the names of these; ``learns``: differentiable ones."""
        return {} if self._computed is None else self._computed.values(model, learns)

    def reason(self, model: nn.Module) -> str | None:
        """Why the graph is not that of the model's present parameters, or None."""
        return None if self._computed is None else self._computed.reason(model)

    def trains(self) -> bool:
        """Whether a batch norm takes its statistics from the batch."""
        return any([bound.trains() for bound in self.programs])

    def norm_modules(self) -> list[nn.BatchNorm2d]:
        """The batch norms on whose modes that depends."""
        return [norm for bound in self.programs for norm in bound.norm_modules()]

    @property
    def always_trains(self) -> bool:
        """Whether a batch norm does so in every mode."""
        return any(bound.always_trains() for bound in self.programs)

    def run(
        self,
        model: nn.Module,
        inputs: Sequence[Any],
        run_program: ProgramRunner | None = None,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
    ) -> Any:
        """The model's result for the inputs of a call.

        ``run_program`` replaces the plain running of a program step; else programs compute in ``dtype``, or in their
        inputs' type. Under ``autocast`` to a type they compute in that and return it, as torch's convolutions do.
        """
        env: dict[str, Any] = dict(zip(self._placeholders, inputs, strict=True))
        made: set[str | None] = set()  # by programs
        # Values in channels_last memory that would be contiguous in the plain model.
        contiguous: set[str] = set()
        self.refusal = None
        for name, target in self._attributes:
            env[name] = operator.attrgetter(target)(model)
        env.update(self.computed_weights(model, run_program is not None or torch.compiler.is_compiling()))
        for step, freed in zip(self._steps, self._freed, strict=True):
            if isinstance(step, NativeCall):
                if self._computed is not None and step.name in self._computed.nodes:
                    continue
                if step.overwritten in made and run_program is not None:
                    _own(env, step.overwritten)
                _run_native(step, model, env, contiguous)
            elif self._run_program(step, model, env, contiguous, run_program, dtype, autocast):
                made.update(step.outputs)
            for name in freed:
                env.pop(name, None)
                contiguous.discard(name)
        for name in list(contiguous):
            _settle(env, contiguous, name)
        if run_program is not None and not torch.compiler.is_compiling():
            for name in made:
                _make_resizable(env, str(name))
        return self._result_in(env)

    def result_of(self, program: BoundProgram, outputs: Sequence[torch.Tensor]) -> Any:
        """The model's result, where the only program returned these outputs."""
        env: dict[str, Any] = dict(zip(program.outputs, outputs, strict=True))
        for name, other in program.aliases:
            env[name] = env[other]
        return self._result_in(env)

    def _result_in(self, env: dict[str, Any]) -> Any:
        outputs = fill(self._outputs, env)
        return outputs if self._result is None else _form(self._result, outputs)

    def _run_program(
        self, step: BoundProgram, model: nn.Module, env: dict[str, Any], contiguous: set[str],
        run_program: ProgramRunner | None, dtype: torch.dtype | None, autocast: torch.dtype | None,
    ) -> bool:  # fmt: skip
        """Whether the program has run; else its nodes have."""
        inputs = [env[name] for name in step.inputs]
        if run_program is not None and not torch.compiler.is_compiling():
            inputs = [
                with_plain_gradient(x) if name in self._seen and name not in contiguous else x
                for name, x in zip(step.inputs, inputs, strict=True)
            ]
        reason: str | None = None
        plain: list[int] = []
        results: list[torch.Tensor] = []
        try:
            if not all([isinstance(x, torch.Tensor) for x in inputs]):
                raise RefusedError(f"{step.inputs}: want tensors, got {[type(x).__name__ for x in inputs]}")
            parameters = step.parameters(env)
            plain = step.plain_outputs(inputs, [name in contiguous for name in step.inputs], parameters)
            reason = step.refusal(inputs, parameters, autocast)
            if autocast is not None and reason is None:
                inputs, dtype = [x.to(autocast) for x in inputs], None
            if reason is None and run_program is not None:
                results = run_program(step, inputs, parameters)
            elif reason is None:
                planes = tuple([i for i in plain if i in step.handed_out])
                text = step.text
                if autocast is None:
                    text, parameters = step.whole(inputs, parameters, dtype)
                results = ops.run_program(inputs, parameters, text, planes, dtype)
                plain = [i for i in plain if i not in planes]
                if not torch.compiler.is_compiling():
                    stored = parameters[0].dtype if parameters else inputs[0].dtype
                    step.last_plan = executor_of(text, dtype or inputs[0].dtype, stored).last_plan
        except (ValueError, TypeError, KeyError, RuntimeError) as refusal:
            if torch.compiler.is_compiling():
                raise
            reason = str(refusal)
        if reason is not None:
            # Nothing has been changed yet: running statistics move when a program has run. Where the original modules
            # refuse as well, they say so as torch does.
            self.refusal = reason
            for call in step.calls:
                _run_native(call, model, env, contiguous)
            for name in step.inner:
                env.pop(name, None)
            return False
        for name, result in zip(step.outputs, results, strict=True):
            env[name] = result
        contiguous.update([step.outputs[i] for i in plain])
        for name, other in step.aliases:
            env[name] = env[other]
            if other in contiguous:
                contiguous.add(name)
        return True


def _run_native(call: NativeCall, model: nn.Module, env: dict[str, Any], contiguous: set[str]) -> None:
    held = [name for name in call.inputs if name in contiguous] if contiguous else []
    if held and call.target == "contiguous" and call.op == "call_method" and len(call.args) == 1 and not call.kwargs:
        env[call.name] = env[held[0]]  # as the plain model's value is contiguous already
        contiguous.add(call.name)
        return
    # The result is contiguous in the plain model where all that is read is.
    keeps = bool(held) and call.blind and all([_is_contiguous(env[name], name, contiguous) for name in call.inputs])
    if not keeps:
        for name in held:
            _settle(env, contiguous, name)
    value = run_native(call, model, env)
    env[call.name] = value
    if keeps and isinstance(value, torch.Tensor) and value.dim() == 4:
        contiguous.add(call.name)


def _is_contiguous(value: Any, name: str, contiguous: set[str]) -> bool:
    """Whether a value is contiguous in the plain model, or has no memory format."""
    return name in contiguous or not isinstance(value, torch.Tensor) or value.dim() != 4 or value.is_contiguous()


def _settle(env: dict[str, Any], contiguous: set[str], name: str) -> None:
    """Gives a value the memory format that it has in the plain model, under all of its names."""
    contiguous.discard(name)
    value = env.get(name)
    if not isinstance(value, torch.Tensor):
        return
    settled = made_contiguous(value)
    for other, same in env.items():
        if same is value:
            env[other] = settled
            contiguous.discard(other)


def _own(env: dict[str, Any], name: str | None) -> None:
    """Before a value is overwritten, which a program's backward may need as it is: all its names mean a copy then."""
    value = env[str(name)]
    copied = value.clone()
    for other, same in env.items():
        if same is value:
            env[other] = copied


def _form(result: Any, outputs: Sequence[Any]) -> Any:
    """A result of the form that the model's code gave it."""
    if isinstance(result, Output):
        return outputs[result.index]
    if is_sequence(result):
        return rebuilt(result, [_form(item, outputs) for item in result])
    if is_mapping(result):
        return type(result)([(key, _form(item, outputs)) for key, item in result.items()])
    return result


def _make_resizable(env: dict[str, Any], name: str) -> None:
    """A result of training that leaves the model: users may resize it, which the memory of the core's heap forbids."""
    value = env.get(name)
    if isinstance(value, torch.Tensor) and not value.untyped_storage().resizable():
        own = value.clone()
        for other, same in env.items():
            if same is value:
                env[other] = own


def _reads(step: Step) -> list[str]:
    """Names of the values that a step needs."""
    if not isinstance(step, ProgramStep):
        return [node.name for node in step.node.all_input_nodes]
    arguments = [p.name for p in step.parameters if isinstance(p, NodeParameter)]
    of_nodes = [source.name for node in step.all_nodes for source in node.all_input_nodes]
    return [*(node.name for node in step.inputs), *arguments, *of_nodes]
