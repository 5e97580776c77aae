"""Results of a benchmark, for tables and for files."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resfuse.bench.duel import Score
from resfuse.bench.machine import Ceiling


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """All engines on one model, batch and number of threads."""

    model: str
    batch: int
    size: int
    threads: int
    train: bool
    gflop: float  # of one call, 2 x the direct algorithm's multiply-adds; 0 where that is not what counts
    scores: dict[str, Score]
    complaints: tuple[str, ...]

    @property
    def title(self) -> str:
        """The case in words."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"{self.model}{' training' if self.train else ''}, batch {self.batch}, {self.size}x{self.size}, {threads}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One for each engine, the fastest first."""
        ours = self.scores["resfuse"].timing.median
        rows = []
        for score in sorted(self.scores.values(), key=lambda score: score.timing.median):
            median = score.timing.median
            first, third = score.timing.quartiles
            rows.append(
                {
                    "model": self.model,
                    "batch": self.batch,
                    "size": self.size,
                    "threads": self.threads,
                    "train": self.train,
                    "engine": score.engine,
                    "median_ms": median * 1e3,
                    "first_quartile_ms": first * 1e3,
                    "third_quartile_ms": third * 1e3,
                    "images_per_second": self.batch / median,
                    "effective_gflops": self.gflop / median,
                    "ratio_to_resfuse": median / ours,
                    "peak_mib": score.peak_bytes / 2**20,
                    "first_result_s": score.first_result_seconds,
                    "error_from_eager": score.error,
                    "path": score.path,
                }
            )
        return rows


def write_json(path: Path, machine: dict[str, str], ceiling: Ceiling, cases: Sequence[CaseResult]) -> None:
    """Everything that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = [row for case in cases for row in case.rows()]
    complaints = [complaint for case in cases for complaint in case.complaints]
    data = {"machine": machine, "ceiling": dataclasses.asdict(ceiling), "complaints": complaints, "results": results}
    path.write_text(json.dumps(data, indent=1))


def write_csv(path: Path, cases: Sequence[CaseResult]) -> None:
    """The rows as a spreadsheet takes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for case in cases for row in case.rows()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
