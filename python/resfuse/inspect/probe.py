"""Looking inside fused programs: the same programs run with more of their buffers as outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from resfuse.engine import ops
from resfuse.engine.spec import OutputSpec
from resfuse.fused.module import FusedModule
from resfuse.lowering.binding import BoundProgram
from resfuse.lowering.steps import ProgramStep

Wanted = Callable[[ProgramStep], Iterable[int]]


def probe(
    model: FusedModule, args: tuple[Any, ...], wanted: Wanted
) -> tuple[Any, dict[ProgramStep, dict[int, torch.Tensor]]]:
    """Runs a fused model and keeps chosen buffers.

    Args:
        model: the fused model; it runs fused whatever its state, so it must be in eval mode.
        args: its positional arguments.
        wanted: for a program step, the numbers of the buffers to keep.

    Returns:
        The model's result, and for each program step its kept buffers as [N, C, H, W].
    """
    kept: dict[ProgramStep, dict[int, torch.Tensor]] = {}

    def run_program(
        bound: BoundProgram, inputs: list[torch.Tensor], parameters: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        spec = bound.step.spec
        present = {output.buffer: i for i, output in enumerate(spec.outputs)}
        extra = [buffer for buffer in dict.fromkeys(wanted(bound.step)) if buffer not in present]
        if any(buffer < len(spec.inputs) for buffer in extra):
            raise ValueError("wanted: an input of a program cannot be kept")
        longer = bound.with_outputs([*spec.outputs, *(OutputSpec(buffer) for buffer in extra)])
        results = ops.run_program(inputs, [*parameters, *bound.means], longer.to_text(), (), model._resfuse_dtype)
        by_buffer = {output.buffer: result for output, result in zip(longer.outputs, results, strict=True)}
        kept[bound.step] = {
            buffer: value if value.dim() == 4 else value[:, :, None, None]
            for buffer in wanted(bound.step)
            for value in [by_buffer[buffer]]
        }
        return list(results[: len(spec.outputs)])

    with torch.no_grad():
        result = model.fusion().binding_for(*args).run(model, args, run_program)
    return result, kept
