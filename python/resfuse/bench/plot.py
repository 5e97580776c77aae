"""Pictures of a benchmark: bars of every engine, and where the layers stand under the machine's roof."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resfuse.bench.machine import Ceiling
from resfuse.bench.results import CaseResult
from resfuse.inspect.profile import Profile

_OURS, _PEER = "#d9480f", "#868e96"


def draw(path: Path, cases: Sequence[CaseResult], profiles: Sequence[Profile], ceiling: Ceiling, title: str) -> None:
    """Writes a picture; its ending says which kind (.png, .svg, .pdf)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(cases) + (1 if profiles else 0)
    figure, axes = plt.subplots(1, columns, figsize=(4.2 * columns, 3.6), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=False):
        _bars(axis, case)
    if profiles:
        _roofline(axes[0][-1], profiles, ceiling)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(axis: Any, case: CaseResult) -> None:
    scores = sorted(case.scores.values(), key=lambda score: score.timing.median, reverse=True)
    medians = [score.timing.median * 1e3 for score in scores]
    whiskers = [
        [m - score.timing.quartiles[0] * 1e3 for m, score in zip(medians, scores, strict=True)],
        [score.timing.quartiles[1] * 1e3 - m for m, score in zip(medians, scores, strict=True)],
    ]
    colours = [_OURS if score.engine == "resfuse" else _PEER for score in scores]
    axis.barh([score.engine for score in scores], medians, xerr=whiskers, color=colours, ecolor="#343a40", capsize=2)
    ours = case.scores["resfuse"].timing.median
    for i, score in enumerate(scores):
        ratio = "" if score.engine == "resfuse" else f"  {score.timing.median / ours:.2f} x"
        axis.text(0.01 * max(medians), i, f"{medians[i]:.1f} ms{ratio}", va="center", fontsize=8, color="white")
    axis.set_title(case.title, fontsize=9)
    axis.set_xlabel("ms, median and quartiles; less is better", fontsize=8)
    axis.tick_params(labelsize=8)


def _roofline(axis: Any, profiles: Sequence[Profile], ceiling: Ceiling) -> None:
    """Effective GFLOP/s of the convolutions, in order, against what multiply-adds could do at best."""
    for profile, marker in zip(profiles, itertools.cycle("o^sD")):
        layers = [layer for layer in profile.layers if layer.effective_gflop]
        winograd = [layer.algorithm.startswith("winograd") for layer in layers]
        for kind, colour in ((False, "#1971c2"), (True, _OURS)):
            chosen = [(i, layer.effective_gflops) for i, layer in enumerate(layers) if winograd[i] is kind]
            if chosen:
                axis.scatter(
                    *zip(*chosen, strict=True),
                    s=14,
                    marker=marker,
                    color=colour,
                    label="Winograd" if kind else "direct",
                )
    axis.axhline(ceiling.gflops, color="#343a40", lw=1, label=f"multiply-adds on registers: {ceiling.gflops:.0f}")
    batches = f" ({len(profiles)} cases: o, ^, ...)" if len(profiles) > 1 else ""
    axis.set_title(f"layers, in order{batches}", fontsize=9)
    axis.set_ylabel("effective GFLOP/s", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=7)
