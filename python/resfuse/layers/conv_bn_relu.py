"""Functional forms of the layers that hold parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resfuse.checks import pair_of, require_epsilon, require_positive, require_tensor
from resfuse.engine import ops
from resfuse.engine.spec import BatchNormSpec, ConvSpec, OutputSpec, ProgramSpec
from resfuse.training import ops as training_ops
from resfuse.training.batch_norm import update_running_statistics, values_per_channel
from resfuse.training.split import saved_tensors


def conv_bn_relu(
    x: torch.Tensor,
    weight: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
) -> torch.Tensor:
    """``relu(F.batch_norm(F.conv2d(x, weight, ...), ...) + residual)`` in fused kernels, differentiable once.

    Args:
        x: [N, C, H, W]; float32, bfloat16 or float16 (others run on torch's kernels where a gradient is asked for).
        weight: [K, C / groups, R, S].
        running_mean, running_var: [K]; updated in place where ``training``.
        bn_weight, bn_bias: [K] or None.
        bias: [K] or None, of the convolution.
        residual: [N, K, OH, OW] or None, added before the ReLU.
        stride, padding, dilation, groups: as in ``F.conv2d``.
        training: normalise with the batch's own statistics.
        momentum, eps: as in ``F.batch_norm``.
        relu: whether ReLU follows.

    Returns:
        [N, K, OH, OW] in channels_last memory.

    Raises:
        TypeError, ValueError: for tensors that do not fit, naming what they are and what is wanted.
    """
    require_tensor("x", x)
    require_tensor("weight", weight)
    require_positive("groups", groups)
    require_epsilon("eps", eps)
    if weight.dim() != 4:
        raise ValueError(f"weight: got shape {list(weight.shape)}, want [K, C / groups, R, S]")
    if weight.shape[0] % groups:
        raise ValueError(f"groups: got {groups}, want a divisor of the {weight.shape[0]} output channels")
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"x: got shape {list(x.shape)}, want [N, {weight.shape[1] * groups}, H, W]")
    channels = weight.shape[0]
    vectors = {"running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight, "bn_bias": bn_bias,
               "bias": bias}  # fmt: skip
    if running_mean is None or running_var is None:
        raise TypeError("running_mean, running_var: got None, want tensors [K]")
    tensors = {"weight": weight, **vectors, "residual": residual}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        require_tensor(name, tensor)
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise TypeError(f"{name}: got {tensor.dtype} on {tensor.device}, want {x.dtype} on {x.device} as x")
    for name, vector in vectors.items():
        if vector is not None and list(vector.shape) != [channels]:
            raise ValueError(f"{name}: got shape {list(vector.shape)}, want [{channels}]")
    if residual is not None and residual.dim() != 4:
        raise ValueError(f"residual: got shape {list(residual.shape)}, want [N, {channels}, OH, OW]")
    parameters: list[torch.Tensor] = [weight]

    def place(tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        parameters.append(tensor)
        return len(parameters) - 1

    learns = training or torch.is_grad_enabled()
    bias_place, gamma, beta = place(bias), place(bn_weight), place(bn_bias)
    mean, var = (-1, -1) if training else (place(running_mean), place(running_var))
    (top, left), inputs = pair_of("padding", padding, 0), (x,) if residual is None else (x, residual)
    layer = ConvSpec(
        "conv_bn_relu",
        0,
        len(inputs),
        x.shape[1],
        channels,
        0,
        bias_place,
        BatchNormSpec(gamma, beta, mean, var, eps),  # type: ignore[arg-type]
        (weight.shape[2], weight.shape[3]),
        pair_of("stride", stride, 1),
        pair_of("dilation", dilation, 1),
        (top, left, top, left),
        groups,
        "relu" if relu else "none",
        None if residual is None else 1,
    )
    spec = ProgramSpec(tuple(t.shape[1] for t in inputs), (layer,), (OutputSpec(len(inputs)),))
    shape = spec.output_shapes([t.shape for t in inputs])[0]
    if residual is not None and list(residual.shape) != shape:
        raise ValueError(f"residual: got shape {list(residual.shape)}, want {shape}")
    if not learns:
        return ops.run_program(inputs, parameters, spec.to_text())[0]
    results = training_ops.block_forward(inputs, parameters, spec.to_text())
    y: torch.Tensor = results[0]
    if training:
        count = values_per_channel(y.shape)
        saved = {s.what: results[1 + i] for i, s in enumerate(saved_tensors(spec))}
        update_running_statistics(running_mean, running_var, saved["mean"], saved["variance"], momentum, count)
    return y
