"""One OpenMP runtime, the same bits for any number of threads, many Python threads on one model."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import resfuse
from resfuse import _core
from resfuse.bench.models import make_model, randomize_batch_norm


def _fused(name: str) -> torch.nn.Module:
    model = make_model(name).eval()
    randomize_batch_norm(model)
    return resfuse.fuse(model)


@pytest.mark.parametrize("data", ["", "from resfuse.data import load_digits; load_digits();"])
def test_one_openmp_runtime_is_mapped(data: str) -> None:
    code = (
        "import torch, resfuse; from resfuse.cli.info import openmp_runtimes;" + data + "torch.set_num_threads(2);"
        "m = resfuse.fuse(resfuse.models.ResNet('basic', [1], width=8, num_classes=3).eval());"
        "torch.set_grad_enabled(False); m(torch.randn(2, 3, 64, 64)); torch.randn(999, 999) @ torch.randn(999, 999);"
        "r = openmp_runtimes(); assert len(r) == 1 and 'torch' in r[0], r"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "size"), [("resnet18", 96), ("resnet50", 64), ("seed", 32)])
@pytest.mark.parametrize("batch", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(name: str, size: int, batch: int) -> None:
    fast = _fused(name)
    x = torch.randn(batch, 3, size, size)
    results = []
    with torch.no_grad():
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(fast(x))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_position_in_the_batch_does_not_matter_under_a_pinned_algorithm() -> None:
    model = make_model("resnet18").eval()
    randomize_batch_norm(model)
    fast = resfuse.fuse(model, algorithm="direct")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        alone = fast(x)
        batch = fast(torch.cat([torch.randn(3, 3, 64, 64), x, torch.randn(2, 3, 64, 64)]))
    assert torch.equal(alone[0], batch[3])


def test_several_python_threads_call_one_model() -> None:
    fast = _fused("resnet18")
    inputs = [torch.randn(1 + i % 3, 3, 64, 64) for i in range(8)]

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return fast(x)

    expected = [call(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(expected, pool.map(call, inputs), strict=True))


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


@pytest.mark.parametrize("isa", _core.available_isas())
def test_isa_can_be_forced(isa: str) -> None:
    code = (
        "import torch, resfuse; from resfuse import _core; assert _core.active_isa() == '" + isa + "';"
        # Errors of a few numbers are chance: many outputs, the same ones each time.
        "torch.manual_seed(0); x = torch.randn(8, 3, 40, 40);"
        "m = resfuse.models.ResNet('basic', [1], width=16, num_classes=100).eval();"
        "resfuse.verify(m, resfuse.fuse(m), x)"
    )
    result = _python(code, RESFUSE_ISA=isa)
    assert result.returncode == 0, result.stderr


def test_an_unknown_isa_is_a_clear_error() -> None:
    result = _python("import resfuse; resfuse._core.active_isa()", RESFUSE_ISA="sse9")
    assert result.returncode != 0
    assert "RESFUSE_ISA=sse9" in result.stderr
    assert "want one of generic, avx2, avx512, avx512_bf16" in result.stderr
