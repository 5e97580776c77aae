"""`resfuse.profile`: where a fused model's time goes, layer by layer."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import torch
from torch import nn

from resfuse.checks import require_positive
from resfuse.engine.executor import RunRecord, recorded_runs
from resfuse.fused.module import FusedModule, require_fused
from resfuse.inspect.report import what_of
from resfuse.inspect.tables import format_table


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One layer of a program: the median over the runs."""

    name: str
    what: str
    algorithm: str
    seconds: float
    effective_gflop: float  # 2 x the direct algorithm's multiply-adds

    @property
    def effective_gflops(self) -> float:
        """Effective operations per second, in 1e9."""
        return self.effective_gflop / self.seconds if self.seconds > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """The layers of all programs in the order in which they run. ``str(profile)`` is a table."""

    model: str
    threads: int
    layers: tuple[LayerProfile, ...]

    @property
    def seconds(self) -> float:
        """Of all layers."""
        return sum(layer.seconds for layer in self.layers)

    def __str__(self) -> str:
        total = self.seconds
        rows = [
            (
                layer.name,
                layer.what,
                layer.algorithm,
                f"{layer.seconds * 1e3:.3f}",
                f"{layer.seconds / total:.1%}",
                f"{layer.effective_gflops:.0f}" if layer.effective_gflop else "",
            )
            for layer in self.layers
        ]
        rows.append(("all", "", "", f"{total * 1e3:.3f}", "", f"{self._gflop / total:.0f}"))
        title = f"{self.model}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{title}\n{format_table(('layer', 'what', 'algorithm', 'ms', 'share', 'GFLOP/s'), rows)}"

    @property
    def _gflop(self) -> float:
        return sum(layer.effective_gflop for layer in self.layers)

    def chrome_trace(self, path: str | Path) -> None:
        """Writes the layers as a trace that chrome://tracing and ui.perfetto.dev show."""
        start = 0.0
        events = []
        for layer in self.layers:
            arguments = {"what": layer.what, "algorithm": layer.algorithm, "GFLOP/s": round(layer.effective_gflops, 1)}
            event = {"name": layer.name, "cat": "layer", "ph": "X", "pid": 0, "tid": 0}
            events.append({**event, "ts": start, "dur": layer.seconds * 1e6, "args": arguments})
            start += layer.seconds * 1e6
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def profile(model: nn.Module, *inputs: torch.Tensor, runs: int = 10) -> Profile:
    """Times every layer of a fused model, with a barrier behind each.

    What runs natively is not in it. Steps of one layer are counted together over the waves of a batch; a pool that a
    convolution computes is in that convolution.

    Args:
        model: what `resfuse.fuse` returned, in eval mode.
        inputs: the model's.
        runs: forwards, of which each layer's median counts, after one that does not.

    Returns:
        The layers of all programs.

    Raises:
        UnsupportedModelError: ``model`` is not fused.
        ValueError: ``runs`` is less than one, or the model runs natively in its present state.
    """
    require_positive("runs", runs)
    parts = require_fused("model", model)
    for part in parts.values():
        reason = part.fusion().not_as_programs()
        if reason is not None:
            raise ValueError(f"model: {reason}, so nothing would run fused")
    records: list[list[RunRecord]] = []
    with torch.no_grad():
        for _ in range(runs + 1):
            with recorded_runs() as run:
                model(*inputs)
            records.append(run)
    prefixes = _prefixes(parts)
    layers: list[LayerProfile] = []
    for same in zip(*records[1:], strict=True):  # a program's runs
        layers += _layers(same, prefixes[same[0].spec.to_text()].pop(0))
    return Profile(type(model).__name__, torch.get_num_threads(), tuple(layers))


def _prefixes(parts: dict[str, FusedModule]) -> dict[str, list[str]]:
    """Of the parts that hold each program, in order."""
    prefixes: dict[str, list[str]] = {}
    for path, part in parts.items():
        for bound in part.fusion().binding.programs:
            for text in {bound.text, bound.int8_text or bound.text}:  # one of which has run
                prefixes.setdefault(text, []).append(f"{path}." if path else "")
    return prefixes


def _layers(runs: tuple[RunRecord, ...], prefix: str) -> list[LayerProfile]:
    times = zip(*(run.seconds for run in runs), strict=True)
    return [
        LayerProfile(
            prefix + layer.name,
            what_of(layer),
            row["algorithm"],
            statistics.median(seconds),
            2e-9 * row["multiply_adds"],
        )
        for layer, row, seconds in zip(runs[0].spec.layers, runs[0].plan.layers(), times, strict=True)
    ]
