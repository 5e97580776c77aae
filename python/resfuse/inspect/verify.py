"""`resfuse.verify`: a fused model against the same network in fp64, block by block."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from resfuse.capture.tracer import set_attribute, trace
from resfuse.checks import require_epsilon, require_module
from resfuse.engine.spec import AffineSpec, ConvSpec
from resfuse.errors import UnsupportedModelError, VerificationError
from resfuse.fused.module import FusedModule, fused_parts, require_fused
from resfuse.inspect.probe import probe
from resfuse.lowering.modules import is_leaf
from resfuse.lowering.steps import ProgramStep
from resfuse.quantization.sensitivity import agreement_of, tensors_of

# Errors below one unit in the last place of the output's rms are as good as none.
_FLOOR = 2.0**-24
_FEW = 64


@dataclasses.dataclass(frozen=True)
class VerificationRow:
    """Errors of one block's output, relative to the rms of the fp64 output."""

    part: str
    eager_rms: float
    fused_rms: float
    fused_max: float
    # Of few numbers eager's error may be small by luck: then the largest of the parts before counts, if it is larger.
    eager_before: float = 0.0

    @property
    def noise(self) -> float:
        """Signal-to-noise ratio of the fused output, decibels."""
        return -20 * math.log10(self.fused_rms) if self.fused_rms > 0 else math.inf

    @property
    def ratio(self) -> float:
        """The fused error over eager's."""
        return self.fused_rms / max(self.eager_rms, self.eager_before, _FLOOR)


@dataclasses.dataclass(frozen=True)
class Verification:
    """The rows of `verify`, the model's output last. ``str(verification)`` is a table."""

    rows: tuple[VerificationRow, ...]
    tolerance: float
    agreement: float | None = None  # of a quantised model: share of predictions that are the reference's
    reference: str = "fp64"

    @property
    def worst(self) -> VerificationRow:
        """The block whose error is largest against eager's."""
        return max(self.rows, key=lambda row: row.ratio)

    def __str__(self) -> str:
        width = max(len(row.part) for row in self.rows)
        if self.agreement is not None:
            lines = [f"{'part'.ljust(width)}  signal/noise  largest error"]
            lines += [f"{row.part.ljust(width)}  {row.noise:9.1f} dB  {row.fused_max:13.2e}" for row in self.rows]
            lines.append(f"int8: {self.agreement:.1%} of predictions are those of {self.reference}")
            return "\n".join(lines)
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

    A model that was fused in parts is compared at the output of each part, a graph that others quantised at its own
    output, with the graph itself. Of a quantised model the errors are those
    of its bytes: they have no tolerance. The signal-to-noise ratio of each block and the share of equal predictions
    tell what quantising costs.

    Args:
        model: the unfused model, in eval mode.
        fast: what `resfuse.fuse` made of it.
        inputs: tensors of the model's type to run both on.
        tolerance: how many times the rms error of eager torch, in the type that ``fast`` computes in, the fused rms
            error may be.

    Returns:
        The errors, block by block.

    Raises:
        VerificationError: an error past the tolerance; the text is the whole table.
        ValueError: a model in train mode.
        UnsupportedModelError: ``fast`` is not fused, or is another network than ``model``.
    """
    require_module("model", model)
    require_epsilon("tolerance", tolerance)
    parts = require_fused("fast", fast)
    if model.training or fast.training:
        raise ValueError(f"{'model' if model.training else 'fast'}: is in train mode, want eval()")
    for part in parts.values():
        reason = part.fusion().state_reason()
        if reason is not None:
            raise ValueError(f"fast: {reason}, so nothing would run fused")
    graph = any(_is_quantized_graph(part) for part in parts.values())
    compare = _as_a_whole if graph else _by_blocks if isinstance(fast, FusedModule) else _by_parts
    rows, results = compare(model, fast, inputs)
    for i, (e, g, f) in enumerate(zip(*(tensors_of(result) for result in results), strict=True)):
        before = max((row.eager_rms for row in rows), default=0.0) if e.numel() < _FEW else 0.0
        row = _row("output" if i == 0 else f"output {i}", e, g, f)
        rows.append(dataclasses.replace(row, eager_before=before))
    if graph or any(part._resfuse_ranges is not None for part in parts.values()):
        return _of_bytes(tuple(rows), tolerance, results, "the graph on torch" if graph else "fp64")
    verification = Verification(tuple(rows), tolerance)
    # NaN compares false with everything, so the test asks for what is good.
    if not all(row.ratio <= tolerance for row in rows):
        raise VerificationError(str(verification))
    return verification


def _of_bytes(rows: tuple[VerificationRow, ...], tolerance: float, results: Results, reference: str) -> Verification:
    verification = Verification(rows, tolerance, agreement_of([results[0]], [results[2]]), reference)
    if not all(math.isfinite(row.fused_rms) for row in rows):
        raise VerificationError(str(verification))
    return verification


Results = tuple[Any, Any, Any]  # of fp64, eager fp32 and fused


def _is_quantized_graph(part: FusedModule) -> bool:
    """Whether its graph was quantised by others: torch's operators for that take fp32 alone."""
    return any(bound.has_bytes for bound in part.fusion().binding.programs)


