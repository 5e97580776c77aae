"""Engines against each other on one model: a process each, timed in alternation, outputs compared before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfuse.bench import engines
from resfuse.bench.timing import Timing
from resfuse.bench.worker import make_case


class EngineError(RuntimeError):
    """An engine could not run the model, or its numbers are wrong."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One engine's part in a duel."""

    engine: str
    timing: Timing
    first_result_seconds: float
    peak_bytes: int  # resident, above what the process held before the engine was built
    error: float  # rms of the difference from eager's output over the output's rms
    path: str = ""  # which instructions the engine runs, as far as it says
    agreement: float | None = None  # share of images whose largest output is eager's, of classifiers

    @property
    def noise(self) -> float:
        """Signal-to-noise ratio of the output, decibels."""
        return -20 * math.log10(self.error) if self.error > 0 else math.inf


class _Process:
    """A worker that is stopped except while it is asked something: no spinning thread pool disturbs the others."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self._process = subprocess.Popen(
            [sys.executable, "-m", "resfuse.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        self._signal(signal.SIGSTOP)
        if not line:
            raise EngineError(f"{self.engine}: its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.engine}: {answer['error']}")
        return answer

    def _signal(self, number: int) -> None:
        # With its children: compilers run in processes of their own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def _processes(names: Sequence[str]) -> Iterator[list[_Process]]:
    processes = [_Process(name) for name in names]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def duel(
    names: Sequence[str],
    model: str,
    *,
    batch: int,
    size: int = 224,
    threads: int = 2,
    rounds: int = 7,
    forwards: int = 1,
    train: bool = False,
    dtype: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Score]:
    """Times engines on one model in rounds: each engine once a round, in an order that rotates.

    Args:
        names: of `resfuse.bench.engines.ENGINES`.
        model: a name for `make_model`; every process makes the same weights and input.
        batch, size: of the input.
        threads: of every engine.
        rounds: counted rounds.
        forwards: counted forwards of an engine in a round, after one that is not.
        dtype: of `resfuse.bench.engines.DTYPES`; training steps know no int8, and run under autocast in half precision.
        train: time training steps (forward, loss, backward) and compare gradients instead of outputs.
        progress: called with what begins: once for each engine that is built, once for each in every round.

    Returns:
        The scores by engine.

    Raises:
        EngineError: resfuse failed, or its output is further from eager torch's in fp32 than 1 % (rms; 10 % in half
            precision and for gradients, 30 % in int8, 20 % for gradients in bf16). A peer of which that is
            true is left out with a warning.
    """
    tell = progress or (lambda what: None)
    with tempfile.TemporaryDirectory() as folder, _processes(names) as processes:
        network, x = make_case(model, batch, size, train)
        expected = engines.reference(train, dtype)(network, x, Path())()
        if any(engines.needs_onnx(name) for name in names):
            engines.export_onnx(network, x, Path(folder) / "model.onnx")
        first: dict[str, dict[str, Any]] = {}
        errors: dict[str, float] = {}
        agreements: dict[str, float] = {}
        ready = []
        for process in processes:
            name = process.engine
            tell(f"building {name}")
            try:
                first[name] = process.ask(
                    do="build", engine=name, model=model, batch=batch, size=size, threads=threads, folder=folder,
                    train=train, dtype=dtype,
                )  # fmt: skip
                got = np.load(Path(folder) / f"{name}.npy")
                errors[name] = float(np.sqrt(np.square(got - expected).mean() / np.square(expected).mean()))
                if got.ndim == 2 and not train:
                    agreements[name] = float((got.argmax(1) == expected.argmax(1)).mean())
                most = (engines.MOST_GRADIENT_ERROR if train else engines.MOST_ERROR)[dtype]
                if not errors[name] < (max(most, 0.1) if "bf16" in name else most):
                    raise EngineError(f"{name}: its output is {errors[name]:.1%} away from eager torch's")
            except EngineError as error:
                if name == "resfuse":
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            ready.append(process)
        names = [process.engine for process in ready]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        peaks: dict[str, int] = {}
        for i in range(rounds):
            shift = i % len(ready)
            for process in ready[shift:] + ready[:shift]:
                tell(f"round {i + 1}: {process.engine}")
                answer = process.ask(do="run", forwards=forwards)
                seconds[process.engine] += answer["seconds"]
                peaks[process.engine] = answer["peak_bytes"]
        return {
            name: Score(
                name,
                Timing(tuple(seconds[name])),
                first[name]["first_result_seconds"],
                peaks[name] - first[name]["resident_before"],
                errors[name],
                first[name]["path"],
                agreements.get(name),
            )
            for name in names
        }
