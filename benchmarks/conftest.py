"""Collects ratios from the benchmarks and prints them as one table at the end of the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from resfuse.inspect.tables import format_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: the peer's median over ours. Target 0: none."""

    what: str
    peer: str
    ours_ms: float
    peer_ms: float
    target: float
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.peer_ms / self.ours_ms


@dataclasses.dataclass(frozen=True)
class BandwidthRow:
    """A kernel that only moves memory: the peer, and a plain parallel read of the same bytes, beside ours."""

    what: str
    moved_bytes: int
    ours_seconds: float
    peer_seconds: float
    read_seconds: float | None  # None where the kernel writes as well
    target: float
    least_share: float | None  # of the plain read; None where a call's overhead is what counts

    @property
    def ratio(self) -> float:
        return self.peer_seconds / self.ours_seconds

    @property
    def share(self) -> float | None:
        return None if self.read_seconds is None else self.read_seconds / self.ours_seconds

    @property
    def verdict(self) -> str:
        """Empty where all is reached."""
        share_missed = self.least_share is not None and (self.share or 0.0) < self.least_share
        if self.ratio >= self.target:
            return f"read share < {self.least_share}" if share_missed else ""
        # Where the peer itself is near the plain read, no kernel can reach the ratio on this machine.
        if self.read_seconds is not None and self.peer_seconds / self.read_seconds < self.target and not share_missed:
            return f"bound by memory: at most {self.peer_seconds / self.read_seconds:.2f} here"
        return "MISSED"

    def gigabytes(self, seconds: float | None) -> str:
        return "" if seconds is None else f"{self.moved_bytes / seconds / 1e9:.1f}"


_ROWS: list[Row] = []
_BANDWIDTH_ROWS: list[BandwidthRow] = []
_FELL: list[str] = []


@pytest.fixture
def record():
    """Adds a row to the table of its kind."""

    def add(row: Row | BandwidthRow) -> None:
        (_BANDWIDTH_ROWS if isinstance(row, BandwidthRow) else _ROWS).append(row)  # type: ignore[arg-type]

    return add


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ratios")
    group.addoption("--ratios-json", type=Path, help="write this run's ratios to peers")
    group.addoption("--compare-ratios", type=Path, help="fail where a ratio is less than one written before")
    group.addoption("--ratio-tolerance", type=float, default=0.1, help="by how much it may be less (default 0.1)")


def _ratios() -> dict[str, float]:
    return {f"{row.what} | {getattr(row, 'peer', 'torch')}": row.ratio for row in (*_ROWS, *_BANDWIDTH_ROWS)}


def regressions(before: dict[str, float], now: dict[str, float], tolerance: float) -> list[str]:
    """Ratios of both runs that fell by more than the tolerance."""
    return [
        f"{key}: {now[key]:.2f}, was {ratio:.2f}"
        for key, ratio in before.items()
        if key in now and now[key] < ratio * (1 - tolerance)
    ]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keeps the ratios of this run, and fails it where they fell."""
    target, reference = (session.config.getoption(name) for name in ("ratios_json", "compare_ratios"))
    if target:
        target.write_text(json.dumps(_ratios(), indent=1))
    if reference:
        fell = regressions(json.loads(reference.read_text()), _ratios(), session.config.getoption("ratio_tolerance"))
        _FELL.extend(fell)
        if fell and session.exitstatus == 0:
            session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for text in _FELL:
        terminalreporter.write_line(f"ratio fell: {text}", red=True)
    if _ROWS:
        terminalreporter.section(f"ratios, {torch.get_num_threads()} threads, medians of interleaved rounds")
        _write_table(
            terminalreporter,
            ("what", "peer", "resfuse ms", "peer ms", "ratio", "target", ""),
            [
                (
                    r.what,
                    r.peer,
                    f"{r.ours_ms:.2f}",
                    f"{r.peer_ms:.2f}",
                    f"{r.ratio:.2f}",
                    f">= {r.target:g}" if r.target else "",
                    "; ".join(text for text in ("" if r.ratio >= r.target else "MISSED", r.note) if text),
                )
                for r in _ROWS
            ],
        )
    if _BANDWIDTH_ROWS:
        terminalreporter.section(
            f"GB/s, {torch.get_num_threads()} threads, medians of interleaved rounds, torch: F.adaptive_avg_pool2d"
        )
        _write_table(
            terminalreporter,
            ("what", "resfuse us", "resfuse", "torch", "plain read", "of the read", "ratio", "target", ""),
            [
                (
                    r.what,
                    f"{r.ours_seconds * 1e6:.1f}",
                    r.gigabytes(r.ours_seconds),
                    r.gigabytes(r.peer_seconds),
                    r.gigabytes(r.read_seconds),
                    "" if r.share is None else f"{r.share:.2f}",
                    f"{r.ratio:.2f}",
                    f">= {r.target:g}",
                    r.verdict,
                )
                for r in _BANDWIDTH_ROWS
            ],
        )


def _write_table(reporter: pytest.TerminalReporter, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for line in format_table(header, rows).splitlines():
        reporter.write_line(line)
