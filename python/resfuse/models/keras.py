"""Weights of a Keras network for the same network here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from resfuse.models.blocks import BasicBlock
from resfuse.models.resnet import ResNet


def load_keras_weights(model: ResNet, keras_model: Any) -> None:
    """Copies the weights of a Keras ResNet of basic blocks into the same network here.

    Keras keeps kernels as [height, width, in, out] and dense kernels as [in, out]. Convolutions are matched by kernel
    shape in the order in which they compute, batch norms by the convolution that they follow. Functional, Sequential
    and subclassed Keras models are read, nested ones too.

    Args:
        model: made by `resfuse.models.ResNet` with block "basic".
        keras_model: a built Keras 3 model (any backend): convolutions without or with zero bias, batch norms, one dense
            layer.

    Raises:
        TypeError: ``model`` is no ResNet of basic blocks.
        ValueError: the networks differ: number or shape of layers, or the batch norms' epsilon.
    """
    if not isinstance(model, ResNet) or not any(isinstance(m, BasicBlock) for m in model.modules()):
        raise TypeError(f"model: got {type(model).__name__}, want a resfuse.models.ResNet of basic blocks")
    leaves = list(_leaves(keras_model))
    convs = [layer for layer in leaves if type(layer).__name__ == "Conv2D"]
    norms = [layer for layer in leaves if type(layer).__name__ == "BatchNormalization"]
    dense = [layer for layer in leaves if type(layer).__name__ == "Dense"]
    targets = list(_convolutions(model))
    if len(convs) != len(targets) or len(norms) != len(targets) or len(dense) != 1:
        raise ValueError(
            f"keras_model: has {len(convs)} Conv2D, {len(norms)} BatchNormalization and {len(dense)} Dense layers, "
            f"want {len(targets)}, {len(targets)} and 1"
        )
    with torch.no_grad():
        for conv, bn in targets:
            source = _take(convs, conv)
            kernel = _array(source.kernel)
            conv.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
            if getattr(source, "bias", None) is not None and np.any(_array(source.bias)):
                raise ValueError(f"keras_model: {source.name} has a bias that is not zero, want none")
            _copy_norm(bn, _norm_after(source, norms, leaves))
        weight = _array(dense[0].kernel).T
        if weight.shape != tuple(model.fc.weight.shape):
            raise ValueError(
                f"keras_model: {dense[0].name} is {weight.shape[1]} -> {weight.shape[0]}, "
                f"want {model.fc.in_features} -> {model.fc.out_features}"
            )
        model.fc.weight.copy_(torch.from_numpy(weight.copy()))
        bias = getattr(dense[0], "bias", None)
        model.fc.bias.copy_(torch.from_numpy(_array(bias).copy()) if bias is not None else torch.zeros(()))


def _array(variable: Any) -> np.ndarray:
    if hasattr(variable, "detach"):
        variable = variable.detach()
    elif hasattr(variable, "value"):
        return _array(variable.value)
    return np.asarray(variable.cpu() if hasattr(variable, "cpu") else variable, dtype=np.float32)


def _leaves(layer: Any) -> Iterator[Any]:
    """Leaf layers in order: of computation where Keras knows it, of creation in subclassed models."""
    children = list(getattr(layer, "layers", None) or getattr(layer, "_layers", None) or [])
    if not children:
        yield layer
    for child in children:
        yield from _leaves(child)


def _convolutions(model: ResNet) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    yield model.conv1, model.bn1
    for block in model.modules():
        if isinstance(block, BasicBlock):
            yield block.conv1, block.bn1
            yield block.conv2, block.bn2
            if block.downsample is not None:
                yield block.downsample[0], block.downsample[1]  # type: ignore[index]


def _take(convs: list[Any], target: nn.Conv2d) -> Any:
    """Removes and returns the first convolution of the target's kernel shape."""
    out_channels, in_channels, height, width = target.weight.shape
    for i, conv in enumerate(convs):
        if tuple(conv.kernel.shape) == (height, width, in_channels, out_channels):
            if tuple(conv.strides) != tuple(target.stride):
                raise ValueError(f"keras_model: {conv.name} has strides {conv.strides}, want {target.stride}")
            return convs.pop(i)
    raise ValueError(
        f"keras_model: no convolution left of kernel shape {(height, width, in_channels, out_channels)} "
        "(height, width, in, out)"
    )


def _norm_after(conv: Any, norms: list[Any], leaves: list[Any]) -> Any:
    """The batch norm that reads a convolution's output; without a graph, the first one created after it."""
    try:
        output = conv.output
        for norm in norms:
            if norm.input is output:
                return norm
    except (AttributeError, ValueError):
        pass
    position = leaves.index(conv)
    for layer in leaves[position + 1 :]:
        if layer in norms:
            return layer
    raise ValueError(f"keras_model: no batch normalization follows {conv.name}")


def _copy_norm(bn: nn.BatchNorm2d, source: Any) -> None:
    if abs(source.epsilon - bn.eps) > 1e-9:
        raise ValueError(f"keras_model: {source.name} has epsilon {source.epsilon}, the model's bn_eps is {bn.eps}")
    assert bn.running_mean is not None
    assert bn.running_var is not None
    pairs = [(bn.running_mean, source.moving_mean), (bn.running_var, source.moving_variance)]
    pairs += [(bn.weight, source.gamma)] if source.gamma is not None else []
    pairs += [(bn.bias, source.beta)] if source.beta is not None else []
    for target, value in pairs:
        array = _array(value)
        if array.shape != tuple(target.shape):
            raise ValueError(f"keras_model: {source.name} has {array.shape[0]} channels, want {target.shape[0]}")
        target.copy_(torch.from_numpy(array.copy()))
