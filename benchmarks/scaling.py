"""How calls would scale over 1 to 128 cores: the plan's own tasks, timed here, scheduled on more cores than there are.

python benchmarks/scaling.py [--model resnet50] [--batch 1 16 64] [--threads 1 2 4 ...] [--layers 16:16] [--plot FILE]

For every number of threads N the plan for N is made and its tasks are timed on one core, which plays each thread in
turn; `many_cores.py` then simulates N cores (its assumptions are options). "speed-up" is over the plan for one thread,
"efficiency" that by N.
With two cores or more the last table compares what was simulated for them with what they take.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

import resfuse
from resfuse import _core

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/scaling.py`
from benchmarks.many_cores import Machine, Simulation, StageKey, simulate, task_seconds
from resfuse.bench.machine import measure_ceiling
from resfuse.bench.models import make_model, randomize_batch_norm
from resfuse.engine.executor import RunRecord, recorded_runs

_MOST_LAYERS = 12


class Case:
    """One model at one batch, as one program."""

    def __init__(self, name: str, batch: int, size: int) -> None:
        model = make_model(name).eval()
        randomize_batch_norm(model)
        self.name, self.batch = name, batch
        self.fast = resfuse.fuse(model)
        self.x = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
        with torch.no_grad(), recorded_runs() as records:
            self.fast(self.x)
        if len(records) != 1:
            raise SystemExit(f"{name} runs as {len(records)} programs, want one")
        self._record: RunRecord = records[0]
        self.layer_names = [layer.name for layer in self._record.spec.layers]

    def times(self, threads: int, runs: int) -> tuple[_core.Plan, list[npt.NDArray[np.float64]]]:
        """The plan for so many threads, and the times of its tasks in some runs."""
        record = self._record
        plan, times = record.executor.task_times(record.inputs, record.parameters, threads, runs + 1)
        return plan, times[1:]

    def compared(self, threads: int, machine: Machine, rounds: int = 7) -> tuple[float, float]:
        """Seconds of a call, simulated and as it is: medians of rounds in turn, as machines change their pace."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        tasks, calls = [], []
        try:
            with torch.no_grad():
                for _ in range(rounds):
                    plan, times = self.times(threads, 1)
                    tasks += times
                    self.fast(self.x)
                    start = time.perf_counter()
                    self.fast(self.x)
                    calls.append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(before)
        stages = task_seconds(tasks, statistics.median)
        found = simulate(stages, memory_bytes(plan, stages, threads, machine), threads, machine, None)
        return found.seconds, statistics.median(calls)


def memory_bytes(
    plan: _core.Plan, stages: dict[StageKey, list[float]], threads: int, machine: Machine
) -> dict[StageKey, float]:
    """Weights that do not stay in the caches are read in each wave, feature maps as well where a wave's do not fit."""
    layers = plan.layers()
    room = threads * machine.cache
    weights = sum(row["packed_bytes"] for row in layers)
    sizes: dict[StageKey, float] = {}
    for key in stages:
        layer, _, stage = key
        if layer < 0 or stage > 0:
            continue
        row = layers[layer]
        images = row["images_per_wave"]
        maps = 4.0 * images * float(np.prod(row["output"]))
        sizes[key] = (row["packed_bytes"] if weights > room else 0.0) + (maps if 2 * maps > room else 0.0)
    return sizes


def layer_table(case: Case, found: Simulation) -> Table:
    """The layers that lose most."""
    table = Table(title=f"{case.name}, batch {case.batch}, {found.threads} threads")
    for column in ("layer", "tasks", "ms", "efficiency", "of all losses", "mostly by"):
        table.add_column(column, justify="left" if column in ("layer", "mostly by") else "right")
    lost = sum(loss.lost for loss in found.layers.values())
    worst = sorted(found.layers.items(), key=lambda item: -item[1].lost)[:_MOST_LAYERS]
    for layer, loss in worst:
        name = case.layer_names[layer] if layer >= 0 else "layout"
        spent = loss.work + loss.lost - loss.more  # core-seconds
        table.add_row(
            name, str(loss.tasks), f"{spent / found.threads * 1e3:.3f}", f"{1 - loss.lost / spent:.2f}",
            f"{loss.lost / lost:.0%}", loss.reason,
        )  # fmt: skip
    return table


def plot(path: Path, title: str, found: dict[int, list[Simulation]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for batch, simulations in found.items():
        threads = [s.threads for s in simulations]
        axes.plot(
            threads, [simulations[0].seconds / s.seconds for s in simulations], marker="o", label=f"batch {batch}"
        )
    axes.plot(threads, threads, color="0.7", linestyle="--", label="all cores busy")
    axes.set(xscale="log", yscale="log", xlabel="cores", ylabel="speed-up, simulated", title=title)
    axes.set_xticks(threads, [str(n) for n in threads])
    axes.set_yticks(threads, [str(n) for n in threads])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=5, help="of which each task's fastest counts")
    parser.add_argument("--layers", nargs="*", default=["1:8", "16:16", "64:64"], help="BATCH:THREADS to look into")
    parser.add_argument("--handover", type=float, default=60.0, help="ns that a cache line takes from core to core")
    parser.add_argument("--bandwidth", type=float, default=200.0, help="GB/s that all cores read from memory together")
    parser.add_argument("--cache", type=float, default=2.0, help="MiB per core")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    console = Console()
    torch.manual_seed(0)
    ceiling = measure_ceiling(1)
    machine = Machine(options.handover * 1e-9, ceiling.gigabytes * 1e9, options.bandwidth * 1e9, options.cache * 2**20)
    table = Table(title=f"{options.model}, {_core.active_isa()}, simulated", caption=f"{machine}")
    for column in ("batch", "cores", "ms", "images/s", "speed-up", "efficiency"):
        table.add_column(column, justify="right")
    details: list[Table] = []
    check = Table(title="the simulation and this machine")
    for column in ("batch", "cores", "simulated ms", "measured ms", "ratio"):
        check.add_column(column, justify="right")
    curves: dict[int, list[Simulation]] = {}
    for batch in options.batch:
        case = Case(options.model, batch, options.size)
        alone: Simulation | None = None
        for threads in options.threads:
            plan, times = case.times(threads, options.runs)
            stages = task_seconds(times, min)  # the others were interrupted
            moved = memory_bytes(plan, stages, threads, machine)
            found = simulate(stages, moved, threads, machine, alone)
            alone = alone or found
            curves.setdefault(batch, []).append(found)
            speed = alone.seconds / found.seconds * alone.threads
            table.add_row(
                str(batch), str(threads), f"{found.seconds * 1e3:.2f}", f"{batch / found.seconds:.0f}", f"{speed:.2f}",
                f"{speed / threads:.2f}",
            )  # fmt: skip
            if f"{batch}:{threads}" in options.layers:
                details.append(layer_table(case, found))
            if threads <= min(torch.get_num_threads(), 2):
                guess, measured = case.compared(threads, machine)
                check.add_row(
                    str(batch), str(threads), f"{guess * 1e3:.2f}", f"{measured * 1e3:.2f}", f"{guess / measured:.2f}"
                )  # fmt: skip
    for each in (table, *details, check):
        console.print(each)
    if options.plot:
        plot(options.plot, options.model, curves)


if __name__ == "__main__":
    main()
