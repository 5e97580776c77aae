"""What a machine can do and whether it is quiet: the frame in which a benchmark's numbers stand."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from resfuse import _core
from resfuse.bench.timing import Timing

_BANDWIDTH_BYTES = 256 << 20
_NOISY_SPREAD = 0.15  # quartiles apart, of the median
_SLOWER_CLOCK = 0.9
_BUSY = 0.1
_FARTHER = 2.0


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Measured limits of some threads together."""

    gflops: float  # 2 x multiply-adds per second on registers, in 1e9
    gigabytes: float  # per second, read from memory
    handover_ns: float  # of a cache line from the first thread's core to the last one's; 0: one thread


def measure_ceiling(threads: int) -> Ceiling:
    """Takes about half a second."""
    memory = np.ones(_BANDWIDTH_BYTES // 4, np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _core.read_all(memory, threads)
        seconds.append(time.perf_counter() - start)
    multiply_adds = _core.measure_multiply_adds(threads)
    return Ceiling(
        2e-9 * multiply_adds, _BANDWIDTH_BYTES / statistics.median(seconds) / 1e9, measure_handover(threads) * 1e9
    )


def measure_handover(threads: int) -> float:
    """Seconds that a cache line takes from the first thread's core to the last one's; the median of five."""
    return statistics.median(_core.measure_handover(threads) for _ in range(5))


def _processor_times() -> tuple[int, int] | None:
    """(stolen by the hypervisor, all) ticks since boot, where Linux tells them."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:]]
    return ticks[7], sum(ticks[:8])


class Watch:
    """Looks at the machine before and after a benchmark."""

    def __init__(
        self,
        threads: int = 1,
        measure_clock: Callable[[], float] = _core.measure_clock,
        handover: Callable[[int], float] = measure_handover,
    ) -> None:
        self._measure_clock = measure_clock
        self._measure_handover = functools.partial(handover, threads)
        self._clock = measure_clock()
        self._handover = self._measure_handover()
        self._times = _processor_times()

    def complaints(self, timings: Iterable[tuple[str, Timing]]) -> list[str]:
        """Why the numbers should not be trusted; empty where they may be."""
        found = []
        clock = self._measure_clock()
        if clock < _SLOWER_CLOCK * self._clock:
            found.append(f"the clock fell from {self._clock / 1e9:.2f} to {clock / 1e9:.2f} GHz: the machine throttles")
        handover = self._measure_handover()
        if max(handover, self._handover) > _FARTHER * min(handover, self._handover):
            found.append(
                f"a cache line took {self._handover * 1e9:.0f} ns from core to core before and {handover * 1e9:.0f} ns "
                "behind: the host moved them from or to ones that share an L3"
            )
        before, after = self._times, _processor_times()
        if before is not None and after is not None and after[1] > before[1]:
            stolen = (after[0] - before[0]) / (after[1] - before[1])
            if stolen > _BUSY:
                found.append(f"{stolen:.0%} of the processors' time went to other guests of this machine")
        for name, timing in timings:
            first, third = timing.quartiles
            spread = (third - first) / timing.median
            if spread > _NOISY_SPREAD:
                found.append(
                    f"{name}: a quarter of its times is {spread:.0%} above another quarter: too noisy to trust"
                )
        return found
