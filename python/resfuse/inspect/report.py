"""`resfuse.report`: what of a model is fused, what runs as it did and why."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from resfuse import _core
from resfuse.engine.spec import (
    AffineSpec,
    AvgPoolSpec,
    ChannelShuffleSpec,
    ConcatSpec,
    ConvSpec,
    DepthToSpaceSpec,
    LayerSpec,
    MaxPoolSpec,
    NormSpec,
    PadSpec,
    ProgramSpec,
    Range,
    ResizeSpec,
    SliceSpec,
)
from resfuse.fused.module import fusion_reason, require_fused
from resfuse.inspect.tables import format_table
from resfuse.layers.global_avg_pool import FusedPool
from resfuse.lowering.binding import BoundProgram

if TYPE_CHECKING:
    import rich.console


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """One part of a model."""

    part: str
    fused: bool
    what: str
    algorithm: str = ""  # fused parts, once they have run
    packed_bytes: int = 0
    effective_gflop: float = 0.0  # of the last call, 2 x the direct algorithm's multiply-adds
    effective_gflops: float = 0.0  # per second: the cost model's estimate, of all threads
    precision: str = ""  # of a quantised model's whole programs: "int8" or "fp32"
    range: str = ""  # the real numbers that its output's bytes stand for
    noise: float | None = None  # signal-to-noise ratio on the calibration data, decibels


@dataclasses.dataclass(frozen=True)
class Report:
    """All parts of a model, and how its calls went so far: a table as text, for rich and in notebooks."""

    model: str
    state: str
    rows: tuple[ReportRow, ...]
    fused_calls: int
    native_calls: int
    last_native_reason: str | None

    @property
    def fused(self) -> list[ReportRow]:
        """The fused parts."""
        return [row for row in self.rows if row.fused]

    @property
    def native(self) -> list[ReportRow]:
        """The parts that run as they did."""
        return [row for row in self.rows if not row.fused]

    def __str__(self) -> str:
        return "\n".join([*self._summary(), "", format_table(self._header(), map(self._cells, self.rows))])

    def __rich__(self) -> rich.console.RenderableType:
        """For ``rich.print``."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold")
        for title in self._header():
            table.add_column(title, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in self._cells(row)), style="" if row.fused else "yellow")
        return Group(*(Text(line) for line in self._summary()), Text(), table)

    def _repr_html_(self) -> str:
        """For notebooks."""

        def line(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        summary = "<br>".join(html.escape(text) for text in self._summary())
        body = "".join(line(self._cells(row), "td") for row in self.rows)
        return f"<p>{summary}</p><table><thead>{line(self._header(), 'th')}</thead><tbody>{body}</tbody></table>"

    @property
    def quantized(self) -> bool:
        """Whether whole programs compute with bytes."""
        return any(row.precision == "int8" for row in self.rows)

    def _header(self) -> tuple[str, ...]:
        return (*_HEADER, *_INT8_HEADER) if self.quantized else _HEADER

    def _cells(self, row: ReportRow) -> tuple[str, ...]:
        return (*_cells(row), *_int8_cells(row)) if self.quantized else _cells(row)

    def _summary(self) -> list[str]:
        packed = sum(row.packed_bytes for row in self.rows) / 2**20
        calls = f"calls: {self.fused_calls} fused, {self.native_calls} native"
        if self.last_native_reason:
            calls += f" (the last because {self.last_native_reason})"
        return [
            f"{self.model}: {len(self.fused)} parts fused, {len(self.native)} native, "
            f"{packed:.1f} MiB of packed weights",
            f"now: {self.state}",
            calls,
        ]


_HEADER = ("part", "", "what", "algorithm", "packed", "GFLOP", "GFLOP/s (estimate)")
_INT8_HEADER = ("computes in", "output's range", "signal/noise")


def _cells(row: ReportRow) -> tuple[str, ...]:
    return (
        row.part,
        "fused" if row.fused else "native",
        row.what,
        row.algorithm or ("(not run yet)" if row.fused else ""),
        f"{row.packed_bytes / 2**20:.2f} MiB" if row.packed_bytes else "",
        f"{row.effective_gflop:.3f}" if row.effective_gflop else "",
        f"{row.effective_gflops:.0f}" if row.effective_gflops else "",
    )


def _int8_cells(row: ReportRow) -> tuple[str, ...]:
    return row.precision, row.range, "" if row.noise is None else f"{row.noise:.1f} dB"


def report(model: nn.Module) -> Report:
    """What of a fused model is fused, what is not and why.

    Algorithms, bytes and operations are those of the last call of a program (they depend on the input's size). The
    effective GFLOP/s (direct algorithm's operations per second) are what the cost model expects of a quiet machine at
    the core's measured clock, not a measurement of the model.

    Raises:
        TypeError: ``model`` is no module.
        UnsupportedModelError: ``model`` was not fused.
    """
    parts = require_fused("model", model)
    rows: list[ReportRow] = []
    reasons: list[str] = []
    for path, part in parts.items():
        prefix = f"{path}." if path else ""
        graph = part.fusion().present
        if graph.binding is None:
            rows.append(ReportRow(path or type(model).__name__, False, graph.reason))
        else:
            for bound in graph.binding.programs:
                rows += [dataclasses.replace(row, part=prefix + row.part) for row in _program_rows(bound)]
            rows += [ReportRow(prefix + step.node.name, False, step.reason) for step in graph.binding.lowered.natives]
        reason = fusion_reason(graph)
        if reason is not None:
            reasons.append(prefix + reason)
    if "" not in parts:
        rows += _rows_outside(model, list(parts))
    fusions = [part.fusion() for part in parts.values()]
    return Report(
        type(model).__name__,
        _state(len(parts), reasons, any(row.precision == "int8" for row in rows)),
        tuple(rows),
        sum(fusion.fused_calls for fusion in fusions),
        sum(fusion.native_calls for fusion in fusions),
        next((fusion.native_reason for fusion in reversed(fusions) if fusion.native_reason), None),
    )


def _state(parts: int, reasons: list[str], quantized: bool) -> str:
    if not reasons and quantized:
        return (
            "int8 as whole programs in eval mode without gradients, fp32 block by block where gradients are asked for"
        )
    if not reasons:
        return "fused: as whole programs in eval mode without gradients, block by block where gradients are asked for"
    who = "all parts run" if len(reasons) == parts else f"{len(reasons)} of {parts} parts run"
    return f"{who} natively, because {reasons[0]}"


def _rows_outside(model: nn.Module, parts: list[str]) -> list[ReportRow]:
    """The layers of a model that could not be traced as a whole, outside of its fused parts."""
    rows = []
    for path, module in model.named_modules():
        if any(path == part or path.startswith(f"{part}.") for part in parts) or list(module.children()):
            continue
        if isinstance(module, FusedPool):
            rows.append(ReportRow(path, True, "global average pool", "kernel"))
        else:
            rows.append(ReportRow(path, False, "in a module that torch.fx cannot trace"))
    return rows


@functools.cache
def _clock() -> float:
    return _core.measure_clock()


def _program_rows(bound: BoundProgram) -> list[ReportRow]:
    plan, rows = bound.last_plan, []
    if plan is None:
        rows = [ReportRow(layer.name, True, what_of(layer)) for layer in bound.step.spec.layers]
    else:
        rows = _planned_rows(bound, plan)
    spec = bound.int8 or bound.step.spec
    if not spec.has_bytes:
        return rows
    noise = {} if bound.ranges is None else bound.ranges.noise
    return [
        dataclasses.replace(
            row,
            precision="int8" if _computes_bytes(layer, spec) else "fp32",
            range=_range_text(spec.ranges.get(layer.output)),
            noise=noise.get(layer.name) if isinstance(layer, ConvSpec) else None,
        )
        for row, layer in zip(rows, spec.layers, strict=True)
    ]


def _computes_bytes(layer: LayerSpec, spec: ProgramSpec) -> bool:
    written = not isinstance(layer, ConvSpec) and layer.output in spec.ranges
    return written or spec.computes_bytes(layer)


def _range_text(held: Range | None) -> str:
    if held is None:
        return ""
    scale, zero = held
    return f"{-zero * scale:.3g} to {(255 - zero) * scale:.3g}"


def _planned_rows(bound: BoundProgram, plan: _core.Plan) -> list[ReportRow]:
    clock = _clock()
    return [
        ReportRow(
            layer.name,
            True,
            what_of(layer),
            f"{row['algorithm']} x{row['images_per_wave']}",
            row["packed_bytes"],
            2e-9 * row["multiply_adds"],
            2e-9 * row["multiply_adds"] / row["estimated_cycles"] * clock if row["estimated_cycles"] else 0.0,
        )
        for layer, row in zip(bound.step.spec.layers, plan.layers(), strict=True)
    ]


def what_of(layer: LayerSpec) -> str:
    """A layer in words."""
    if isinstance(layer, MaxPoolSpec):
        return f"max-pool {layer.kernel_size[0]}x{layer.kernel_size[1]} /{layer.stride[0]}"
    if isinstance(layer, AvgPoolSpec):
        return f"average pool {layer.kernel_size[0]}x{layer.kernel_size[1]} /{layer.stride[0]}"
    if isinstance(layer, AffineSpec):
        parts = [
            "batch norm" if layer.batch_norm else "",
            "gate" if layer.gate is not None else "",
            "multiply" if layer.product is not None or layer.channel_scale is not None else "",
            "add" if layer.residual is not None else "",
            layer.activation if layer.activation != "none" else "",
        ]
        return " + ".join(part for part in parts if part) or "convert"
    if isinstance(layer, NormSpec):
        parts = [
            f"group norm {layer.groups}" if layer.groups else "layer norm",
            "add" if layer.residual is not None else "",
            layer.activation if layer.activation != "none" else "",
        ]
        return " + ".join(part for part in parts if part)
    if isinstance(layer, ConcatSpec):
        return f"concatenate {len(layer.parts)}"
    if isinstance(layer, SliceSpec):
        return f"channels {layer.first_channel} to {layer.first_channel + layer.channels}"
    if isinstance(layer, PadSpec):
        return "pad " + " ".join(map(str, layer.padding))
    if isinstance(layer, DepthToSpaceSpec):
        return f"channels to {layer.block[0]}x{layer.block[1]} pixels"
    if isinstance(layer, ChannelShuffleSpec):
        return f"channel shuffle of {layer.groups}"
    if isinstance(layer, ResizeSpec):
        return "upsample " + ("bilinear" if layer.bilinear else "nearest")
    if not isinstance(layer, ConvSpec):
        return "global average pool"
    kernel = f"conv {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    if layer.stride != (1, 1):
        kernel += f" /{layer.stride[0]}"
    if layer.groups > 1:
        kernel += f" groups {layer.groups}"
    parts = [
        f"{kernel} {layer.in_channels}->{layer.out_channels}",
        "batch norm" if layer.batch_norm else "",
        "add" if layer.residual is not None else "",
        layer.activation if layer.activation != "none" else "",
    ]
    return " + ".join(part for part in parts if part)
