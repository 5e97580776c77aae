"""Class activation maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import resfuse
from resfuse.bench.models import randomize_batch_norm


@pytest.mark.parametrize("fused", [False, True])
def test_map_is_the_weighted_sum_of_the_feature_maps(fused: bool) -> None:
    model = resfuse.models.ResNet("basic", [1, 1], width=8, num_classes=5, stem="cifar", head_activation="tanh").eval()
    randomize_batch_norm(model)
    x = torch.randn(3, 3, 20, 12)
    features = []
    handle = model.avgpool.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    with torch.no_grad():
        logits = model.logits(x)
    handle.remove()
    maps = resfuse.class_activation_map(resfuse.fuse(model) if fused else model, x, [4, 0, 2])
    expected = torch.einsum("nk,nkhw->nhw", model.fc.weight.detach()[[4, 0, 2]], features[0])
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)
    # The mean of a map is its class's logit less the bias: that is what global average pooling means.
    torch.testing.assert_close(
        maps.mean((1, 2)), logits[range(3), [4, 0, 2]] - model.fc.bias.detach()[[4, 0, 2]], rtol=1e-3, atol=1e-4
    )
    top = resfuse.class_activation_map(model, x)
    torch.testing.assert_close(top, resfuse.class_activation_map(model, x, logits.argmax(1)))


def test_no_such_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with pytest.raises(resfuse.UnsupportedModelError, match="global average pooling"):
        resfuse.class_activation_map(model, torch.randn(1, 3, 8, 8))
