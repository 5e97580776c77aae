"""The class of a fused model: its own class with a forward that runs programs where it can."""

from __future__ import annotations

import copy
import functools
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from resfuse.capture.arguments import read_arguments
from resfuse.checks import require_module
from resfuse.errors import GradientsEnabledWarning, UnsupportedModelError
from resfuse.fused.calls import (
    are_plain,
    asks_for_gradients,
    autocast_dtype,
    has_empty_batch,
    input_reason,
    is_exporting,
    refuse,
    tool_reason,
    train_program,
)
from resfuse.fused.copies import plain_copy
from resfuse.fused.graphs import Graph, Graphs
from resfuse.fused.repeat import Repeat
from resfuse.lowering.binding import Binding, ProgramRunner, watcher
from resfuse.lowering.ranges import Ranges
from resfuse.lowering.steps import Lowered

_RUNTIME = "_resfuse_runtime"
RANGES_KEY = "resfuse_ranges"  # of a state_dict


class Fusion:
    """What is derived from a model's modules, and how its calls went. Never pickled or copied; rebuilt on demand."""

    def __init__(
        self, model: FusedModule, algorithm: str, lowered: Lowered | None = None, ranges: Ranges | None = None
    ) -> None:
        # Only the model holds this object: a reference back would keep it alive, but for the collector.
        self._model = weakref.ref(model)
        self.graphs = Graphs(model, algorithm, lowered, ranges)
        self.fused_calls = 0
        self.native_calls = 0
        self.native_reason: str | None = None
        self.warned = False
        self.repeat: Repeat | None = None  # of the last call

    @property
    def present(self) -> Graph:
        """The graph for calls like the last one, with the model as it is now."""
        model = self._model()
        assert model is not None
        return self.graphs.present(model)

    @property
    def binding(self) -> Binding:
        """The programs of that graph.

        Raises:
            UnsupportedModelError: the model cannot be traced in its present state.
        """
        graph = self.present
        if graph.binding is None:
            raise UnsupportedModelError(graph.reason)
        return graph.binding

    def binding_for(self, *args: Any) -> Binding:
        """The programs of the graph for a call with these arguments.

        Raises:
            UnsupportedModelError: the model cannot be traced for it.
        """
        model = self._model()
        assert model is not None
        key, _ = read_arguments(args, {})
        graph, _ = self.graphs.find(model, key, args, {})
        if graph.binding is None:
            raise UnsupportedModelError(graph.reason)
        return graph.binding

    def state_reason(self) -> str | None:
        """Why nothing would run fused in the model's present state, or None."""
        return fusion_reason(self.present)

    def not_as_programs(self) -> str | None:
        """Why a call without gradients would not run whole programs in the modules' present state, or None."""
        graph = self.present
        trains = graph.binding is not None and graph.binding.trains()
        return "is in train mode" if trains else fusion_reason(graph)


def fusion_reason(graph: Graph) -> str | None:
    """Why a graph would run natively, or None."""
    if graph.binding is None:
        return graph.reason
    if not graph.binding.programs:
        natives = graph.binding.lowered.natives
        return f"nothing of it can be fused now ({natives[0].reason})" if natives else "nothing of it can be fused now"
    try:
        for bound in graph.binding.programs:
            bound.require_parameters()
    except (ValueError, KeyError) as error:
        return str(error)
    return None


