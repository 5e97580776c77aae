"""Collects ratios from the benchmarks and prints them as one table at the end of the run."""

from __future__ import annotations

import dataclasses

import pytest
import torch


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: the peer's median over ours."""

    what: str
    peer: str
    ours_ms: float
    peer_ms: float
    target: float

    @property
    def ratio(self) -> float:
        return self.peer_ms / self.ours_ms


_ROWS: list[Row] = []


@pytest.fixture
def record():
    """Adds a row to the table."""
    return _ROWS.append


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _ROWS:
        return
    terminalreporter.section(f"ratios, {torch.get_num_threads()} threads, medians of interleaved rounds")
    header = ("what", "peer", "resfuse ms", "peer ms", "ratio", "target", "")
    lines = [header] + [
        (
            r.what,
            r.peer,
            f"{r.ours_ms:.2f}",
            f"{r.peer_ms:.2f}",
            f"{r.ratio:.2f}",
            f">= {r.target:g}",
            "" if r.ratio >= r.target else "MISSED",
        )
        for r in _ROWS
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        terminalreporter.write_line(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
