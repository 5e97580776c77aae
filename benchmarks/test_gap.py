"""Global average pooling against torch's and against a plain parallel read of the same bytes, in interleaved rounds.

``pytest benchmarks -k gap``. A target that lies above what memory allows on this machine (torch itself near the plain
read) is reported as such; then the share of the plain read is what must be reached.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from benchmarks.conftest import BandwidthRow
from resfuse import _core
from resfuse.bench.timing import interleaved
from resfuse.nn.functional import global_avg_pool2d

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
LEAST_SHARE = 0.85

# shape -> least ratio for fp32 NCHW, fp32 channels_last, bf16 in both
FORWARD = {
    (128, 2048, 7, 7): (1.0, 2.2, 15.0),
    (64, 2048, 7, 7): (1.0, 1.8, 3.5),
    (32, 256, 56, 56): (1.0, 1.9, 15.0),
    (16, 64, 112, 112): (1.0, 1.9, 15.0),
    (16, 512, 7, 7): (1.0, 1.0, 1.3),
    (1, 512, 7, 7): (1.0, 1.0, 1.3),
}
BACKWARD = {(64, 2048, 7, 7): (1.3, 4.0, 4.0)}


def _cases(targets: dict[tuple[int, ...], tuple[float, float, float]]) -> list[object]:
    cases = []
    for shape, (nchw, channels_last, half) in targets.items():
        for dtype, layout, target in (
            (torch.float32, "NCHW", nchw),
            (torch.float32, "channels_last", channels_last),
            (torch.bfloat16, "NCHW", half),
            (torch.bfloat16, "channels_last", half),
        ):
            name = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {layout}"
            cases.append(pytest.param(shape, dtype, layout, target, id=name))
    return cases


def _repeat(function: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


@pytest.mark.parametrize(("shape", "dtype", "layout", "target"), _cases(FORWARD))
def test_gap_forward(benchmark, record, request, shape, dtype, layout: str, target: float) -> None:
    x = torch.randn(shape).to(dtype).to(memory_format=LAYOUTS[layout])
    torch.testing.assert_close(global_avg_pool2d(x), F.adaptive_avg_pool2d(x, 1), rtol=2e-2, atol=1e-2)
    moved = x.numel() * x.element_size()
    small = moved < 4e6
    memory = (x.permute(0, 2, 3, 1) if layout == "channels_last" else x).view(torch.int16).numpy()
    times = 50 if small else 1
    contenders = {
        "resfuse": lambda: global_avg_pool2d(x),
        "torch": lambda: F.adaptive_avg_pool2d(x, 1),
        "read": lambda: _core.read_all(memory, torch.get_num_threads()),
    }
    with torch.no_grad():
        timings = interleaved({name: _repeat(f, times) for name, f in contenders.items()}, 41 if small else 21)
        benchmark.pedantic(contenders["resfuse"], rounds=5, warmup_rounds=1)
    ours, theirs, read = (timings[name].median / times for name in contenders)
    row = BandwidthRow(request.node.callspec.id, moved, ours, theirs, read, target, None if small else LEAST_SHARE)
    record(row)
    benchmark.extra_info.update(ratio=row.ratio, gigabytes_per_second=moved / ours / 1e9, share_of_read=row.share)
    assert row.verdict != "MISSED", (row.ratio, target)


@pytest.mark.parametrize(("shape", "dtype", "layout", "target"), _cases(BACKWARD))
def test_gap_forward_and_backward(benchmark, record, request, shape, dtype, layout: str, target: float) -> None:
    x = torch.randn(shape).to(dtype).to(memory_format=LAYOUTS[layout]).requires_grad_()
    grad = torch.randn(*shape[:2], 1, 1).to(dtype)
    contenders = {
        "resfuse": lambda: torch.autograd.grad(global_avg_pool2d(x), x, grad),
        "torch": lambda: torch.autograd.grad(F.adaptive_avg_pool2d(x, 1), x, grad),
    }
    torch.testing.assert_close(contenders["resfuse"](), contenders["torch"](), rtol=2e-2, atol=1e-5)
    timings = interleaved(contenders, 31)
    benchmark.pedantic(contenders["resfuse"], rounds=5, warmup_rounds=1)
    moved = 2 * x.numel() * x.element_size()
    ours, theirs = timings["resfuse"].median, timings["torch"].median
    row = BandwidthRow(f"{request.node.callspec.id}, forward + backward", moved, ours, theirs, None, target, None)
    record(row)
    benchmark.extra_info.update(ratio=row.ratio)
    assert row.verdict != "MISSED", (row.ratio, target)
