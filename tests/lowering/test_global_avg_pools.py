"""Other libraries' global average pools, inside programs and outside."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import resfuse
from resfuse.bench.models import torchvision_models
from resfuse.layers.global_avg_pool import FusedPool

# ---- the layers, and what fuse replaces ----


class MeanNet(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.pool, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), pool, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.fc(torch.flatten(self.pool(torch.relu(self.bn(self.conv(x)))), 1)), 1)


@pytest.mark.parametrize(
    "pool",
    [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), resfuse.nn.GlobalAvgPool2d(), resfuse.nn.GlobalAvgPool2d(False)],
    ids=["int", "pair", "ours", "ours without keepdim"],
)  # fmt: skip
def test_pools_become_part_of_the_program_and_train(pool: nn.Module) -> None:
    model = MeanNet(pool).eval()
    fast = resfuse.fuse(model)
    x = torch.randn(3, 3, 9, 9)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-6)
    rows = resfuse.report(fast).rows
    assert [row.fused for row in rows] == [True] * 3
    assert rows[1].algorithm.startswith("in conv") or rows[1].algorithm.startswith("global_avg_pool")
    assert rows[2].what.endswith("softmax")
    fast.train()
    model.train()
    model(x).square().sum().backward()
    want = model.conv.weight.grad.clone()
    model.zero_grad()
    fast(x).square().sum().backward()
    assert torch.allclose(fast.conv.weight.grad, want, atol=1e-5)
    assert type(model.pool) is type(pool)  # the original is as it was


def test_replaced_pools_can_be_copied_and_pickled() -> None:
    fast = resfuse.fuse(Untraceable().eval())
    assert isinstance(fast.pooler, FusedPool)
    assert isinstance(fast.pooler, nn.AdaptiveAvgPool2d)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    x = torch.randn(2, 3, 9, 9)
    for twin in (copy.deepcopy(fast), torch.load(buffer, weights_only=False)):
        assert isinstance(twin.pooler, FusedPool)
        with torch.no_grad():
            assert torch.equal(twin(x), fast(x))


class Untraceable(nn.Module):
    """Control flow over values around blocks that can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = resfuse.models.resnet18(width=8, num_classes=5, stem="cifar").layer1
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if x.isnan().any():
            raise ValueError("want numbers")
        x = self.pooler(self.stage(self.stem(x)))
        return x if return_features else self.classifier(x)


def test_what_fx_cannot_trace_is_fused_in_parts() -> None:
    model = Untraceable().eval()
    fast = resfuse.fuse(model)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-6)
    report = resfuse.report(fast)
    assert report.native_calls == 0
    assert report.fused_calls == 2
    fused = [row.part for row in report.fused]
    assert "pooler" in fused
    assert any(part.startswith("stage.") for part in fused)
    assert [row.part for row in report.native] == ["classifier.0", "classifier.1"]
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [row.part for row in resfuse.verify(model, fast, x).rows] == ["stem", "stage", "output"]
    with torch.no_grad():
        features = model.stage(model.stem(x))
    expected = torch.einsum("k,nkhw->nhw", model.classifier[1].weight.detach()[2], features)
    torch.testing.assert_close(resfuse.class_activation_map(model, x, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def declared_operators() -> None:
    """timm and transformers import torchvision, whose operators must be declared first."""
    torchvision_models()


@pytest.mark.usefixtures("declared_operators")
def test_timm_pools() -> None:
    timm_pools = pytest.importorskip("timm.layers")
    for pool_type in ("avg", "fast", "fastavg"):
        for flatten in (False, True):
            pool = timm_pools.SelectAdaptivePool2d(pool_type=pool_type, flatten=flatten)
            model = MeanNet(pool).eval()
            fast = resfuse.fuse(model)
            assert all(row.fused for row in resfuse.report(fast).rows)
            x = torch.randn(3, 3, 9, 9)
            with torch.no_grad():
                assert torch.allclose(fast(x), model(x), atol=1e-6)
            assert torch.allclose(fast.train().pool(x), pool(x), atol=1e-6)


@pytest.mark.usefixtures("declared_operators")
@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_hugging_face_pooler(layer_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type=layer_type)
    model = transformers.ResNetForImageClassification(config).eval()
    fast = resfuse.fuse(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got, want = fast(x, output_hidden_states=True), model(x, output_hidden_states=True)
    assert torch.allclose(got.logits, want.logits, atol=1e-5)
    assert all(torch.allclose(g, w, atol=1e-5) for g, w in zip(got.hidden_states, want.hidden_states, strict=True))
    report = resfuse.report(fast)
    assert "resnet.pooler" in [row.part for row in report.fused]
    assert report.native_calls == 0
