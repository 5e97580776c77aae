"""One pass over a user's batches through the fused model of real numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from resfuse.engine.executor import Executor
from resfuse.engine.spec import OutputSpec, ProgramSpec, Range
from resfuse.fused.module import FusedModule
from resfuse.lowering.binding import BoundProgram, ProgramRunner, watcher
from resfuse.lowering.ranges import Ranges, convolution_inputs, int8_spec, observed_buffers
from resfuse.quantization.observer import ChannelMeans, Observer

MOST_KEPT = 256  # images whose predictions are compared


class Batch:
    """What one element of the batches hands to the model."""

    def __init__(self, element: Any, number: int) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(element, Mapping):
            self.kwargs = {str(name): value for name, value in element.items()}
        elif isinstance(element, (tuple, list)) and element:
            self.args = (element[0],)
        else:
            self.args = (element,)
        tensors = [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, torch.Tensor)]
        if not tensors:
            raise TypeError(f"batches: element {number} is a {type(element).__name__}, want tensors, or tuples whose "
                            "first element is one")  # fmt: skip
        self.images = tensors[0].shape[0] if tensors[0].dim() > 0 else 1
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"batches: element {number} has values that are NaN or infinite")

    def run(self, model: nn.Module) -> Any:
        """The model's result."""
        with torch.no_grad():
            return model(*self.args, **self.kwargs)


@contextlib.contextmanager
def watched(runner: ProgramRunner) -> Iterator[None]:
    """Programs that would run as a whole are run by ``runner`` meanwhile."""
    token = watcher.set(runner)
    try:
        yield
    finally:
        watcher.reset(token)


class Calibration:
    """Observers of the feature maps of each fused part, by its path and by the names of the graph's nodes."""

    def __init__(self, parts: Mapping[str, FusedModule]) -> None:
        self.parts = parts
        self.observers: dict[str, dict[str, Observer]] = {path: {} for path in parts}
        self.means: dict[str, dict[str, ChannelMeans]] = {path: {} for path in parts}  # of what convolutions read
        self.batches: list[Batch] = []  # the first, for comparisons
        self.results: list[Any] = []  # and what real numbers gave for them

    def path_of(self, bound: BoundProgram) -> str:
        """The fused part that a program belongs to."""
        for path, part in self.parts.items():
            if any(bound is other for binding in part.fusion().graphs.bindings() for other in binding.programs):
                return path
        raise KeyError(bound.step.text)

    def take(
        self, model: nn.Module, batches: Iterable[Any], progress: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> None:
        """Runs the model on all batches.

        Raises:
            ValueError, TypeError: there are no batches, or some cannot be used.
        """
        if isinstance(batches, (torch.Tensor, str, bytes, Mapping)) or not isinstance(batches, Iterable):
            raise TypeError(
                f"batches: got {type(batches).__name__}, want an iterable of batches, as a DataLoader or a list"
            )
        kept = 0
        executors: dict[BoundProgram, Executor] = {}
        failures: list[str] = []  # which a program must not raise: its nodes would run natively instead

        def observe(
            bound: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]
        ) -> list[torch.Tensor]:
            if bound not in executors:
                executors[bound] = Executor(_with_observed(bound.step.spec))
            executor = executors[bound]
            results = executor.run(inputs, parameters)
            values = dict(enumerate(inputs))
            values.update({o.buffer: y for o, y in zip(executor.spec.outputs, results, strict=True)})
            failures.extend(f"batches: element {number}: {text}" for text in self._observe(bound, values))
            return results[: len(bound.step.spec.outputs)]

        for number, element in enumerate(progress(batches)):
            batch = Batch(element, number)
            with watched(observe):
                result = batch.run(model)
            if failures:
                raise ValueError(failures[0])
            if kept < MOST_KEPT:
                self.batches.append(batch)
                self.results.append(result)
                kept += batch.images
        if not self.batches:
            raise ValueError("batches: got none, want at least one")
        if not any(self.observers.values()):
            reasons = {part.fusion().native_reason for part in self.parts.values()}
            raise ValueError(f"batches: the model ran nothing fused on them ({'; '.join(map(str, reasons))})")

    def _observe(self, bound: BoundProgram, values: Mapping[int, torch.Tensor]) -> Iterator[str]:
        """Takes in what a program computed; gives what is wrong with it."""
        path = self.path_of(bound)
        try:
            for buffer in observed_buffers(bound.step.spec):
                name = bound.names[buffer]
                self.observers[path].setdefault(name, Observer()).add(values[buffer])
        except ValueError as error:
            yield f"{name} {error}"
            return
        for buffer in convolution_inputs(bound.step.spec):
            self.means[path].setdefault(bound.names[buffer], ChannelMeans()).add(_four_dimensional(values[buffer]))

    def channel_means(self, path: str) -> dict[str, tuple[float, ...]]:
        """Of what the convolutions of one part read, by channel."""
        return {name: means.means() for name, means in self.means[path].items()}

    def ranges(self, path: str, method: str) -> dict[str, Range]:
        """Of one part's feature maps; one that was nothing but zeros has none, and what reads it stays real numbers.

        Raises:
            ValueError: all inputs of the part were nothing but zeros.
        """
        observers = self.observers[path]
        inputs = {
            name
            for binding in self.parts[path].fusion().graphs.bindings()
            for bound in binding.programs
            for name in bound.inputs
        }
        seen = [observers[name] for name in inputs if name in observers]
        if seen and all(observer.low == observer.high == 0.0 for observer in seen):
            raise ValueError("batches: got nothing but zeros, want data that is like that of later use")
        found = {name: observer.range(method) for name, observer in observers.items()}
        return {name: byte_range for name, byte_range in found.items() if byte_range is not None}


