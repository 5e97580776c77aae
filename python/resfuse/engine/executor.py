"""Runs one program: keeps the plans for the input sizes seen and the packed weights of the models that use it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from resfuse import _core
from resfuse.engine.memory import empty
from resfuse.engine.spec import ProgramSpec
from resfuse.engine.views import view
from resfuse.engine.weights import PackedWeights, WeightCache

_MOST_PLANS = 64
# Types of feature maps that programs compute, and their names in the core.
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run of a program: the seconds of each of its layers."""

    spec: ProgramSpec
    plan: _core.Plan
    seconds: list[float]
    executor: Executor
    inputs: Sequence[torch.Tensor]
    parameters: Sequence[torch.Tensor]


_records: ContextVar[list[RunRecord] | None] = ContextVar("_records", default=None)


@contextlib.contextmanager
def recorded_runs() -> Iterator[list[RunRecord]]:
    """Times the layers of all programs that run meanwhile, in this thread and context."""
    records: list[RunRecord] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def build_program(spec: ProgramSpec, isa: str | None = None, dtype: torch.dtype = torch.float32) -> _core.Program:
    """The core's program for a specification, of feature maps of ``dtype``; ``isa`` None takes the level in use."""
    return _core.Program(spec.to_text(), isa, DTYPES[dtype])


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a call on inputs of some shapes and strides needs."""

    plan: _core.Plan
    outputs: list[tuple[int, ...]]  # shapes


class Executor:
    """A program ready to run on any batch and image size, over feature maps of one type and parameters of one type."""

    def __init__(
        self,
        spec: ProgramSpec,
        isa: str | None = None,
        dtype: torch.dtype = torch.float32,
        parameter_dtype: torch.dtype | None = None,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self._program = build_program(spec, isa, dtype)
        self._plans: OrderedDict[tuple[object, ...], _core.Plan] = OrderedDict()
        self._calls: dict[tuple[object, ...], _Call] = {}
        self._weights = WeightCache(spec, self._program, parameter_dtype or dtype)
        self.last_plan: _core.Plan | None = None

    def plan(self, inputs: Sequence[torch.Tensor], planes: tuple[int, ...] = ()) -> _core.Plan:
        """The plan for these inputs' sizes and layouts and torch's present number of threads.

        ``planes`` are the numbers of the outputs in contiguous memory.
        """
        threads = _core.usable_threads(torch.get_num_threads())
        shapes = tuple([(x.shape[2], x.shape[3], x.is_contiguous(memory_format=torch.channels_last)) for x in inputs])
        key = (max(inputs[0].shape[0], 1), shapes, threads, planes)
        plan = self._plans.get(key)
        if plan is None:
            plan = _core.Plan(self._program, key[0], shapes, threads, planes)
            self._plans[key] = plan
            while len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        return plan

    def _call(self, inputs: Sequence[torch.Tensor], planes: tuple[int, ...] = ()) -> _Call:
        """The plan and the outputs' shapes; raises as `check_shapes` does."""
        key = (torch.get_num_threads(), planes, *[(x.shape, x.stride()) for x in inputs])
        call = self._calls.get(key)
        if call is None:
            check_shapes(self.spec, inputs)
            plan, batch = self.plan(inputs, planes), inputs[0].shape[0]
            shapes = [(batch, *plan.output_shape(i)[1:]) for i in range(len(self.spec.outputs))]
            ranks = [output.rank for output in self.spec.outputs]
            call = _Call(plan, [shape[:rank] for shape, rank in zip(shapes, ranks, strict=True)])
            if len(self._calls) >= _MOST_PLANS:
                self._calls.clear()
            self._calls[key] = call
        return call

    def run(
        self, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], planes: tuple[int, ...] = ()
    ) -> list[torch.Tensor]:
        """The outputs for [N, C, H, W] CPU tensors of the program's type and any strides.

        Feature maps come back in channels_last memory, but for the outputs whose numbers are ``planes``: contiguous.
        """
        _check_kinds(self.spec, inputs, self.dtype)
        call = self._call(inputs, planes)
        outputs = self._empty(call, planes)
        if inputs[0].shape[0] > 0:
            records = _records.get()
            arrays = _arrays(inputs, outputs)
            seconds = self.weights(parameters).run(parameters, call.plan, *arrays, records is not None)
            if records is not None:
                records.append(RunRecord(self.spec, call.plan, seconds, self, inputs, parameters))
            self.last_plan = call.plan
        return outputs

    def run_if(
        self,
        inputs: Sequence[torch.Tensor],
        weights: PackedWeights,
        present: Callable[[], Sequence[torch.Tensor] | None],
        planes: tuple[int, ...] = (),
    ) -> list[torch.Tensor] | None:
        """What `run` returns for inputs like those of a call before, if the ``present`` parameters, asked for while it
        runs, are those of these ``weights``; else None.
        """
        if _records.get() is not None:
            return None
        call = self._call(inputs, planes)
        outputs = self._empty(call, planes)
        if not weights.run_if(call.plan, *_arrays(inputs, outputs), present):
            return None
        self.last_plan = call.plan
        return outputs

    def weights(self, parameters: Sequence[torch.Tensor]) -> PackedWeights:
        """The packed weights of these parameters."""
        return self._weights.entry(parameters)

    def _empty(self, call: _Call, planes: tuple[int, ...]) -> list[torch.Tensor]:
        return [
            torch.empty(shape, dtype=self.dtype)
            if len(shape) != 4 or i in planes
            else torch.empty(shape, dtype=self.dtype, memory_format=torch.channels_last)
            for i, shape in enumerate(call.outputs)
        ]

    def run_once(self, inputs: Sequence[torch.Tensor], weight: npt.NDArray[Any], bias: Sequence[float]) -> torch.Tensor:
        """A program of one convolution with fp32 weights [K, C, R, S] of any strides, packed for this call alone."""
        _check_kinds(self.spec, inputs, self.dtype)
        call = self._call(inputs)
        y = empty(call.outputs[0], self.dtype)
        if inputs[0].shape[0] > 0:
            weights = _core.WeightSet(self._program)
            weights.set_first(weight, bias)
            call.plan.prepare(weights)
            call.plan.run(weights, [view(x) for x in inputs], [view(y)])
        return y

    def task_times(
        self, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], threads: int, runs: int
    ) -> tuple[_core.Plan, list[npt.NDArray[np.float64]]]:
        """A plan for so many ``threads``, and what its tasks take, each on a core of its thread's own, in some runs.

        A row a task: layer (-1: a change of layout), first image of its wave, stage, task, seconds.
        """
        _check_kinds(self.spec, inputs, self.dtype)
        check_shapes(self.spec, inputs)
        shapes = [(x.shape[2], x.shape[3], x.is_contiguous(memory_format=torch.channels_last)) for x in inputs]
        plan = _core.Plan(self._program, inputs[0].shape[0], shapes, threads)
        weights = self.weights(parameters).current(parameters, plan)
        outputs = [empty(plan.output_shape(i), self.dtype) for i in range(len(self.spec.outputs))]
        arrays = [view(x) for x in inputs], [view(y) for y in outputs]
        return plan, [plan.task_times(weights, *arrays) for _ in range(runs)]

    def packed_bytes(self, parameters: Sequence[torch.Tensor]) -> int:
        """Bytes of packed weights held for these parameters."""
        return self.weights(parameters).packed_bytes


