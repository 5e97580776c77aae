"""The operators that torch sees: schema, CPU kernel and fake kernel, declared together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resfuse.engine.executor import DTYPES, Executor, executor_of
from resfuse.engine.planes import to_contiguous
from resfuse.engine.spec import ProgramSpec


def executor_for(text: str, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> Executor:
    """That of the first input's and the first parameter's type; it refuses others."""
    dtype = inputs[0].dtype if inputs and inputs[0].dtype in DTYPES else torch.float32
    stored = parameters[0].dtype if parameters and parameters[0].dtype in DTYPES else dtype
    return executor_of(text, dtype, stored)


@torch.library.custom_op(
    "resfuse::program",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor[] parameters, str program) -> Tensor[]",
    device_types="cpu",
)
def program(inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], program: str) -> list[torch.Tensor]:
    """Runs a fused program.

    Args:
        inputs: CPU tensors [N, C, H, W] of any strides, all float32, all bfloat16 or all float16.
        parameters: tensors of one of these types, numbered as the specification says.
        program: text of a `resfuse.engine.spec.ProgramSpec`.

    Returns:
        The program's outputs, of the inputs' type: [N, C, H, W] in channels_last memory, or [N, C].

    Raises:
        TypeError, ValueError: for inputs that do not fit, naming what they are and what is wanted.
    """
    return executor_for(program, inputs, parameters).run(inputs, parameters)


@program.register_fake
def _(inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], program: str) -> list[torch.Tensor]:
    shapes = ProgramSpec.from_text(program).output_shapes([x.shape for x in inputs])
    first = inputs[0]
    formats = [torch.channels_last if len(shape) == 4 else torch.contiguous_format for shape in shapes]
    return [
        torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=memory_format)
        for shape, memory_format in zip(shapes, formats, strict=True)
    ]


def run_program(
    inputs: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    text: str,
    planes: tuple[int, ...] = (),
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """The operator's result; where nothing listens to the dispatcher, without its 0.2 ms for a hundred parameters.

    ``planes`` are the numbers of the outputs that come back in contiguous memory. The program computes in ``dtype``,
    where that is given, and takes and returns tensors of the inputs' type.
    """
    if dtype is not None and dtype is not inputs[0].dtype:
        results = run_program([x.to(dtype) for x in inputs], parameters, text, planes)
        return [y.to(inputs[0].dtype) for y in results]
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or not all([type(x) is torch.Tensor and x.is_cpu for x in inputs])
    ):
        results = program(inputs, parameters, text)
        return [to_contiguous(y) if i in planes else y for i, y in enumerate(results)]
    executor = executor_for(text, inputs, parameters)
    if not torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        return executor.run(inputs, parameters, planes)
    layers = executor.spec.layers
    with torch.profiler.record_function(f"resfuse: {layers[0].name} ... {layers[-1].name} ({len(layers)} layers)"):
        return executor.run(inputs, parameters, planes)