def _with_observed(spec: ProgramSpec) -> ProgramSpec:
    """A program that also returns what calibration looks at."""
    present = {*range(len(spec.inputs)), *(output.buffer for output in spec.outputs)}
    wanted = dict.fromkeys([*observed_buffers(spec), *convolution_inputs(spec)])
    return spec.with_outputs([*spec.outputs, *(OutputSpec(buffer) for buffer in wanted if buffer not in present)])


def _four_dimensional(values: torch.Tensor) -> torch.Tensor:
    return values if values.dim() == 4 else values[:, :, None, None]


class Trial:
    """Runs the model by ranges that are not the model's own; its packed weights die with it."""

    def __init__(self, calibration: Calibration, ranges: Mapping[str, Ranges], inner: bool = False) -> None:
        self._calibration = calibration
        self._ranges = ranges
        self._inner = inner  # whether layers' outputs are kept
        self._executors: dict[BoundProgram, Executor] = {}
        self.layers: dict[tuple[str, str], torch.Tensor] = {}  # outputs of convolutions by part and layer

    def _spec(self, bound: BoundProgram, path: str) -> ProgramSpec:
        spec = bound.step.spec
        if self._inner:
            present = {output.buffer for output in spec.outputs}
            convs = [layer.output for layer in spec.layers if layer.kind == "conv" and layer.output not in present]
            spec = spec.with_outputs([*spec.outputs, *map(OutputSpec, convs)])
        return int8_spec(spec, bound.names, self._ranges[path]) or spec if path in self._ranges else spec

    def __call__(
        self, bound: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Runs one program."""
        path = self._calibration.path_of(bound)
        if bound not in self._executors:
            self._executors[bound] = Executor(self._spec(bound, path))
        executor = self._executors[bound]
        means = bound.means_of(self._ranges[path]) if path in self._ranges else []
        results = executor.run(inputs, [*parameters, *means])
        if self._inner:
            names = {layer.output: layer.name for layer in executor.spec.layers if layer.kind == "conv"}
            for output, y in zip(executor.spec.outputs, results, strict=True):
                if output.buffer in names:
                    self.layers[path, names[output.buffer]] = y
        return results[: len(bound.step.spec.outputs)]


def run_trial(model: nn.Module, batches: Sequence[Batch], runner: ProgramRunner) -> list[Any]:
    """The model's results for some batches."""
    with watched(runner):
        return [batch.run(model) for batch in batches]
