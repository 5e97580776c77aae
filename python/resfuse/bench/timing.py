"""Fair timing on a shared machine: contenders in interleaved rounds, medians, ratios inside one run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one contender over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third, seconds."""
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return first, third


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    progress: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Runs every contender once a round, in an order that rotates, and returns each one's times.

    Args:
        contenders: what to call, by name.
        rounds: counted rounds.
        warmup: calls of each contender before.
        progress: called after every call, warm-up included.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
            if progress is not None:
                progress()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
