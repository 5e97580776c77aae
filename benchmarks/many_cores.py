"""How a plan's tasks would run on more cores than there are: its queue, simulated, with barriers and a shared memory.

What is measured is the time of every task of the plan for N threads: one core plays each thread in turn, through all
layers, so that it finds in its caches what that thread's core would. What is assumed is a machine: what a barrier of N
threads costs and what they read from memory together.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

Seconds = float
# A stage of a layer's step in one wave of images: its tasks run together, and a barrier follows.
StageKey = tuple[int, int, int]  # layer, first image, stage


@dataclasses.dataclass(frozen=True)
class Machine:
    """Cores that are all alike."""

    handover: Seconds = 60e-9  # of a cache line from core to core
    core_bandwidth: float = 20e9  # bytes per second that one core reads from memory
    bandwidth: float = 200e9  # that all read together
    cache: float = 2 * 2**20  # bytes per core, L2 and its part of L3

    def barrier(self, threads: int) -> Seconds:
        """libgomp's: every thread in turn counts down in one cache line, then all read another."""
        return 0.0 if threads == 1 else (threads + 1) * self.handover

    def read(self, size: float, threads: int) -> Seconds:
        """Of bytes from memory."""
        return size / min(threads * self.core_bandwidth, self.bandwidth)


@dataclasses.dataclass
class LayerLoss:
    """Core-seconds of a layer on N threads: its work, and what the others' waiting costs."""

    work: Seconds = 0.0
    more: Seconds = 0.0  # of it, what one thread's plan does not need: caches are used less well, operands made twice
    tasks: int = 0
    few: Seconds = 0.0  # there are fewer tasks than threads
    uneven: Seconds = 0.0  # some end before others
    barrier: Seconds = 0.0
    memory: Seconds = 0.0  # longer than the tasks take

    @property
    def lost(self) -> Seconds:
        return self.more + self.few + self.uneven + self.barrier + self.memory

    @property
    def reason(self) -> str:
        losses = {
            "slower tasks": self.more,
            "too few tasks": self.few,
            "uneven tasks": self.uneven,
            "barriers": self.barrier,
            "memory": self.memory,
        }
        return max(losses, key=lambda name: losses[name])


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A call on N threads."""

    threads: int
    seconds: Seconds
    layers: Mapping[int, LayerLoss]


def task_seconds(
    runs: Iterable[npt.NDArray[np.float64]], typical: Callable[[list[Seconds]], Seconds]
) -> dict[StageKey, list[Seconds]]:
    """What ``typical`` makes of each task's times over some runs, by stage."""
    times: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for rows in runs:
        for layer, image, stage, task, seconds in rows:
            times[layer, image, stage, task].append(seconds)
    stages: dict[StageKey, dict[int, Seconds]] = {}
    for (layer, image, stage, task), seconds in times.items():
        stages.setdefault((int(layer), int(image), int(stage)), {})[int(task)] = typical(seconds)
    return {key: [tasks[i] for i in range(len(tasks))] for key, tasks in stages.items()}


def makespan(tasks: list[Seconds], threads: int) -> Seconds:
    """When the last task ends: each thread works through its own share, then takes what others have not begun."""
    shares = [(len(tasks) * v // threads, len(tasks) * (v + 1) // threads) for v in range(threads)]
    following = [begin for begin, _ in shares]
    free = [(0.0, thread, 0) for thread in range(threads)]  # when, who, whose share it is at
    end = 0.0
    while free:
        now, thread, offset = heapq.heappop(free)
        while offset < threads:
            victim = (thread + offset) % threads
            if following[victim] < shares[victim][1]:
                break
            offset += 1
        if offset == threads:
            continue
        task, following[victim] = following[victim], following[victim] + 1
        end = max(end, now + tasks[task])
        heapq.heappush(free, (now + tasks[task], thread, offset))
    return end


def simulate(
    stages: Mapping[StageKey, list[Seconds]],
    memory_bytes: Mapping[StageKey, float],
    threads: int,
    machine: Machine,
    alone: Simulation | None,
) -> Simulation:
    """``memory_bytes``: what stages read from memory; missing ones read nothing. ``alone``: the call on one thread."""
    layers: dict[int, LayerLoss] = defaultdict(LayerLoss)
    total = 0.0
    for key, tasks in stages.items():
        span, loss = makespan(tasks, threads), layers[key[0]]
        limit = machine.read(memory_bytes.get(key, 0.0), threads)
        work = sum(tasks)
        idle = threads * span - work
        few = min(max(threads - len(tasks), 0) * span, idle)
        loss.work += work
        loss.tasks += len(tasks)
        loss.few += few
        loss.uneven += idle - few
        loss.memory += threads * max(limit - span, 0.0)
        loss.barrier += threads * machine.barrier(threads)
        total += max(span, limit) + machine.barrier(threads)
    if alone:
        for layer, loss in layers.items():
            loss.more = max(loss.work - alone.layers[layer].work, 0.0)
    return Simulation(threads, total, layers)
