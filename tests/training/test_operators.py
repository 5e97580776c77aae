"""The layers and operators of training: blocks, their gradients, bad input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import resfuse
from resfuse.training.split import split
from tests.training.gradients import small


def test_training_layers() -> None:
    """The layers of resfuse.nn train fused by themselves."""
    from resfuse.models import blocks as plain

    for fast, model, channels in [
        (resfuse.nn.BasicBlock(8, 8), plain.BasicBlock(8, 8), 8),
        (resfuse.nn.Bottleneck(32, 8), plain.Bottleneck(32, 8), 32),
        (resfuse.nn.ConvBNReLU2d(8, 16, 3, stride=2), plain.ConvBNReLU2d(8, 16, 3, stride=2), 8),
    ]:
        model.load_state_dict(fast.state_dict())
        xs = [torch.randn(3, channels, 9, 11).requires_grad_()]
        xs.append(xs[0].detach().clone().requires_grad_())
        for m, x in ((fast, xs[0]), (model, xs[1])):
            m.train()(x).square().sum().backward()
        torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-3, atol=1e-5)
        for (name, a), b in zip(fast.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)
        assert fast.fusion().fused_calls == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "relu": False}, {"padding": (1, 1), "groups": 2}])
def test_training_conv_bn_relu(training: bool, options: dict[str, object]) -> None:
    options = dict(options)
    relu = bool(options.pop("relu", True))
    x, weight = torch.randn(3, 8, 9, 10), torch.randn(12, 8 // int(options.get("groups", 1)), 3, 3)  # type: ignore[call-overload]
    vectors = [torch.randn(12), torch.rand(12) + 0.5, torch.randn(12), torch.randn(12)]
    results = []
    for fused in (True, False):
        tensors = [t.clone().requires_grad_() for t in (x, weight, *vectors[2:])]
        mean, var = vectors[0].clone(), vectors[1].clone()
        shape = F.conv2d(x, weight, None, **options).shape
        residual = torch.ones(shape).requires_grad_()
        if fused:
            y = resfuse.nn.functional.conv_bn_relu(
                tensors[0], tensors[1], mean, var, *tensors[2:], residual=residual, training=training, relu=relu,
                **options,
            )  # fmt: skip
        else:
            y = F.batch_norm(F.conv2d(*tensors[:2], None, **options), mean, var, *tensors[2:], training) + residual
            y = y.relu() if relu else y
        y.square().sum().backward()
        results.append([y.detach(), mean, var, residual.grad, *(t.grad for t in tensors)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    if not training:
        with torch.no_grad():
            y = resfuse.nn.functional.conv_bn_relu(x, weight, *vectors, residual=residual, relu=relu, **options)
        torch.testing.assert_close(y, results[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": 3}, TypeError, "x: got int"),
        ({"x": torch.randn(2, 5, 4, 4)}, ValueError, r"x: got shape \[2, 5, 4, 4\], want \[N, 8, H, W\]"),
        ({"weight": torch.randn(4, 8)}, ValueError, r"weight: got shape \[4, 8\]"),
        ({"running_mean": torch.randn(3)}, ValueError, r"running_mean: got shape \[3\], want \[4\]"),
        ({"bn_bias": torch.randn(3)}, ValueError, "bn_bias: got shape"),
        ({"residual": torch.randn(1, 4, 4, 4)}, ValueError, r"residual: got shape \[1, 4, 4, 4\], want \[2, 4, 4, 4\]"),
        ({"stride": "2"}, ValueError, "stride: got '2'"),
        ({"padding": (1, 2, 3)}, ValueError, "padding: got"),
    ],
)
def test_training_conv_bn_relu_bad_input(change: dict[str, object], error: type[Exception], text: str) -> None:
    good = {"x": torch.randn(2, 8, 4, 4), "weight": torch.randn(4, 8, 3, 3), "running_mean": torch.zeros(4),
            "running_var": torch.ones(4), "padding": 1}  # fmt: skip
    resfuse.nn.functional.conv_bn_relu(**good)
    with pytest.raises(error, match=text):
        resfuse.nn.functional.conv_bn_relu(**{**good, **change})


def _blocks(block: str) -> list[tuple[object, list[torch.Tensor], list[torch.Tensor]]]:
    fast = resfuse.fuse(small(block))
    bound = fast.fusion().binding.programs[0]
    cases = []
    for part in bound.blocks():
        if part.spec is not None:
            inputs = [torch.randn(2, channels, 7, 6) for channels in part.spec.inputs]
            cases.append((part, inputs, [bound.parameters()[p].detach().clone() for p in part.parameters]))
    return cases


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_training_operators_opcheck(block: str) -> None:
    for part, inputs, parameters in _blocks(block):
        arguments = [t.requires_grad_() for t in inputs], [t.requires_grad_() for t in parameters], part.text
        torch.library.opcheck(torch.ops.resfuse.block.default, arguments)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_training_operators_gradcheck(block: str) -> None:
    for part, inputs, parameters in _blocks(block):
        tensors = [t.double().requires_grad_() for t in (*inputs, *parameters)]
        case = (part.text, len(inputs), len(part.spec.outputs))

        def run(*tensors: torch.Tensor, case=case) -> list[torch.Tensor]:
            text, n, outputs = case
            return torch.ops.resfuse.block(list(tensors[:n]), list(tensors[n:]), text)[:outputs]

        assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_training_blocks_end_at_sums_and_pools() -> None:
    fast = resfuse.fuse(small("bottleneck"))
    spec = fast.fusion().binding.programs[0].step.spec
    parts = split(spec, tuple(True for _ in spec.layers))
    assert [len(part.layers) for part in parts] == [2, 4, 4, 1, 1]  # stem, two blocks, pool, linear
    assert [i for part in parts for i in part.layers] == list(range(len(spec.layers)))
