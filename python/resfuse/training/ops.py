"""The training operators that torch sees: schema, CPU kernel, fake kernel and derivative, declared together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from resfuse.engine.spec import ConvSpec, ProgramSpec
from resfuse.training import block
from resfuse.training.batch_norm import statistics_dtype
from resfuse.training.split import reached_from, saved_tensors


@torch.library.custom_op(
    "resfuse::block",
    mutates_args=(),
    schema="(Tensor[] inputs, Tensor[] parameters, str program) -> Tensor[]",
    device_types="cpu",
)
def block_forward(
    inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], program: str
) -> list[torch.Tensor]:
    """Runs a block of convolutions, batch norms, sums, ReLUs and max-pools that can be differentiated.

    Args:
        inputs: [N, C, H, W] CPU tensors of one type: float32, bfloat16 or float16 for the fast kernels.
        parameters: numbered as the specification says; of that type, or float32.
        program: text of a `resfuse.engine.spec.ProgramSpec`; a batch norm whose running_mean is -1 normalises with the
            batch's own statistics.

    Returns:
        The program's outputs in channels_last memory, then what `resfuse.training.split.saved_tensors` names, through
        which no gradient flows.
    """
    with torch.no_grad():
        return block.forward(ProgramSpec.from_text(program), inputs, parameters)


@block_forward.register_fake
def _(inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], program: str) -> list[torch.Tensor]:
    spec = ProgramSpec.from_text(program)
    shapes = spec.buffer_shapes([x.shape for x in inputs])

    def feature_map(buffer: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shapes[buffer], dtype=dtype, device=inputs[0].device, memory_format=torch.channels_last)

    dtype = inputs[0].dtype
    results = [feature_map(output.buffer, dtype) for output in spec.outputs]
    for saved in saved_tensors(spec):
        layer = spec.layers[saved.layer]
        if saved.what in ("mean", "variance"):
            assert isinstance(layer, ConvSpec)
            results.append(inputs[0].new_empty(layer.out_channels, dtype=statistics_dtype(dtype)))
        else:
            results.append(feature_map(layer.output, torch.uint8 if saved.what == "taps" else dtype))
    return results


@torch.library.custom_op(
    "resfuse::block_backward",
    mutates_args=(),
    schema=(
        "(Tensor?[] grads, Tensor[] inputs, Tensor[] parameters, Tensor[] results, str program, bool[] wanted) "
        "-> Tensor[]"
    ),
    device_types="cpu",
)
def block_backward(
    grads: Sequence[torch.Tensor | None], inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor], program: str, wanted: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of `block` by its inputs and parameters; an empty tensor for each that is not wanted."""
    with torch.no_grad():
        backward = block.Backward(ProgramSpec.from_text(program), inputs, parameters, results, wanted)
        found = backward.run(grads)
    taken: set[int] = {g.data_ptr() for g in grads if g is not None}
    answers = []
    for gradient, want, like in zip(found, wanted, (*inputs, *parameters), strict=True):
        if not want:
            answers.append(like.new_empty(0))
        elif gradient is None:
            answers.append(torch.zeros_like(like))
        else:
            # An operator's results share no memory with each other or with its arguments.
            answers.append(gradient.clone() if gradient.numel() and gradient.data_ptr() in taken else gradient)
            taken.add(gradient.data_ptr())
    return answers


@block_backward.register_fake
def _(
    grads: Sequence[torch.Tensor | None], inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor], program: str, wanted: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    def like(x: torch.Tensor, is_input: bool) -> torch.Tensor:
        empty = torch.empty_like(x)
        return empty.contiguous(memory_format=torch.channels_last) if is_input else empty

    return [
        like(x, i < len(inputs)) if want else x.new_empty(0)
        for i, (x, want) in enumerate(zip((*inputs, *parameters), wanted, strict=True))
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    tensors, parameters, ctx.program = inputs
    ctx.inputs, ctx.parameters = len(tensors), len(parameters)
    ctx.outputs = len(ProgramSpec.from_text(ctx.program).outputs)
    ctx.mark_non_differentiable(*output[ctx.outputs :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *parameters, *output)


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    inputs, parameters = saved[: ctx.inputs], saved[ctx.inputs : ctx.inputs + ctx.parameters]
    reached = reached_from(ctx.program, tuple(g is not None for g in grads[: ctx.outputs]))
    wanted = [x.requires_grad and i in reached for i, x in enumerate((*inputs, *parameters))]
    if torch.is_grad_enabled():  # create_graph=True: somebody differentiates the gradients
        from resfuse.training.double_backward import (
            differentiable_gradients,  # imports the functions that import this file
        )

        spec = ProgramSpec.from_text(ctx.program)
        again = differentiable_gradients(spec, inputs, parameters, grads[: ctx.outputs], wanted)
        return again[: ctx.inputs], again[ctx.inputs :], None
    results = block_backward(
        grads[: ctx.outputs], inputs, parameters, saved[ctx.inputs + ctx.parameters :], ctx.program, wanted
    )
    found = [g if want else None for g, want in zip(results, wanted, strict=True)]
    return found[: ctx.inputs], found[ctx.inputs :], None


block_forward.register_autograd(_backward, setup_context=_setup)
