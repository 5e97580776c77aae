"""Half precision: bf16 and fp16 against our own fp32, torch and OpenVINO in the same type; training under autocast.

``pytest benchmarks -k "bf16 or fp16"``. Where the CPU has no bf16 products, half precision must not be slower than
fp32; torch takes seconds for an image there, so it is timed at batch 1 alone.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Row
from resfuse import _core
from resfuse.bench import engines
from resfuse.bench.duel import duel

# batch -> least ratio to our own fp32 (without bf16 products)
OWN = {1: 0.95, 16: 1.0}
HAS_BF16_PRODUCTS = _core.kernel_table(_core.active_isa())["multiplies_bf16"]


@pytest.mark.parametrize("batch", list(OWN))
@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", list(engines.HALF_ENGINES))
def test_half_precision(record, dtype: str, model: str, batch: int) -> None:
    names = ["resfuse", "resfuse fp32", *(["openvino"] if engines.installed("openvino", dtype) else [])]
    scores = duel(names, model, batch=batch, rounds=11, forwards=1 if batch > 1 else 10, dtype=dtype)
    ours = scores.pop("resfuse").timing.median
    for name, score in scores.items():
        target = OWN[batch] if name == "resfuse fp32" else 0.0
        record(Row(f"{model} {dtype}, batch {batch}", name, ours * 1e3, score.timing.median * 1e3, target))
    assert scores["resfuse fp32"].timing.median / ours >= OWN[batch]


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", list(engines.HALF_ENGINES))
def test_half_precision_and_torch(record, dtype: str, model: str) -> None:
    scores = duel(["resfuse", "torch"], model, batch=1, rounds=2, dtype=dtype)
    ours, theirs = (scores[name].timing.median for name in ("resfuse", "torch"))
    target = 1.2 if HAS_BF16_PRODUCTS else 5.0
    record(Row(f"{model} {dtype}, batch 1", "torch", ours * 1e3, theirs * 1e3, target))
    assert theirs / ours >= target


@pytest.mark.parametrize("dtype", list(engines.HALF_ENGINES))
def test_training_step(record, dtype: str) -> None:
    """Under autocast, ResNet-50, batch 8; torch's step takes minutes without bf16 products and is left out there."""
    peers = ["resfuse fp32", *(["channels_last", "compile"] if HAS_BF16_PRODUCTS and dtype == "bf16" else [])]
    scores = duel(["resfuse", *peers], "resnet50", batch=8, rounds=7, train=True, dtype=dtype)
    ours = scores.pop("resfuse").timing.median
    fastest = min(score.timing.median for score in scores.values())
    for name, score in scores.items():
        target = 1.1 if dtype == "bf16" and score.timing.median == fastest else 0.0
        record(
            Row(
                f"resnet50 {dtype} autocast, batch 8, training step",
                name,
                ours * 1e3,
                score.timing.median * 1e3,
                target,
            )
        )
    assert dtype != "bf16" or fastest / ours >= 1.1
