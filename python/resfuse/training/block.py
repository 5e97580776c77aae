"""A block of layers forward and backward: which tensors are kept, which are computed again, and in which order.

Kept are the convolutions' results, before batch norm, and the block's outputs. What a batch norm makes of them is
computed again where a gradient needs it, which costs one pass over memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from resfuse.engine.memory import dense
from resfuse.engine.spec import ConvSpec, MaxPoolSpec, ProgramSpec, reads
from resfuse.training import batch_norm, convolution, pooling
from resfuse.training.batch_norm import Norm
from resfuse.training.split import (
    Saved,
    computes_again,
    pads_of,
    parameter_places,
    saved_tensors,
    takes_batch_statistics,
)

Maybe = torch.Tensor | None


def _extent(x: torch.Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _norm(
    layer: ConvSpec,
    parameters: Sequence[torch.Tensor],
    statistics: tuple[torch.Tensor, torch.Tensor] | None,
    dtype: torch.dtype,
) -> Norm:
    """``dtype``: of the feature maps."""
    spec = layer.batch_norm
    assert spec is not None

    def parameter(place: int) -> torch.Tensor:
        return parameters[place].to(batch_norm.statistics_dtype(dtype))

    if statistics is None:
        statistics = parameter(spec.running_mean), parameter(spec.running_var)
    weight = None if spec.weight is None else parameter(spec.weight)
    bias = None if spec.bias is None else parameter(spec.bias)
    return Norm(*statistics, weight, bias, spec.eps, takes_batch_statistics(layer))


def forward(
    spec: ProgramSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The outputs, then what `saved_tensors` names."""
    buffers: list[Maybe] = list(inputs)
    saved: dict[Saved, torch.Tensor] = {}
    last = {buffer: index for index, layer in enumerate(spec.layers) for buffer in reads(layer)}
    kept = {output.buffer for output in spec.outputs}
    wanted = set(saved_tensors(spec))
    shapes = spec.buffer_shapes([x.shape for x in inputs])
    for index, layer in enumerate(spec.layers):
        x = buffers[layer.input]
        assert x is not None
        if isinstance(layer, MaxPoolSpec):
            _, _, height, width = shapes[layer.output]
            y, saved[Saved(index, "taps")] = pooling.forward(x, layer, pads_of(layer, _extent(x)), (height, width))
        else:
            assert isinstance(layer, ConvSpec)
            y = _conv_forward(index, layer, x, buffers, parameters, saved)
        if Saved(index, "result") in wanted:
            saved[Saved(index, "result")] = y
        buffers.append(y)
        for buffer in reads(layer):
            if last[buffer] == index and buffer not in kept:
                buffers[buffer] = None
    outputs = [buffers[output.buffer] for output in spec.outputs]
    return [*outputs, *(saved[name] for name in saved_tensors(spec))]  # type: ignore[list-item]


