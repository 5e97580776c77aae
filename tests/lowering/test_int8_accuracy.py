"""int8 on real images, as `benchmarks/int8_accuracy.py` measures it for docs/accuracy.md, on a smaller scale."""

from __future__ import annotations

import pytest
import torch
from benchmarks import int8_accuracy
from benchmarks.int8_accuracy import compare, digit_problem, networks, train

pytest.importorskip("sklearn")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ResNet-18", "ResNet-26"])
def test_digits_in_noise_are_read_as_well_as_in_fp32(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not torch.compile's, which sets Inductor to freezing for the whole process.
    engines = {name: quantize for name, quantize in int8_accuracy.quantizers().items() if name != "compile"}
    monkeypatch.setattr(int8_accuracy, "quantizers", lambda: engines)
    problem = digit_problem(0.5)
    model = networks(problem.classes, width=32)[network]
    train(model, problem, images=8000)
    exact, *results = compare(model, problem, test=2048)
    assert 0.8 < exact.top1 < 0.995, "a task that tells nothing"
    tops = {result.engine: result.top1 for result in results}
    ours = tops.pop("resfuse")
    assert ours >= exact.top1 - 0.01  # half a point, and what chance does to 2,048 images
    for top1 in tops.values():  # of the engines that are installed
        assert ours >= top1 - 0.012
    assert torch.get_num_threads() == 2
