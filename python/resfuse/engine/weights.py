"""Packed weights that follow the parameters they were made from.

A cache entry belongs to one list of tensors. It is valid while every tensor is the same object at the same address with
the same version counter, and while its values are the same as far as a call looks: a few samples of each tensor, and
a slice of all bytes, another one at each call. That last check sees writes that no version counter counts (``.data``,
NumPy views, other processes): a change of a whole tensor at the next call, of a single element when its slice comes.
"""

from __future__ import annotations

import dataclasses
import operator
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from resfuse import _core
from resfuse.engine.spec import ConvSpec, ProgramSpec
from resfuse.engine.views import view

_version = operator.attrgetter("_version")
Stamp = tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]


def _stamp(tensors: Sequence[torch.Tensor], matrices: Sequence[int]) -> Stamp:
    addresses = tuple(map(torch.Tensor.data_ptr, tensors))
    # Of those with several dimensions: p.data = p.data.transpose(2, 3) changes nothing else.
    strides = tuple([tensors[i].stride() for i in matrices])
    try:
        return addresses, strides, tuple(map(_version, tensors))
    except RuntimeError:  # tensors made under inference_mode have no version counter
        return addresses, strides, tuple(0 if t.is_inference() else t._version for t in tensors)


PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
_OTHER_TYPES = (torch.int8, torch.int32, torch.int64, torch.float64)  # of quantised weights and what belongs to them


def require_plain(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32, other_types: Collection[int] = ()
) -> None:
    """Raises ValueError for tensors that the core cannot read, or of another type.

    Those at the places ``other_types`` may be of integers or float64 as well.
    """
    fits = [type(t) in PLAIN_TENSORS and t.is_cpu for t in tensors]
    fits += [t.dtype is dtype or (i in other_types and t.dtype in _OTHER_TYPES) for i, t in enumerate(tensors)]
    if not all(fits):
        raise ValueError(f"its parameters are not all plain {str(dtype).removeprefix('torch.')} tensors on the CPU")