def _as_a_whole(
    model: nn.Module, fast: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[VerificationRow], Results]:
    with torch.no_grad():
        exact = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.double, model(*inputs))
        return [], (exact, exact, fast(*inputs))


def _by_blocks(
    model: nn.Module, fast: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[VerificationRow], Results]:
    assert isinstance(fast, FusedModule)

    def blocks(step: ProgramStep) -> list[int]:
        return [
            layer.output
            for layer in step.spec.layers
            if isinstance(layer, (ConvSpec, AffineSpec)) and layer.residual is not None
        ]

    trace_now = fast.fusion().binding_for(*inputs).lowered.trace
    if trace_now is not None and trace_now.keeps_state:  # as `_run_native` does
        with torch.no_grad():
            fast(*inputs)
    result, kept = probe(fast, inputs, blocks)
    fused: dict[str, torch.Tensor] = {}
    for step, buffers in kept.items():
        names = {layer.output: node.name for layer, node in zip(step.spec.layers, step.nodes, strict=True)}
        fused.update({names[buffer]: value for buffer, value in buffers.items()})
    with torch.no_grad():
        exact_result, exact = _run_native(copy.deepcopy(model).double(), [x.double() for x in inputs], set(fused))
        eager_model, eager_inputs = _eager(model, inputs, fast._resfuse_dtype)
        eager_result, eager = _run_native(eager_model, eager_inputs, set(fused))
    missing = set(fused) - set(exact)
    if missing:
        raise UnsupportedModelError(f"model: has no part {min(missing)!r}; want the model that fast was made from")
    # Sums in code that has channels as the last dimension.
    fused = {n: y if y.shape == exact[n].shape else y.permute(0, 2, 3, 1) for n, y in fused.items()}
    rows = [_row(name, exact[name], eager[name], fused[name]) for name in fused]
    return rows, (exact_result, eager_result, result)


def _by_parts(
    model: nn.Module, fast: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[VerificationRow], Results]:
    parts = dict(fused_parts(fast))
    missing = [path for path in parts if not _has(model, path)]
    if missing:
        raise UnsupportedModelError(f"model: has no part {missing[0]!r}; want the model that fast was made from")
    before = {path: part.fusion().fused_calls for path, part in parts.items()}
    exact_result, exact = _run_hooked(copy.deepcopy(model).double(), [x.double() for x in inputs], list(parts))
    dtype = next(iter(parts.values()))._resfuse_dtype
    eager_result, eager = _run_hooked(*_eager(model, inputs, dtype), list(parts))
    result, fused = _run_hooked(fast, list(inputs), list(parts))
    for path in fused:
        fusion = parts[path].fusion()
        if fusion.fused_calls == before[path]:
            raise ValueError(f"fast: {path} ran natively, because {fusion.native_reason}")
    rows = [
        _row(path if len(fused[path]) == 1 else f"{path} {i}", e, g, f)
        for path in fused
        for i, (e, g, f) in enumerate(zip(exact[path], eager[path], fused[path], strict=True))
    ]
    return rows, (exact_result, eager_result, result)


def _eager(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype | None
) -> tuple[nn.Module, list[torch.Tensor]]:
    """The plain model and its inputs in the type that the fused one computes in."""
    if dtype is None or all([x.dtype is dtype for x in inputs]):
        return model, list(inputs)
    return copy.deepcopy(model).to(dtype), [x.to(dtype) for x in inputs]


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _run_hooked(
    model: nn.Module, inputs: list[torch.Tensor], paths: list[str]
) -> tuple[Any, dict[str, list[torch.Tensor]]]:
    """A model's result, and what the modules at these paths gave at their last call."""
    kept: dict[str, list[torch.Tensor]] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[path] = [value.clone() for value in tensors_of(output)]

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        with torch.no_grad():
            return model(*inputs), kept
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is set_attribute:
            return None
        value = super().run_node(n)
        if n.name in self._wanted:
            self.values[n.name] = value.clone()  # an in-place layer may write to it
        return value


def _run_native(model: nn.Module, inputs: list[torch.Tensor], wanted: set[str]) -> tuple[Any, dict[str, torch.Tensor]]:
    traced = trace(model, is_leaf, tuple(inputs))
    if traced.keeps_state:  # of what it computed, as a detector's head does: from the second call on it only reads
        model = copy.deepcopy(model)
        with torch.no_grad():
            model(*inputs)
        traced = trace(model, is_leaf, tuple(inputs))
    recorder = _Recorder(fx.GraphModule(model, traced.graph), wanted)
    result = recorder.run(*inputs)
    return result, recorder.values


def _row(name: str, exact: torch.Tensor, eager: torch.Tensor, fused: torch.Tensor) -> VerificationRow:
    if exact.shape != fused.shape:
        raise UnsupportedModelError(f"{name}: shape {list(fused.shape)} fused, {list(exact.shape)} native")
    scale = max(float(exact.square().mean().sqrt()), 1e-30)

    def rms(value: torch.Tensor) -> float:
        return float((value.double() - exact).square().mean().sqrt()) / scale

    return VerificationRow(name, rms(eager), rms(fused), float((fused.double() - exact).abs().max()) / scale)
