"""Code of the README, the documentation and the examples runs as it stands."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import resfuse
from resfuse.bench.models import torchvision_models

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]
EXAMPLES = {
    "fuse_torchvision.py": (["resnet18", "--size", "64"], "torchvision", "worst:"),
    "fuse_timm.py": (["resnet18", "--size", "64"], "timm", "native: none"),
    "train.py": (["--epochs", "1"], "sklearn", "epoch 1:"),
    "class_activation_maps.py": ([], "sklearn", "wrote maps.png"),
    "classify_with_ray.py": ([], "ray", "of 100 digits read right"),
    "train_distributed.py": (["--check"], "sklearn", "20 of 20 steps ran fused"),
    "train_distributed.py --shard": (["--check"], "sklearn", "20 of 20 steps ran fused"),
}


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_docs_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torchvision" in block and torchvision_models() is None:
        pytest.skip("torchvision is not installed")
    if "torchao" in block and importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    monkeypatch.chdir(tmp_path)
    model = resfuse.models.resnet18().eval()
    if "model.resfuse" in block:  # what the block before it wrote
        preprocessing, labels = resfuse.Preprocessing((64, 64), 64), [str(i) for i in range(1000)]
        resfuse.save(
            resfuse.fuse(model), "model.resfuse", torch.randn(1, 3, 64, 64), preprocessing=preprocessing, labels=labels
        )
        Image.new("RGB", (80, 70)).save("photo.jpg")
    names = {"torch": torch, "resfuse": resfuse, "model": model, "x": torch.randn(4, 3, 64, 64)}
    names |= {"y": torch.randint(1000, (4,)), "fast": resfuse.fuse(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, "documentation", "exec"), names)  # our own text


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    arguments, needs, expected = EXAMPLES[name]
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if "distributed" in name else []
    file, *flags = name.split()
    command = [sys.executable, *launcher, str(ROOT / "examples" / file), *flags, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


def test_examples_are_all_tested() -> None:
    served = {"serve_with_fastapi.py"}  # test_deploy.py
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {name.split()[0] for name in EXAMPLES} | served


def test_docs_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
