"""ResNets as people have them, from torchvision, timm, Hugging Face and by hand: for tests and for `model_zoo.py`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import resfuse
from resfuse.bench.models import make_model, torchvision_models


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model by name: the libraries that it needs and how it is made."""

    libraries: tuple[str, ...]
    make: Callable[[], nn.Module]
    natives: int = 0  # parts that no program computes, at most
    deep: bool = False
    even: bool = False  # takes images alone whose sides are multiples of 32


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision_models(), name)(weights=None, **options)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision_models()  # timm imports it
        return importlib.import_module("timm").create_model(name, pretrained=False, **options)

    return make


def _segmentation(architecture: str, encoder: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision_models()  # so does segmentation-models-pytorch
        library = importlib.import_module("segmentation_models_pytorch")
        return library.create_model(architecture, encoder, encoder_weights=None)

    return make


def _ultralytics(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision_models()  # so does ultralytics
        return importlib.import_module("ultralytics").YOLO(f"{name}.yaml", verbose=False).model

    return make


def _hugging_face(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision_models()  # so does transformers
        transformers = importlib.import_module("transformers")
        return getattr(transformers, name)(transformers.ResNetConfig(**options))

    return make


def _pyramid() -> nn.Module:
    torchvision_models()
    utils = importlib.import_module("torchvision.models.detection.backbone_utils")
    return utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)


def _layer_getter() -> nn.Module:
    utils = importlib.import_module("torchvision.models._utils")
    return utils.IntermediateLayerGetter(make_model("resnet18"), {"layer1": "low", "layer3": "high"})


def _extractor() -> nn.Module:
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    return extraction.create_feature_extractor(make_model("resnet18"), {"layer2": "low", "layer4.0.relu_1": "high"})


class PreActivation(nn.Module):
    """A residual block with batch norm before its convolutions (He et al., 2016, "Identity Mappings")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(nn.functional.relu(self.norm1(x)))
        return torch.add(x, self.conv2(torch.relu(self.norm2(y))))


class Plain(nn.Module):
    """Convolutions with bias and no batch norm, one ReLU module for all, a body in a Sequential, an Identity."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = lambda channels: nn.Identity()) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding="same"),
            norm(channels),
            self.relu,
            nn.Conv2d(channels, channels, 3, padding=1),
            norm(channels),
        )
        self.shortcut = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        y += self.shortcut(x)
        return self.relu(y)


def _by_hand(*blocks: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
        return nn.Sequential(stem, *(block() for block in blocks), head)

    return make


def fused_share(model: nn.Module, fast: nn.Module, x: torch.Tensor) -> float:
    """Of a model's multiply-adds for an input, those that fused programs do; ``fast`` has just been run on it."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return sum(row.effective_gflop for row in resfuse.report(fast).rows) * 1e9 / counter.get_total_flops()


_TV, _TIMM, _HF = ("torchvision",), ("torchvision", "timm"), ("torchvision", "transformers")
_SMP = (*_TIMM, "segmentation_models_pytorch")
_DILATED = {"replace_stride_with_dilation": [False, True, True]}
_SMALL = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [2, 1, 2, 1]}

ZOO: dict[str, Entry] = {
    "resnet18": Entry(_TV, _torchvision("resnet18")),
    "resnet34": Entry(_TV, _torchvision("resnet34")),
    "resnet50": Entry(_TV, _torchvision("resnet50")),
    "resnet101": Entry(_TV, _torchvision("resnet101"), deep=True),
    "resnet152": Entry(_TV, _torchvision("resnet152"), deep=True),
    "resnext50_32x4d": Entry(_TV, _torchvision("resnext50_32x4d")),
    "resnext101_32x8d": Entry(_TV, _torchvision("resnext101_32x8d"), deep=True),
    "wide_resnet50_2": Entry(_TV, _torchvision("wide_resnet50_2")),
    "resnet50 dilated": Entry(_TV, _torchvision("resnet50", **_DILATED)),
    "resnet18 zero_init_residual": Entry(_TV, _torchvision("resnet18", zero_init_residual=True)),
    "feature pyramid, frozen batch norm": Entry(_TV, _pyramid, natives=15),
    "IntermediateLayerGetter": Entry(_TV, _layer_getter),
    "create_feature_extractor": Entry(_TV, _extractor),
    "timm resnet18": Entry(_TIMM, _timm("resnet18")),
    "timm resnet18d": Entry(_TIMM, _timm("resnet18d")),
    "timm resnet50d": Entry(_TIMM, _timm("resnet50d")),
    "timm resnet26t": Entry(_TIMM, _timm("resnet26t")),
    "timm seresnet50": Entry(_TIMM, _timm("seresnet50")),
    "timm ecaresnet26t": Entry(_TIMM, _timm("ecaresnet26t"), natives=90),
    "timm resnetblur50": Entry(_TIMM, _timm("resnetblur50"), natives=4),
    "timm resnetaa50": Entry(_TIMM, _timm("resnetaa50"), even=True),
    "timm resnetv2_50": Entry(_TIMM, _timm("resnetv2_50")),
    "timm resnext50_32x4d": Entry(_TIMM, _timm("resnext50_32x4d")),
    "timm wide_resnet50_2": Entry(_TIMM, _timm("wide_resnet50_2"), deep=True),
    "timm resnet18 features_only": Entry(_TIMM, _timm("resnet18", features_only=True)),
    "timm resnet18 silu": Entry(_TIMM, _timm("resnet18", act_layer="silu")),
    "timm resnet18 gelu": Entry(_TIMM, _timm("resnet18", act_layer="gelu")),
    "timm resnet18 leaky_relu": Entry(_TIMM, _timm("resnet18", act_layer="leaky_relu")),
    "timm resnet18 drop_path": Entry(_TIMM, _timm("resnet18", drop_path_rate=0.2)),
    "timm nf_resnet50 (norm-free)": Entry(_TIMM, _timm("nf_resnet50")),
    "timm resnetv2_50x1_bit (group norm)": Entry(_TIMM, _timm("resnetv2_50x1_bit")),
    "timm resnet50_gn (group norm)": Entry(_TIMM, _timm("resnet50_gn")),
    "timm darknet53": Entry(_TIMM, _timm("darknet53")),
    "timm hrnet_w18_small": Entry(_TIMM, _timm("hrnet_w18_small"), even=True),
    "timm res2net50_26w_4s": Entry(_TIMM, _timm("res2net50_26w_4s")),
    "timm densenet121": Entry(_TIMM, _timm("densenet121")),
    "timm dla34": Entry(_TIMM, _timm("dla34"), even=True),
    "timm regnety_008": Entry(_TIMM, _timm("regnety_008")),
    "timm efficientnet_b0": Entry(_TIMM, _timm("efficientnet_b0")),
    "timm mobilenetv3_large_100": Entry(_TIMM, _timm("mobilenetv3_large_100")),
    "timm ghostnet_100": Entry(_TIMM, _timm("ghostnet_100")),
    "timm convnext_atto": Entry(_TIMM, _timm("convnext_atto")),
    "convnext_tiny": Entry(_TV, _torchvision("convnext_tiny")),
    "smp Unet resnet34": Entry(_SMP, _segmentation("Unet", "resnet34"), even=True),
    "smp UnetPlusPlus resnet18": Entry(_SMP, _segmentation("UnetPlusPlus", "resnet18"), even=True),
    "smp FPN resnet18": Entry(_SMP, _segmentation("FPN", "resnet18"), natives=8, even=True),
    "ultralytics yolo11n": Entry(("torchvision", "ultralytics"), _ultralytics("yolo11n"), natives=60, even=True),
    "ResNetForImageClassification": Entry(_HF, _hugging_face("ResNetForImageClassification"), natives=3),
    "ResNetModel, basic": Entry(_HF, _hugging_face("ResNetModel", layer_type="basic", **_SMALL), natives=3),
    "ResNetModel, downsample_in_first_stage": Entry(
        _HF, _hugging_face("ResNetModel", downsample_in_first_stage=True, **_SMALL), natives=3
    ),
    "ResNetModel, downsample_in_bottleneck": Entry(
        _HF, _hugging_face("ResNetModel", downsample_in_bottleneck=True, **_SMALL), natives=3
    ),
    "ResNetBackbone": Entry(
        _HF, _hugging_face("ResNetBackbone", out_features=["stage2", "stage4"], **_SMALL), natives=3
    ),
    "by hand: pre-activation": Entry((), _by_hand(lambda: PreActivation(24), lambda: PreActivation(24))),
    "by hand: bias, no batch norm": Entry((), _by_hand(lambda: Plain(24), lambda: Plain(24))),
    "by hand: group norm": Entry((), _by_hand(lambda: Plain(24, lambda c: nn.GroupNorm(4, c)))),
    "seed network": Entry((), lambda: make_model("seed")),
}  # fmt: skip
