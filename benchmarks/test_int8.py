"""int8 in inference: against our own fp32, OpenVINO (NNCF), ONNX Runtime (QDQ, by channel) and torch.compile (PT2E).

``pytest benchmarks -k int8``. The targets to the fastest int8 peer are for CPUs with int8 products (VNNI); without them
int8 must not be slower than our own fp32.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import Row
from resfuse import _core
from resfuse.bench import engines
from resfuse.bench.duel import duel

# model -> batch -> least ratio to the fastest int8 peer
TARGETS = {
    "resnet18": {1: 1.25, 16: 1.4},
    "resnet50": {1: 1.15, 16: 1.3},
    "resnext50_32x4d": {1: 1.15, 16: 1.25},
    "wide_resnet50_2": {1: 1.15, 16: 1.25},
    "seed": {1: 1.25, 64: 1.4},
}
HAS_INT8_PRODUCTS = _core.kernel_table(_core.active_isa())["multiplies_bytes"]
CASES = [(model, batch) for model, batches in TARGETS.items() for batch in batches]


@pytest.mark.parametrize(("model", "batch"), CASES)
def test_int8(record, model: str, batch: int) -> None:
    names = [name for name in engines.INT8_ENGINES if engines.installed(name, "int8")]
    forwards = 1 if batch > 1 else 10
    size = 32 if model == "seed" else 224
    scores = duel(names, model, batch=batch, size=size, rounds=7, forwards=forwards, dtype="int8")
    ours = scores.pop("resfuse").timing.median
    own = scores.pop("resfuse fp32").timing.median
    record(Row(f"{model} int8, batch {batch}", "resfuse fp32", ours * 1e3, own * 1e3, 1.0))
    peers = [score for name, score in scores.items() if not name.endswith(" fp32")]
    fastest = min(peers, key=lambda score: score.timing.median, default=None)
    for name, score in scores.items():
        target = TARGETS[model][batch] if score is fastest and HAS_INT8_PRODUCTS else 0.0
        note = f"{score.noise:.0f} dB"
        record(Row(f"{model} int8, batch {batch}", name, ours * 1e3, score.timing.median * 1e3, target, note))
    assert own / ours >= 1.0
    if HAS_INT8_PRODUCTS and fastest is not None:
        assert fastest.timing.median / ours >= TARGETS[model][batch]