def check_shapes(spec: ProgramSpec, inputs: Sequence[torch.Tensor]) -> None:
    """Raises ValueError for inputs of other ranks, channels or batches than a program takes."""
    for i, (x, channels) in enumerate(zip(inputs, spec.inputs, strict=True)):
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"inputs[{i}]: got shape {list(x.shape)}, want [N, {channels}, H, W]")
        if x.shape[0] != inputs[0].shape[0]:
            raise ValueError(f"inputs[{i}]: got a batch of {x.shape[0]}, want {inputs[0].shape[0]} as in inputs[0]")


def _arrays(
    inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    return [view(x) for x in inputs], [_four_dimensional(view(y)) for y in outputs]


def _four_dimensional(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.ndim == 4 else array[:, :, np.newaxis, np.newaxis]


def _check_kinds(spec: ProgramSpec, inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
    if len(inputs) != len(spec.inputs):
        raise ValueError(f"inputs: got {len(inputs)} tensors, want {len(spec.inputs)}")
    for i, x in enumerate(inputs):
        if x.dtype is dtype and x.is_cpu and x.layout is torch.strided:
            continue
        if x.layout != torch.strided or x.is_quantized:
            kind = "quantized" if x.is_quantized else str(x.layout)
            raise TypeError(f"inputs[{i}]: got a {kind} tensor, want a dense (strided) one")
        if x.dtype != dtype:
            raise TypeError(f"inputs[{i}]: got dtype {x.dtype}, want {dtype}")
        raise ValueError(f"inputs[{i}]: got a tensor on {x.device}, want one on the CPU")


@functools.lru_cache(maxsize=512)
def executor_of(text: str, dtype: torch.dtype = torch.float32, parameter_dtype: torch.dtype | None = None) -> Executor:
    """The one executor of a program's text over feature maps and parameters of these types."""
    return Executor(ProgramSpec.from_text(text), None, dtype, parameter_dtype)