def _as_words(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor of other elements as fp32; what is left of a last word is left out.

    One that is not dense is left out as a whole: there only version counters tell.
    """
    size = tensor.element_size()
    words = tensor.numel() * size // 4
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    if not dense or tensor.data_ptr() % 4:
        return torch.empty(0)
    return tensor.detach().as_strided((words * 4 // size,), (1,)).view(torch.float32)


def _watched(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """All elements of a tensor, in the order of memory where that is channels_last; never a copy's."""
    if tensor.is_neg():
        tensor = torch._neg_view(tensor)
    if tensor.dtype is not torch.float32:
        return view(_as_words(tensor))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return view(tensor)


_MOST_TRIES = 4  # where somebody keeps writing while weights are packed
_generations = [0]  # grows when somebody says that weights have changed


def forget_packed_weights() -> None:
    """All programs read their parameters anew when they run next."""
    _generations[0] += 1


_changes = [0]  # that we made ourselves where no version counter says so
_changed: dict[int, int] = {}  # addresses, and the number of the last such change there


def note_change(*tensors: torch.Tensor) -> None:
    """Programs over these tensors read them anew when they run next."""
    _changes[0] += 1
    for tensor in tensors:
        if type(tensor) in PLAIN_TENSORS:  # others, as fake ones, no program reads
            _changed[tensor.data_ptr()] = _changes[0]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What some tensors were at a time."""

    stamp: Stamp
    fingerprint: _core.Fingerprint
    samples: int
    generation: int
    changes: int

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], matrices: Sequence[int] = ()) -> Snapshot:
        """``matrices`` are the places of tensors whose strides count."""
        generation, changes = _generations[0], _changes[0]
        stamp = _stamp(tensors, matrices)
        fingerprint = _core.Fingerprint([_watched(t) for t in tensors])
        fingerprint.take(torch.get_num_threads())
        return cls(stamp, fingerprint, fingerprint.samples(), generation, changes)

    def holds(self, tensors: Sequence[torch.Tensor], matrices: Sequence[int] = (), threads: int | None = None) -> bool:
        """Whether these are the same tensors of the same values, as far as this call looks, with so many threads."""
        if self.stamp != _stamp(tensors, matrices) or self.generation != _generations[0]:
            return False
        if self.fingerprint.samples() != self.samples:
            return False
        if self.changes != _changes[0] and any([_changed.get(a, 0) > self.changes for a in self.stamp[0]]):
            return False
        return self.fingerprint.same_slice(torch.get_num_threads() if threads is None else threads)

    def held_meanwhile(self, tensors: Sequence[torch.Tensor], matrices: Sequence[int] = ()) -> bool:
        """Whether nobody has written since it was taken, a moment ago."""
        return self.stamp == _stamp(tensors, matrices) and self.fingerprint.samples() == self.samples


class PackedWeights:
    """One list of tensors and the weight set made from their present values."""

    def __init__(self, spec: ProgramSpec, program: _core.Program, dtype: torch.dtype) -> None:
        self._spec = spec
        self._program = program
        self._dtype = dtype
        self._matrices = tuple(layer.weight for layer in spec.layers if isinstance(layer, ConvSpec))
        self._lock = threading.Lock()
        self._state: tuple[Snapshot, _core.WeightSet] | None = None

    def run(
        self,
        tensors: Sequence[torch.Tensor],
        plan: _core.Plan,
        inputs: Sequence[npt.NDArray[Any]],
        outputs: Sequence[npt.NDArray[Any]],
        profile: bool = False,
    ) -> list[float]:
        """Runs a plan with the tensors' present values; the seconds of each layer where ``profile`` asks for them.

        Looking at the tensors takes a tenth of a small network's time, so that the others begin meanwhile.
        """
        if not profile and self.run_if(plan, inputs, outputs, lambda: tensors):
            return []
        return plan.run(self.current(tensors, plan), inputs, outputs, profile)

    def run_if(
        self,
        plan: _core.Plan,
        inputs: Sequence[npt.NDArray[Any]],
        outputs: Sequence[npt.NDArray[Any]],
        present: Callable[[], Sequence[torch.Tensor] | None],
    ) -> bool:
        """Runs a plan with the weights of the last run, if they are still those of the ``present`` tensors.

        All threads but one begin before that is known. Where it turns out otherwise, or there is nothing present, what
        they did is thrown away, and the result is False.
        """
        state = self._state
        if state is None:
            return False
        snapshot, weights = state

        def are_current() -> bool:
            tensors = present()
            if tensors is None:
                return False
            if snapshot.holds(tensors, self._matrices, threads=1):
                return True
            self._state = None
            return False

        return plan.run_if(weights, inputs, outputs, are_current)

    def current(self, tensors: Sequence[torch.Tensor], plan: _core.Plan) -> _core.WeightSet:
        """A weight set with the tensors' present values, packed for `plan`."""
        state = self._state
        if state is not None and state[0].holds(tensors, self._matrices):
            return state[1]
        self._state = None  # what has changed stays so, also where packing fails now
        if len(tensors) < self._spec.parameter_count:
            raise ValueError(f"parameters: got {len(tensors)} tensors, want {self._spec.parameter_count}")
        require_plain(tensors, self._dtype, self._spec.other_types)
        with self._lock:
            for _ in range(_MOST_TRIES):
                snapshot = Snapshot.of(tensors, self._matrices)
                weights = self._read(tensors)
                plan.prepare(weights)
                # Another thread may have written meanwhile: a set of mixed values must not be kept.
                if snapshot.held_meanwhile(tensors, self._matrices):
                    self._state = snapshot, weights
                    break
            return weights

    def _read(self, tensors: Sequence[torch.Tensor]) -> _core.WeightSet:
        weights = _core.WeightSet(self._program)
        weights.set_parameters([view(tensor) for tensor in tensors[: self._spec.parameter_count]])
        return weights

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed weights held now."""
        state = self._state
        return 0 if state is None else state[1].packed_bytes


class WeightCache:
    """The packed weights of one program, one entry for each model that uses it.

    Entries are found by their tensors' ids, and die with the first of these tensors, so that an id always means the
    tensor that it meant before.
    """

    def __init__(self, spec: ProgramSpec, program: _core.Program, dtype: torch.dtype = torch.float32) -> None:
        self._spec = spec
        self._program = program
        self._dtype = dtype
        self._entries: dict[tuple[int, ...], PackedWeights] = {}

    def entry(self, tensors: Sequence[torch.Tensor]) -> PackedWeights:
        """The entry of these tensors, made if there is none."""
        key = tuple(map(id, tensors))
        entry = self._entries.get(key)
        if entry is None:
            entry = PackedWeights(self._spec, self._program, self._dtype)
            self._entries[key] = entry
            # Nor must a replaced head keep the packed weights of the whole model.
            for tensor in tensors:
                weakref.finalize(tensor, self._entries.pop, key, None).atexit = False
        return entry
