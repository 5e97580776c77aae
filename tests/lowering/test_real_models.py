"""Real models, fused and verified: weights random, batch norm statistics as a trained network has them."""

from __future__ import annotations

import inspect

import pytest
import torch

import resfuse
from resfuse.bench.models import make_model, randomize_batch_norm, torchvision_models

needs_torchvision = pytest.mark.skipif(torchvision_models() is None, reason="torchvision is not installed")
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
DEEP = ("resnet101", "resnet152", "resnext101_32x8d")


def _verified(name: str, x: torch.Tensor, algorithm: str = "auto") -> resfuse.Verification:
    model = make_model(name).eval()
    randomize_batch_norm(model)
    fast = resfuse.fuse(model, algorithm=algorithm)
    assert not resfuse.report(fast).native
    verification = resfuse.verify(model, fast, x)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4 * float(expected.square().mean().sqrt()))
    return verification


@needs_torchvision
@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize(("batch", "size"), [(1, 97), (3, 64)])
def test_torchvision_family(name: str, batch: int, size: int) -> None:
    x = torch.randn(batch, 3, size, size)
    _verified(name, x if batch == 1 else x.to(memory_format=torch.channels_last))


@needs_torchvision
@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_torchvision_deep(name: str) -> None:
    _verified(name, torch.randn(2, 3, 64, 64))


@needs_torchvision
@pytest.mark.parametrize("algorithm", ["direct", "winograd", "strassen"])
def test_resnet18_at_full_size(algorithm: str) -> None:
    rows = _verified("resnet18", torch.randn(2, 3, 224, 224), algorithm).rows
    assert [row.part for row in rows][-1] == "output"
    assert len(rows) == 9


@needs_torchvision
def test_dilated_and_zero_initialized() -> None:
    tv = torchvision_models()
    model = tv.resnet50(replace_stride_with_dilation=[False, True, True], zero_init_residual=True).eval()
    x = torch.randn(2, 3, 65, 64)
    fast = resfuse.fuse(model)
    assert not resfuse.report(fast).native
    # bn3.weight is zero: the blocks return their shortcuts.
    resfuse.verify(model, fast, x)


@needs_torchvision
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_our_models_take_torchvision_weights(name: str) -> None:
    theirs = make_model(name).eval()
    randomize_batch_norm(theirs)
    ours = getattr(resfuse.models, name)().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(resfuse.fuse(ours)(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("padding", ["torch", "same"])
@pytest.mark.parametrize(("layers", "width"), [([1, 1, 1, 1], 16), ([3], 8), ([1, 2], 20)])
def test_our_models(block: str, stem: str, padding: str, layers: list[int], width: int) -> None:
    model = resfuse.models.ResNet(block, layers, width=width, num_classes=7, stem=stem, padding=padding, bn_eps=1e-3)
    randomize_batch_norm(model.eval())
    fast = resfuse.fuse(model)
    assert not resfuse.report(fast).native
    for size in (32, 33):
        resfuse.verify(model, fast, torch.randn(2, 3, size, size + 2))


@pytest.mark.parametrize("activation", [None, "tanh", "sigmoid", "relu", "softmax"])
def test_head_activations(activation: str | None) -> None:
    model = resfuse.models.ResNet("basic", [1], width=8, num_classes=5, stem="cifar", head_activation=activation).eval()
    fast = resfuse.fuse(model)
    x = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
        expected = {None: lambda v: v, "softmax": lambda v: v.softmax(1)}.get(activation) or getattr(
            torch, str(activation)
        )
        torch.testing.assert_close(fast(x), expected(model.logits(x)))


@pytest.mark.parametrize("layer", ["BasicBlock", "Bottleneck", "ConvBNReLU2d", "GlobalAvgPool2d"])
def test_layers_are_fused_by_themselves(layer: str) -> None:
    if layer == "GlobalAvgPool2d":
        x = torch.randn(2, 5, 4, 3)
        torch.testing.assert_close(resfuse.nn.GlobalAvgPool2d()(x), x.mean((2, 3), keepdim=True))
        assert resfuse.nn.GlobalAvgPool2d(keepdim=False)(x).shape == (2, 5)
        return
    module = getattr(resfuse.nn, layer)(16, 4 if layer == "Bottleneck" else 16).eval()
    randomize_batch_norm(module)
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(module(x), module.native_forward(x), rtol=1e-4, atol=1e-5)
    assert resfuse.report(module).fused_calls == 1


def test_a_user_module_of_the_same_structure() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(12, 12, 3, padding="same"), torch.nn.BatchNorm2d(12), torch.nn.ReLU(),
                torch.nn.Conv2d(12, 12, 3, padding=1, bias=False), torch.nn.BatchNorm2d(12),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            y += x
            return torch.nn.functional.relu(y)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.Sequential(Block(), torch.nn.Softplus(), Block())
            self.head = torch.nn.Linear(12, 4)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
            features = self.blocks(x)
            return {"features": features, "logits": self.head(features.mean((2, 3)))}

    model = Net().eval()
    randomize_batch_norm(model)
    fast = resfuse.fuse(model)
    report = resfuse.report(fast)
    assert [row.part for row in report.native] == ["blocks_1"]
    assert "Softplus has no fused form" in report.native[0].what
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)
    x = torch.randn(2, 12, 10, 11)
    with torch.no_grad():
        for key, value in fast(x, scale=2.0).items():
            torch.testing.assert_close(value, model(x)[key], rtol=1e-4, atol=1e-4)
    resfuse.verify(model, fast, x)


def test_our_models_are_plain_torch_until_they_are_fused() -> None:
    """What fused models are compared and timed with must not be fused itself."""
    model = make_model("seed")
    assert not any(isinstance(module, resfuse.fused.module.FusedModule) for module in model.modules())