def _conv_forward(
    index: int, layer: ConvSpec, x: torch.Tensor, buffers: Sequence[Maybe], parameters: Sequence[torch.Tensor],
    saved: dict[Saved, torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    weight = parameters[layer.weight]
    bias = None if layer.bias is None else parameters[layer.bias]
    residual = None if layer.residual is None else buffers[layer.residual]
    product = convolution.forward(x, weight, bias, layer, pads_of(layer, _extent(x)))
    relu = layer.activation == "relu"
    if layer.batch_norm is None:
        y = product if residual is None else product + residual
        return y.relu_() if relu else y
    statistics = None
    if takes_batch_statistics(layer):
        statistics = batch_norm.statistics(product)
        saved[Saved(index, "mean")], saved[Saved(index, "variance")] = statistics
    if not computes_again(layer):
        saved[Saved(index, "product")] = product
    return batch_norm.apply(product, residual, _norm(layer, parameters, statistics, product.dtype), relu)


class Backward:
    """One backward pass through a block."""

    def __init__(
        self, spec: ProgramSpec, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor], wanted: Sequence[bool],
    ) -> None:  # fmt: skip
        self._spec = spec
        self._parameters = parameters
        self._wanted = wanted[len(inputs) :]
        self._shapes = spec.buffer_shapes([x.shape for x in inputs])
        self._saved = dict(zip(saved_tensors(spec), results[len(spec.outputs) :], strict=True))
        self._values: dict[int, torch.Tensor] = {i: dense(x) for i, x in enumerate(inputs)}
        self._values |= {o.buffer: y for o, y in zip(spec.outputs, results[: len(spec.outputs)], strict=True)}
        self._values |= {spec.layers[s.layer].output: y for s, y in self._saved.items() if s.what == "result"}
        self._makers = {layer.output: index for index, layer in enumerate(spec.layers)}
        self._first_read: dict[int, int] = {}
        for index, layer in enumerate(spec.layers):
            self._first_read.setdefault(layer.input, index)
        # Buffers whose gradients lead to something wanted.
        self._needs: set[int] = {i for i, want in enumerate(wanted[: len(inputs)]) if want}
        for layer in spec.layers:
            if any(b in self._needs for b in reads(layer)) or any(self._wanted[p] for p in parameter_places(layer)):
                self._needs.add(layer.output)
        self._grads: dict[int, tuple[torch.Tensor, bool]] = {}  # and whether its memory is ours
        self._of_parameters: dict[int, torch.Tensor] = {}
        self._deferred: list[Callable[[], None]] = []

    def run(self, grads: Sequence[Maybe]) -> list[Maybe]:
        """The gradients of inputs and parameters, None where not wanted or zero."""
        for output, grad in zip(self._spec.outputs, grads, strict=True):
            if grad is not None:
                self._grads[output.buffer] = dense(grad), False
        for index in reversed(range(len(self._spec.layers))):
            layer = self._spec.layers[index]
            if layer.output in self._needs and layer.output in self._grads:
                grad, owned = self._grads.pop(layer.output)
                if isinstance(layer, MaxPoolSpec):
                    self._max_pool(index, layer, grad)
                else:
                    assert isinstance(layer, ConvSpec)
                    self._conv(index, layer, grad, owned)
            # Its readers came before; it may itself have needed what it had made.
            self._values.pop(layer.output, None)
        while self._deferred:  # they hold this object
            self._deferred.pop()()
        inputs = [self._grads[i][0] if i in self._grads else None for i in range(len(self._spec.inputs))]
        return [*inputs, *(self._of_parameters.get(p) for p in range(len(self._parameters)))]

    def _statistics(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        if Saved(index, "mean") not in self._saved:
            return None
        return self._saved[Saved(index, "mean")], self._saved[Saved(index, "variance")]

    def _value(self, buffer: int) -> torch.Tensor:
        """What forward had in a buffer."""
        if buffer not in self._values:
            index = self._makers[buffer]
            layer = self._spec.layers[index]
            assert isinstance(layer, ConvSpec)
            product = self._product(index)
            norm = _norm(layer, self._parameters, self._statistics(index), product.dtype)
            self._values[buffer] = batch_norm.apply(product, None, norm, layer.activation == "relu")
        return self._values[buffer]

    def _product(self, index: int) -> torch.Tensor:
        """What a convolution gave before its batch norm."""
        saved = self._saved.get(Saved(index, "product"))
        if saved is not None:
            return saved
        layer = self._spec.layers[index]
        assert isinstance(layer, ConvSpec)
        bias = None if layer.bias is None else self._parameters[layer.bias]
        x = self._value(layer.input)
        return convolution.forward(x, self._parameters[layer.weight], bias, layer, pads_of(layer, _extent(x)))

    def _like(self, buffer: int, grad: torch.Tensor) -> torch.Tensor:
        """A tensor of a buffer's shape, with no memory of its own."""
        return grad.new_empty(()).expand(self._shapes[buffer])

    def _add(self, buffer: int, grad: torch.Tensor, owned: bool) -> None:
        if buffer not in self._grads:
            self._grads[buffer] = grad, owned
            return
        before, before_owned = self._grads[buffer]
        self._grads[buffer] = (before.add_(grad) if before_owned else before + grad), True

    def _want(self, place: int | None, grad: torch.Tensor) -> None:
        if place is not None and self._wanted[place]:
            self._of_parameters[place] = grad.to(self._parameters[place].dtype)

    def _max_pool(self, index: int, layer: MaxPoolSpec, grad: torch.Tensor) -> None:
        like = self._like(layer.input, grad)
        padding = pads_of(layer, _extent(like))
        self._add(layer.input, pooling.backward(grad, self._saved[Saved(index, "taps")], layer, padding, like), True)

    def _conv(self, index: int, layer: ConvSpec, grad: torch.Tensor, owned: bool) -> None:
        relu, norm = layer.activation == "relu", layer.batch_norm
        wants_residual = layer.residual is not None and layer.residual in self._needs
        if norm is not None:
            results = batch_norm.backward(
                grad,
                self._product(index),
                None if layer.residual is None else self._values[layer.output],
                _norm(layer, self._parameters, self._statistics(index), grad.dtype),
                relu,
                wants_residual,
                owned,
            )
            self._want(norm.weight, results.weight)
            self._want(norm.bias, results.bias)
            product_grad, residual_grad = results.x, results.residual
            residual_owned = residual_grad is not grad or owned
        else:
            if relu:
                grad, owned = torch.where(self._values[layer.output] <= 0, 0.0, grad), True
            product_grad, residual_grad, residual_owned = grad, grad if wants_residual else None, False
        if residual_grad is not None:
            assert layer.residual is not None
            self._add(layer.residual, residual_grad, residual_owned)
        if layer.bias is not None and self._wanted[layer.bias]:
            self._want(layer.bias, product_grad.sum((0, 2, 3)))
        weight = self._parameters[layer.weight]
        like = self._like(layer.input, grad)
        padding = pads_of(layer, _extent(like))
        if self._wanted[layer.weight]:
            x = self._value(layer.input)
            self._want(layer.weight, convolution.weight_gradient(product_grad, x, weight, layer, padding))
        if layer.input in self._needs:
            # A strided shortcut meets few pixels of the block's input: it is added when the others are there.
            strided_shortcut = layer.kernel_size == (1, 1) and layer.stride != (1, 1)
            add = functools.partial(self._input_gradient, layer, product_grad, padding, like)
            if strided_shortcut and layer.input < len(self._spec.inputs) and self._first_read[layer.input] < index:
                self._deferred.append(add)
            else:
                add()

    def _input_gradient(
        self, layer: ConvSpec, grad: torch.Tensor, padding: tuple[int, int, int, int], like: torch.Tensor
    ) -> None:
        more, more_owned = self._grads.pop(layer.input, (None, True))
        if more is not None and not more_owned:
            more = more.clone()
        dx = convolution.input_gradient(grad, self._parameters[layer.weight], layer, padding, like, more)
        self._grads[layer.input] = dx, True
