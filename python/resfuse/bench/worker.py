"""One engine in a process of its own: ``python -m resfuse.bench.worker``, driven over its standard streams.

Engines in one process disturb each other's thread pools. Requests are lines of JSON, and so are the answers: "build"
answers with the seconds to the first result, "run" with the seconds of each of some forwards, after one that is not
counted, and the peak resident memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resfuse.bench import engines
from resfuse.bench.models import input_channels, make_model, randomize_batch_norm


def make_case(model: str, batch: int, size: int, train: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    """The same network and input in every process."""
    torch.manual_seed(0)
    network = make_model(model).train(train)
    randomize_batch_norm(network)
    return network, torch.randn(batch, input_channels(network), size, size)


class _Worker:
    def __init__(self) -> None:
        self._run: engines.Runner | None = None

    def build(
        self, engine: str, model: str, batch: int, size: int, threads: int, folder: str, train: bool,
        dtype: str,
    ) -> dict[str, Any]:  # fmt: skip
        torch.set_num_threads(threads)
        network, x = make_case(model, batch, size, train)
        resident = _resident_bytes()
        start = time.perf_counter()
        self._run = engines.builder(engine, train, dtype)(network, x, Path(folder) / "model.onnx")
        result = self._run()
        seconds = time.perf_counter() - start
        np.save(Path(folder) / f"{engine}.npy", result)
        return {"first_result_seconds": seconds, "resident_before": resident, "path": engines.cpu_path(engine)}

    def run(self, forwards: int) -> dict[str, Any]:
        assert self._run is not None
        self._run()
        seconds = []
        for _ in range(forwards):
            start = time.perf_counter()
            self._run()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "peak_bytes": _peak_bytes()}


def _status_bytes(key: str) -> int:
    """A line of the process's status, which Linux gives in KiB."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


def _resident_bytes() -> int:
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    # Not getrusage's: that one starts at what the parent had when it forked.
    return _status_bytes("VmHWM")


def main() -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print, those in C++ too
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
