"""The benchmark command and the profile."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import resfuse
from resfuse.bench.machine import Watch, measure_ceiling, measure_handover
from resfuse.bench.models import LAYERS, make_model
from resfuse.bench.timing import Timing
from tests.tools.test_cli import run_resfuse


def _small() -> torch.nn.Module:
    model = resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=5, stem="cifar").eval()
    return resfuse.fuse(model)


def test_profile_names_every_layer(tmp_path: Path) -> None:
    fast = _small()
    x = torch.randn(3, 3, 24, 24)
    profile = resfuse.profile(fast, x, runs=3)
    assert [layer.name for layer in profile.layers] == [row.part for row in resfuse.report(fast).fused]
    assert all(layer.seconds >= 0 for layer in profile.layers)
    assert 0 < profile.seconds < 1
    first = profile.layers[0]
    assert first.effective_gflop == pytest.approx(2e-9 * 3 * 24 * 24 * 16 * 27)
    assert "layer1.0.conv1" in str(profile)
    trace = tmp_path / "trace.json"
    profile.chrome_trace(trace)
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event["name"] for event in events] == [layer.name for layer in profile.layers]
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)


def test_profile_of_a_model_fused_in_parts() -> None:
    class Opaque(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = resfuse.nn.BasicBlock(4, 4), resfuse.nn.BasicBlock(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(self.second(x)) if x.sum() > float("-inf") else x

    fast = resfuse.fuse(Opaque().eval())
    names = [layer.name for layer in resfuse.profile(fast, torch.randn(1, 4, 8, 8), runs=1).layers]
    assert sorted(names) == ["first.conv1", "first.conv2", "second.conv1", "second.conv2"]


def test_profile_refuses_what_it_cannot_time() -> None:
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(resfuse.UnsupportedModelError, match="is not fused"):
        resfuse.profile(make_model("seed").eval(), x)
    with pytest.raises(ValueError, match="runs: got 0, want a positive integer"):
        resfuse.profile(_small(), x, runs=0)
    with pytest.raises(ValueError, match="train mode"):
        resfuse.profile(_small().train(), x)


def test_torch_profiler_shows_programs_by_name() -> None:
    fast = _small()
    with torch.no_grad(), torch.profiler.profile() as profiler:
        fast(torch.randn(1, 3, 8, 8))
    assert any("resfuse: conv1 ... fc" in event.key for event in profiler.key_averages())


def test_ceiling_is_plausible() -> None:
    one = measure_ceiling(1)
    assert 1 < one.gflops < 1e4
    assert 0.1 < one.gigabytes < 1e4
    assert one.handover_ns == 0


def test_handover_is_plausible() -> None:
    assert 1e-9 < measure_handover(2) < 1e-2


def test_watch_complains() -> None:
    clocks, handovers = iter([3e9, 2e9]), iter([25e-9, 160e-9])
    watch = Watch(2, lambda: next(clocks), lambda threads: next(handovers))
    timings = [("calm", Timing((1.0, 1.01, 1.02, 1.0))), ("noisy", Timing((1.0, 1.5, 2.0, 1.0)))]
    complaints = watch.complaints(timings)
    assert any("clock fell from 3.00 to 2.00 GHz" in text for text in complaints)
    assert any("25 ns from core to core before and 160 ns behind" in text for text in complaints)
    assert any(text.startswith("noisy:") for text in complaints)
    assert not any(text.startswith("calm:") for text in complaints)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_size_that_they_say(name: str) -> None:
    from resfuse.bench.worker import make_case

    layer, x = make_case(name, 1, LAYERS[name][1], False)
    assert layer(x).shape[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_bench(tmp_path: Path, train: bool) -> None:
    files = {ending: tmp_path / f"results/bench.{ending}" for ending in ("json", "csv", "png")}
    result = run_resfuse(
        "bench", "--model", "basic4", "--model", "seed", "--batch", "2", "--threads", "2", "--rounds", "2",
        "--peers", "eager,channels_last", "--layers", *(["--train"] if train else []),
        "--json", str(files["json"]), "--csv", str(files["csv"]), "--plot", str(files["png"]),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "images/s" in result.stdout
    assert ("layer1.0.conv1" in result.stdout) is not train
    data = json.loads(files["json"].read_text())
    assert {row["engine"] for row in data["results"]} == {"resfuse", "eager", "channels_last"}
    assert {row["model"] for row in data["results"]} == {"basic4", "seed"}
    assert all(row["median_ms"] > 0 and row["error_from_eager"] < 0.1 for row in data["results"])
    assert data["ceiling"]["gflops"] > 0
    with files["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == len(data["results"])
    assert files["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--peers", "tvm"], "--peers: got 'tvm', want all or some of resfuse, eager"),
        (["--model", "alexnet"], "model: got 'alexnet'"),
        (["--model", "gap", "--train"], "gap has no parameters to train"),
        (["--dtype", "int4"], "got 'int4', want one of fp32, bf16, fp16, int8"),
        (["--dtype", "int8", "--train"], "got 'int8' with --train, want fp32, bf16 or fp16"),
        (["--batch", "0"], "--batch"),
    ],
)
def test_bench_bad_arguments(arguments: list[str], text: str) -> None:
    result = run_resfuse("bench", *arguments)
    assert result.returncode != 0
    assert text in " ".join(result.stderr.split())
