"""``resfuse bench``."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import resfuse
from resfuse.bench import engines
from resfuse.bench.duel import EngineError, duel
from resfuse.bench.machine import Ceiling, Watch, measure_ceiling
from resfuse.bench.models import default_size
from resfuse.bench.results import CaseResult, write_csv, write_json
from resfuse.bench.worker import make_case
from resfuse.cli.info import facts
from resfuse.inspect.profile import Profile


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure and where the results go."""

    models: list[str]
    batches: list[int]
    threads: list[int]
    size: int | None
    dtype: str
    train: bool
    peers: str
    rounds: int
    layers: bool
    json: Path | None
    csv: Path | None
    plot: Path | None


def run(options: Options) -> None:
    """Measures, and prints a table for each case; exits with 1 where it cannot."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)
    peers = _peers(options.peers, options.train, options.dtype)
    cases = [(m, b, t) for m in options.models for b in options.batches for t in options.threads]
    results: list[CaseResult] = []
    profiles: list[Profile] = []
    ceilings = {threads: measure_ceiling(threads) for threads in options.threads}
    try:
        for model, batch, threads in cases:
            result = _measure(console, options, peers, model, batch, threads)
            results.append(result)
            console.print(_table(result, ceilings[threads]))
            for complaint in result.complaints:
                console.print(f"[yellow]not to be trusted:[/] {complaint}", highlight=False)
            if (options.layers or options.plot) and not options.train and model != "gap":
                profiles.append(_profile(model, batch, result.size, threads, options.dtype))
                if options.layers:
                    console.print(str(profiles[-1]), highlight=False)
    except KeyboardInterrupt:
        console.print("stopped; what was measured so far is kept" if results else "stopped")
    except (EngineError, ValueError) as error:
        sys.exit(f"resfuse bench: {error}")
    if not results:
        sys.exit(130)
    _write(options, results, profiles, ceilings[results[0].threads])


def _peers(text: str, train: bool, dtype: str) -> list[str]:
    known = list(engines.engines_of(dtype, train))
    if text == "all":
        return [name for name in known if train or engines.installed(name, dtype)]
    names = ["resfuse", *(name.strip() for name in text.split(",") if name.strip() != "resfuse")]
    for name in names:
        if name not in known:
            sys.exit(f"resfuse bench: --peers: got {name!r}, want all or some of {', '.join(known)}")
        if not train and not engines.installed(name, dtype):
            sys.exit(f"resfuse bench: --peers: {name} is not installed (pip install 'resfuse[peers]')")
    return names


def _measure(console: Console, options: Options, peers: list[str], model: str, batch: int, threads: int) -> CaseResult:
    size = options.size or default_size(model)
    if model == "gap" and options.train:
        raise ValueError("model: gap has no parameters to train; pytest benchmarks -k gap times its gradient")
    network, x = make_case(model, batch, size, options.train)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(x[:1])
    gflop = counter.get_total_flops() * batch * 1e-9
    del network, x
    # Short calls are repeated, so that each engine is timed in its steady state.
    forwards = max(1, min(50, int(0.3 * 50 * threads / max(gflop * (3 if options.train else 1), 1e-3))))
    watch = Watch(threads)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = bar.add_task(model, total=len(peers) * (options.rounds + 1))

        def progress(what: str) -> None:
            bar.update(task, advance=1, description=f"{model}, batch {batch}: {what}")

        scores = duel(
            peers, model, batch=batch, size=size, threads=threads, rounds=options.rounds, forwards=forwards,
            train=options.train, dtype=options.dtype, progress=progress,
        )  # fmt: skip
    left_out = [str(w.message) for w in caught if str(w.message).startswith("left out")]
    complaints = [*left_out, *watch.complaints((name, score.timing) for name, score in scores.items())]
    name = model if options.dtype == "fp32" else f"{model} {options.dtype}"
    return CaseResult(
        name, batch, size, threads, options.train, 0.0 if options.train else gflop, scores, tuple(complaints)
    )


def _table(result: CaseResult, ceiling: Ceiling) -> Table:
    paths: dict[str, list[str]] = {}
    for score in result.scores.values():
        paths.setdefault(score.path, []).append(score.engine)
    caption = (
        "kernels: " + "; ".join(f"{path} ({', '.join(names)})" for path, names in paths.items()) + "\n"
        f"this machine, measured: {ceiling.gflops:.0f} GFLOP/s of multiply-adds on registers, "
        f"{ceiling.gigabytes:.0f} GB/s read from memory"
        + (f", {ceiling.handover_ns:.0f} ns from core to core" if ceiling.handover_ns else "")
    )
    table = Table(title=result.title, caption=caption, title_justify="left", caption_justify="left", box=None)
    names = ["engine", "ms", "quartiles", "images/s", "GFLOP/s", "ratio", "MiB", "first s"]
    loses = result.model.endswith(" int8")  # so what it loses is told
    for name in [*names, "noise"] if loses else names:
        table.add_column(name, justify="left" if name == "engine" else "right", no_wrap=True)
    for row in result.rows():
        gflops = row["effective_gflops"]
        table.add_row(
            row["engine"],
            f"{row['median_ms']:.2f}",
            f"{row['first_quartile_ms']:.2f} - {row['third_quartile_ms']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{gflops:.0f}" if gflops else "",
            f"{row['ratio_to_resfuse']:.2f} x",
            f"{row['peak_mib']:.0f}",
            f"{row['first_result_s']:.1f}",
            *([f"{result.scores[row['engine']].noise:.0f} dB"] if loses else []),
            style="bold" if row["engine"] == "resfuse" else "",
        )
    return table


def _profile(model: str, batch: int, size: int, threads: int, dtype: str) -> Profile:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network, x = make_case(model, batch, size, False)
        return resfuse.profile(*engines.fast_model(network.eval(), x, dtype))
    finally:
        torch.set_num_threads(before)


def _write(options: Options, results: list[CaseResult], profiles: list[Profile], ceiling: Ceiling) -> None:
    machine = facts()
    if options.json:
        write_json(options.json, machine, ceiling, results)
    if options.csv:
        write_csv(options.csv, results)
    if options.plot:
        from resfuse.bench.plot import draw

        title = f"{machine['CPU']}, {machine['ISA used'].split(' ')[0]}, torch {machine['torch']}"
        draw(options.plot, results, profiles, ceiling, title)
