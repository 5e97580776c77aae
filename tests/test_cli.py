"""The command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _resfuse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resfuse", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "400"},  # nothing is wrapped
    )


def test_info() -> None:
    result = _resfuse("info")
    assert result.returncode == 0, result.stderr
    for word in ("ISA used", "threads", "OpenMP", "torch", "kernels", "libgomp"):
        assert word in result.stdout


def test_verify() -> None:
    result = _resfuse("verify", "--model", "seed", "--size", "16")
    assert result.returncode == 0, result.stderr
    assert "worst:" in result.stdout


def test_verify_names_an_unknown_model() -> None:
    result = _resfuse("verify", "--model", "alexnet")
    assert result.returncode == 1
    assert "model: got 'alexnet'" in result.stderr


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "demo.png"
    result = _resfuse("demo", "--epochs", "1", "--output", str(picture))
    assert result.returncode == 0, result.stderr
    assert "held-out accuracy" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
