"""`resfuse.verify`: a fused model against the same network in fp64, block by block."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import fx, nn

from resfuse.errors import UnsupportedModelError, VerificationError
from resfuse.fused_module import FusedModule, fused_parts
from resfuse.lowering.steps import ProgramStep
from resfuse.lowering.tracer import trace
from resfuse.probe import probe
from resfuse.runtime.spec import AffineSpec, ConvSpec

# Errors below one unit in the last place of the output's rms are as good as none.
_FLOOR = 2.0**-24


@dataclasses.dataclass(frozen=True)
class VerificationRow:
    """Errors of one block's output, relative to the rms of the fp64 output."""

    part: str
    eager_rms: float
    fused_rms: float
    fused_max: float

    @property
    def ratio(self) -> float:
        """The fused error over eager's."""
        return self.fused_rms / max(self.eager_rms, _FLOOR)


@dataclasses.dataclass(frozen=True)
class Verification:
    """The rows of `verify`, the model's output last. ``str(verification)`` is a table."""

    rows: tuple[VerificationRow, ...]
    tolerance: float

    @property
    def worst(self) -> VerificationRow:
        """The block whose error is largest against eager's."""
        return max(self.rows, key=lambda row: row.ratio)

    def __str__(self) -> str:
        width = max(len(row.part) for row in self.rows)
        lines = [f"{'part'.ljust(width)}  eager rms  fused rms  fused max  ratio"]
        lines += [
            f"{row.part.ljust(width)}  {row.eager_rms:9.2e}  {row.fused_rms:9.2e}  {row.fused_max:9.2e}  "
            f"{row.ratio:5.2f}"
            for row in self.rows
        ]
        lines.append(f"worst: {self.worst.part}, {self.worst.ratio:.2f} x eager's error (tolerance {self.tolerance:g})")
        return "\n".join(lines)


def verify(model: nn.Module, fast: nn.Module, *inputs: torch.Tensor, tolerance: float = 4.0) -> Verification:
    """Compares a fused model with the unfused one, both against fp64, after each residual block and at the output.

    Args:
        model: the unfused model, in eval mode.
        fast: what `resfuse.fuse` made of it.
        inputs: float32 tensors to run both on.
        tolerance: how many times eager fp32's rms error the fused rms error may be.

    Returns:
        The errors, block by block.

    Raises:
        VerificationError: an error past the tolerance; the text is the whole table.
        ValueError: a model in train mode.
        UnsupportedModelError: ``fast`` is not fused, or is another network than ``model``.
    """
    if not isinstance(fast, FusedModule):
        parts = [path for path, _ in fused_parts(fast)]
        what = f"was fused in {len(parts)} parts ({parts[0]}, ...); verify those" if parts else "is not fused"
        raise UnsupportedModelError(f"fast: {type(fast).__name__} {what}; want a model that was fused as a whole")
    if model.training or fast.training:
        raise ValueError(f"{'model' if model.training else 'fast'}: is in train mode, want eval()")
    reason = fast.fusion().binding.native_reason()
    if reason is not None:
        raise ValueError(f"fast: {reason}, so nothing would run fused")

    def blocks(step: ProgramStep) -> list[int]:
        return [
            layer.output
            for layer in step.spec.layers
            if isinstance(layer, (ConvSpec, AffineSpec)) and layer.residual is not None
        ]

    result, kept = probe(fast, inputs, blocks)
    fused: dict[str, torch.Tensor] = {}
    for step, buffers in kept.items():
        names = {layer.output: node.name for layer, node in zip(step.spec.layers, step.nodes, strict=True)}
        fused.update({names[buffer]: value for buffer, value in buffers.items()})
    with torch.no_grad():
        exact_result, exact = _run_native(copy.deepcopy(model).double(), [x.double() for x in inputs], set(fused))
        eager_result, eager = _run_native(model, list(inputs), set(fused))
    missing = set(fused) - set(exact)
    if missing:
        raise UnsupportedModelError(f"model: has no part {min(missing)!r}; want the model that fast was made from")
    rows = [_row(name, exact[name], eager[name], fused[name]) for name in fused]
    for i, (e, g, f) in enumerate(zip(_flat(exact_result), _flat(eager_result), _flat(result), strict=True)):
        rows.append(_row("output" if i == 0 else f"output {i}", e, g, f))
    verification = Verification(tuple(rows), tolerance)
    # NaN compares false with everything, so the test asks for what is good.
    if not all(row.ratio <= tolerance for row in rows):
        raise VerificationError(str(verification))
    return verification


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            self.values[n.name] = value.clone()  # an in-place layer may write to it
        return value


def _run_native(model: nn.Module, inputs: list[torch.Tensor], wanted: set[str]) -> tuple[Any, dict[str, torch.Tensor]]:
    recorder = _Recorder(fx.GraphModule(model, trace(model).graph), wanted)
    result = recorder.run(*inputs)
    return result, recorder.values


def _flat(result: Any) -> list[torch.Tensor]:
    flat: list[torch.Tensor] = []
    torch.utils._pytree.tree_map_only(torch.Tensor, flat.append, result)
    return flat


def _row(name: str, exact: torch.Tensor, eager: torch.Tensor, fused: torch.Tensor) -> VerificationRow:
    if exact.shape != fused.shape:
        raise UnsupportedModelError(f"{name}: shape {list(fused.shape)} fused, {list(exact.shape)} native")
    scale = max(float(exact.square().mean().sqrt()), 1e-30)

    def rms(value: torch.Tensor) -> float:
        return float((value.double() - exact).square().mean().sqrt()) / scale

    return VerificationRow(name, rms(eager), rms(fused), float((fused.double() - exact).abs().max()) / scale)
