"""Denormal numbers cost no time: inputs and weights of them against ordinary ones, and what they cost torch."""

from __future__ import annotations

import copy

import pytest
import torch

import resfuse
from benchmarks.conftest import Row
from resfuse.bench.models import make_model
from resfuse.bench.timing import interleaved

MOST = 1.5  # times as slow


@pytest.mark.parametrize("what", ["input", "weights"])
def test_denormals_cost_no_time(record, what: str) -> None:
    model = make_model("resnet18").eval()
    x = torch.randn(2, 3, 224, 224).to(memory_format=torch.channels_last)
    tiny_model, tiny_x = copy.deepcopy(model), x
    if what == "input":
        tiny_x = x * 1e-39
    else:
        with torch.no_grad():
            for module in tiny_model.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.weight.mul_(1e-38)
    fast, tiny_fast = resfuse.fuse(model), resfuse.fuse(tiny_model)
    calls = {
        "ordinary": lambda: fast(x),
        "denormal": lambda: tiny_fast(tiny_x),
        "torch": lambda: model(x),
        "torch, denormal": lambda: tiny_model(tiny_x),
    }
    with torch.no_grad():
        times = {name: timing.median * 1e3 for name, timing in interleaved(calls, rounds=9).items()}
    record(
        Row(f"resnet18, batch 2, denormal {what}", "itself, ordinary", times["denormal"], times["ordinary"], 1 / MOST)
    )
    record(Row(f"the same, torch's own {what}", "itself, ordinary", times["torch, denormal"], times["torch"], 0.0))
    assert times["denormal"] <= MOST * times["ordinary"]
