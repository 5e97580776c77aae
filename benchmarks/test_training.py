"""Training steps (forward, loss, backward) against torch, each engine in a process of its own, in interleaved rounds.

``pytest benchmarks -k training``. A target is the least ratio to the faster of eager channels_last and torch.compile;
a missed one fails the benchmark.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Row
from resfuse.bench.duel import duel

PEERS = ("eager", "channels_last", "compile")
# model, image size, batch: least ratio
TARGETS = {("resnet18", 224, 16): 1.6, ("resnet50", 224, 8): 1.35, ("seed", 32, 64): 1.6}


@pytest.mark.parametrize("threads", [2, 1])
@pytest.mark.parametrize("case", TARGETS, ids=[f"{c[0]}-b{c[2]}" for c in TARGETS])
def test_training(record, case: tuple[str, int, int], threads: int) -> None:
    model, size, batch = case
    scores = duel(["resfuse", *PEERS], model, batch=batch, size=size, threads=threads, rounds=7, train=True)
    ours = scores.pop("resfuse").timing.median
    fastest = min(("channels_last", "compile"), key=lambda name: scores[name].timing.median)
    for name, score in scores.items():
        goal = TARGETS[case] if name == fastest else 0.0
        what = f"{model}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}, training step"
        record(Row(what, name, ours * 1e3, score.timing.median * 1e3, goal))
    assert scores[fastest].timing.median / ours >= TARGETS[case]


def test_training_memory(record) -> None:
    """Peak resident memory of steps of ResNet-50, batch 8, above the model; in MiB."""
    scores = duel(["resfuse", "channels_last"], "resnet50", batch=8, rounds=2, train=True)
    ours, theirs = (scores[name].peak_bytes / 2**20 for name in ("resfuse", "channels_last"))
    record(Row("resnet50, batch 8, training, peak MiB", "channels_last", ours, theirs, 1 / 0.65))
    assert ours <= 0.65 * theirs
