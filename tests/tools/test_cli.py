"""The command line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resfuse.bench.models import make_model
from resfuse.cli.topology import cpu_list, read_topology


def run_resfuse(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "resfuse", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "400"},  # nothing is wrapped
    )


def test_info() -> None:
    result = run_resfuse("info")
    assert result.returncode == 0, result.stderr
    for word in ("ISA used", "NUMA", "threads", "OpenMP", "torch", "kernels", "libgomp"):
        assert word in result.stdout


def _write_cpus(root: Path, cpus: int, siblings: int, cluster: int, node: int) -> None:
    """What Linux says of a machine: CPUs with so many in a core, a cluster of one L3 and a NUMA node."""
    for cpu in range(cpus):
        for file, size in (("topology/thread_siblings_list", siblings), ("cache/index3/shared_cpu_list", cluster)):
            path = root / "cpu" / f"cpu{cpu}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{cpu // size * size}-{cpu // size * size + size - 1}\n")
    for number in range(cpus // node):
        path = root / "node" / f"node{number}" / "cpulist"
        path.parent.mkdir(parents=True)
        path.write_text(f"{number * node}-{number * node + node - 1}\n")


def test_topology(tmp_path: Path) -> None:
    _write_cpus(tmp_path, cpus=32, siblings=2, cluster=8, node=16)
    topology = read_topology(tmp_path, frozenset(range(32)))
    assert str(topology) == "16 cores, L3 shared by 4 + 4 + 4 + 4, 2 NUMA nodes"
    assert topology.advice(8) is None
    advice = topology.advice(16)
    assert advice
    assert "OMP_NUM_THREADS=8 numactl --cpunodebind=0 --membind=0" in advice
    part = read_topology(tmp_path, frozenset(range(4, 12)))  # taskset
    assert str(part) == "4 cores, L3 shared by 2 + 2, 1 NUMA node"
    assert part.advice(64) is None
    assert str(read_topology(tmp_path / "none", frozenset({0, 1}))) == "2 cores, 1 NUMA node"


def test_cpu_list() -> None:
    assert cpu_list("0-2,7,9-9\n") == {0, 1, 2, 7, 9}
    assert cpu_list("\n") == frozenset()


def test_verify() -> None:
    result = run_resfuse("verify", "--model", "seed", "--size", "16")
    assert result.returncode == 0, result.stderr
    assert "worst:" in result.stdout


def test_verify_names_an_unknown_model() -> None:
    result = run_resfuse("verify", "--model", "alexnet")
    assert result.returncode == 1
    assert "model: got 'alexnet'" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif("RESFUSE_DEMO_RAN" in os.environ, reason="CI has run the demo as the README has it")
def test_demo(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "demo.png"
    result = run_resfuse("demo", "--epochs", "1", "--output", str(picture))
    assert result.returncode == 0, result.stderr
    assert "held-out accuracy" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_classify(tmp_path: Path) -> None:
    """Two images of any size and one file that is none, through weights on disk."""
    torch.manual_seed(0)
    model = make_model("resnet18").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (300, 260, 3), np.uint8)
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:40, :90]).save(folder / "deeper" / "b.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    arguments = ["--weights", str(tmp_path / "weights.pt"), "--output", str(tmp_path / "classes.csv")]
    result = run_resfuse("classify", str(folder), "--model", "resnet18", *arguments)
    assert result.returncode == 0, result.stderr
    assert "left out" in result.stdout
    with (tmp_path / "classes.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"a.png", "deeper/b.png"}
    # As the command does it, for the first image.
    middle = np.asarray(Image.fromarray(pixels).resize((256, round(300 * 256 / 260)), Image.Resampling.BILINEAR))
    top, left = round((middle.shape[0] - 224) / 2), round((middle.shape[1] - 224) / 2)
    x = torch.from_numpy(middle[top : top + 224, left : left + 224].astype(np.float32) / 255)
    x = ((x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(2, 0, 1)[None]
    with torch.no_grad():
        probability, index = model(x).softmax(1).max(1)
    assert rows["a.png"]["class"] == str(int(index))
    assert float(rows["a.png"]["probability"]) == pytest.approx(float(probability), rel=1e-3)


def test_classify_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    result = run_resfuse("classify", str(tmp_path), "--weights", str(tmp_path / "weights.pt"))
    assert result.returncode == 1
    assert "has no images" in result.stderr
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = run_resfuse("classify", str(tmp_path), "--weights", str(tmp_path / "weights.pt"))
    assert result.returncode == 1
    assert "is no file of tensors" in result.stderr