class FusedModule(nn.Module):
    """Mixed into a module's class: ``forward`` runs the fused programs, ``native_forward`` the original code.

    On the CPU, in fp32, bf16 and fp16, everything that was lowered runs fused: as whole programs in eval mode where no
    gradient is asked for, block by block with autograd otherwise. What runs natively is named by `resfuse.report`.
    """

    _resfuse_algorithm = "auto"
    _resfuse_dtype: torch.dtype | None = None  # that whole programs compute in; None: their inputs'
    _resfuse_ranges: Ranges | None = None  # by which whole programs compute with bytes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The signature of the code that is replaced: for inspect, torch.fx and torch.export.
        plain = next(c for c in cls.__mro__ if "forward" in vars(c) and not issubclass(c, FusedModule))
        original = vars(plain)["forward"]

        @functools.wraps(original)
        def forward(self: FusedModule, *args: Any, **kwargs: Any) -> Any:
            return FusedModule.forward(self, *args, **kwargs)

        cls.forward = forward  # type: ignore[method-assign]

    def native_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward."""
        return super().forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The same result as the original forward."""
        if torch.compiler.is_compiling():
            return self._compiled_forward(args, kwargs)
        fusion = self.fusion()
        repeat = fusion.repeat
        if repeat is not None and repeat.fits(args, kwargs):
            repeated = repeat.run(args[0])
            if repeated is not None:
                fusion.fused_calls += 1
                return repeated.value
        fusion.repeat = None
        key, inputs = read_arguments(args, kwargs)
        reason = tool_reason(inputs)
        if reason is not None:
            return self._native(reason, args, kwargs)
        graph, state = fusion.graphs.find(self, key, args, kwargs)
        graph.ran = True
        trains = fusion.graphs.trains(graph, state)
        binding = graph.training_binding if trains else graph.binding
        if binding is None:
            return self._native(graph.reason, args, kwargs)
        reason = binding.reason(self)
        if reason is not None:
            return self._native(reason, args, kwargs)
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        reason = input_reason(tensors) or ("the batch is empty" if has_empty_batch(tensors) else None)
        runner: ProgramRunner | None
        if reason is None:
            try:
                runner = self._runner(binding, tensors, trains)
                if runner is not None:  # a whole program's weights are checked when they are packed
                    for bound in binding.programs:
                        bound.require_parameters()
            except (ValueError, KeyError) as error:
                reason = str(error)
        if reason is not None:
            if not binding.pools or not are_plain(tensors):
                return self._native(reason, args, kwargs)
            runner = refuse  # of the graph only its pools are fused
        result = binding.run(self, inputs, runner or watcher.get(), self._resfuse_dtype, autocast_dtype())
        reason = reason or binding.refusal
        if reason is None:
            fusion.fused_calls += 1
            if runner is None and watcher.get() is None and autocast_dtype() is None:
                fusion.repeat = Repeat.of(fusion.graphs, graph, binding, inputs[0], self._resfuse_dtype)
        else:
            fusion.native_calls += 1
            fusion.native_reason = reason
        return result

    def _native(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self.native_forward(*args, **kwargs)
        fusion = self.fusion()
        fusion.native_calls += 1
        fusion.native_reason = reason
        return result

    def _compiled_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What Dynamo traces: it guards what is read of the assumptions. Tools that export get the plain model."""
        if not is_exporting():
            key, inputs = read_arguments(args, kwargs)
            for graph in self.__dict__[_RUNTIME].graphs.kept if _RUNTIME in self.__dict__ else ():
                binding = graph.binding
                if binding is not None and graph.key == key and graph.unchanged() and binding.reason(self) is None:
                    trains = binding.trains()
                    learns = torch.is_grad_enabled() or trains
                    if learns and any([bound.has_bytes for bound in binding.programs]):
                        break
                    runner = train_program if learns else None
                    if trains and graph.training_binding is not None:
                        binding = graph.training_binding
                    return binding.run(self, inputs, runner, self._resfuse_dtype, autocast_dtype())
        return self.native_forward(*args, **kwargs)

    def _runner(self, binding: Binding, tensors: list[torch.Tensor], trains: bool) -> ProgramRunner | None:
        """What runs a program: None for the whole of it at once, or block by block where something is to be learnt."""
        if trains:
            return train_program
        if not torch.is_grad_enabled():
            return None
        if not asks_for_gradients([*tensors, *binding.parameters(self)]):
            return None
        fusion = self.fusion()
        if not self.training and not fusion.warned:
            fusion.warned = True
            warnings.warn(
                "a fused model in eval mode ran block by block because gradients are enabled; "
                "call it under torch.no_grad() or torch.inference_mode() to run it as one program",
                GradientsEnabledWarning,
                stacklevel=6,  # the line that calls the model
            )
        return train_program

    def adopt(self, lowered: Lowered, algorithm: str, dtype: torch.dtype | None) -> None:
        """Takes over an already lowered form of this very structure."""
        self._resfuse_algorithm, self._resfuse_dtype = algorithm, dtype
        self.__dict__[_RUNTIME] = Fusion(self, algorithm, lowered, self._resfuse_ranges)

    def fusion(self) -> Fusion:
        """What is fused, and how calls went."""
        fusion: Fusion | None = self.__dict__.get(_RUNTIME)
        if fusion is None:
            fusion = self.__dict__[_RUNTIME] = Fusion(self, self._resfuse_algorithm, None, self._resfuse_ranges)
        return fusion

    def quantize(self, ranges: Ranges) -> None:
        """Whole programs compute with bytes by these ranges from now on."""
        self._resfuse_ranges = ranges
        self.fusion().graphs.quantize(ranges)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._resfuse_ranges is not None:
            destination[prefix + RANGES_KEY] = self._resfuse_ranges.to_tensor()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.pop(prefix + RANGES_KEY, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if stored is not None:
            errors: list[str] = args[-1]
            try:
                ranges = Ranges.from_tensor(stored)
                require_ranges_of(self, ranges)
                self.quantize(ranges)
            except (ValueError, UnsupportedModelError) as error:
                errors.append(f"{prefix}{RANGES_KEY}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop(_RUNTIME, None)
        return state

    def __prepare_scriptable__(self) -> nn.Module:
        """For ``torch.jit.script``: the plain model over the same parameters."""
        plain = plain_copy(self)
        prepare = getattr(plain, "__prepare_scriptable__", None)
        return plain if prepare is None else prepare()


def require_ranges_of(model: FusedModule, ranges: Ranges) -> None:
    """Raises ValueError for ranges of another model: those of values or layers that this one does not have."""
    programs = model.fusion().binding.programs
    values = {name for bound in programs for name in bound.names}
    layers = {layer.name for bound in programs for layer in bound.step.spec.layers}
    missing = [name for name in ranges.values if name not in values]
    missing += [name for name in ranges.keep if name not in layers]
    if missing:
        raise ValueError(f"ranges: got some of {missing[0]!r}, which {type(model).__name__} does not compute")


def fused_parts(model: nn.Module, path: str = "") -> Iterator[tuple[str, FusedModule]]:
    """The fused modules of a model with their paths; not those inside another."""
    if isinstance(model, FusedModule):
        yield path, model
        return
    for name, child in model.named_children():
        yield from fused_parts(child, f"{path}.{name}".lstrip("."))


def require_fused(name: str, model: nn.Module) -> dict[str, FusedModule]:
    """The fused modules of a model by their paths; raises TypeError or UnsupportedModelError where there are none."""
    require_module(name, model)
    parts = dict(fused_parts(model))
    if not parts:
        raise UnsupportedModelError(f"{name}: {type(model).__name__} is not fused; want what resfuse.fuse returned")
    return parts


@functools.cache
def fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The fused subclass of a module class: same name, same isinstance relations."""
    if issubclass(cls, FusedModule):
        return cls

    copying = _COPYING_GRAPHS if issubclass(cls, fx.GraphModule) else {"__reduce_ex__": _reduce}
    plain = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_resfuse_plain": cls}
    return type(cls.__name__, (FusedModule, cls), {**plain, **copying})


def _reduce(self: FusedModule, protocol: int) -> tuple[Any, ...]:
    return _rebuild, (self._resfuse_plain,), self.__getstate__()


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    fused: type[nn.Module] = fused_class(cls)  # type: ignore[arg-type]  # classes do hash
    return fused.__new__(fused)


# A graph module is of a class of its own, which it makes anew when it is copied.


def _reduce_graph(self: FusedModule, protocol: int) -> tuple[Any, ...]:
    return _as_fused, (plain_copy(self), _own_attributes(self))


def _deepcopy_graph(self: FusedModule, memo: dict[int, Any]) -> nn.Module:
    copied = _as_fused(copy.deepcopy(plain_copy(self), memo), _own_attributes(self))
    memo[id(self)] = copied
    return copied


def _own_attributes(module: FusedModule) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name.startswith("_resfuse_") and name != _RUNTIME}


def _as_fused(module: nn.Module, attributes: dict[str, Any]) -> nn.Module:
    module.__class__ = fused_class(type(module))  # type: ignore[arg-type]
    vars(module).update(attributes)
    return module


_COPYING_GRAPHS = {"__reduce_ex__": _reduce_graph, "__deepcopy__": _deepcopy_graph}
