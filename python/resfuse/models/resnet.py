"""ResNets, state_dict-compatible with torchvision where the structure is the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from resfuse.checks import require_choice, require_epsilon, require_positive
from resfuse.layers.same import MaxPool2dSame
from resfuse.models.blocks import PADDINGS, BasicBlock, Bottleneck, make_conv

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
_ACTIVATIONS: dict[str, Any] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(dim=1),
}


class ResNet(nn.Module):
    """A residual network (He et al., 2016): stem, stages of residual blocks, global average pool, linear, activation.

    Plain torch; `resfuse.fuse` makes the fast one, for training and inference.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks of each stage; any number of stages.
        width: filters of the first stage; each next one has twice as many.
        num_classes: outputs.
        stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1, no pool).
        padding: "torch" (symmetric) or "same" (TensorFlow's: asymmetric at stride 2).
        head_activation: None, "tanh", "relu", "sigmoid" or "softmax", applied to the logits.
        bn_eps: epsilon of every batch norm.
        in_channels: channels of the images.

    Raises:
        ValueError: an argument that is none of the above; the text names it.
    """

    def __init__(
        self,
        block: str,
        layers: Sequence[int],
        *,
        width: int = 64,
        num_classes: int = 1000,
        stem: str = "imagenet",
        padding: str = "torch",
        head_activation: str | None = None,
        bn_eps: float = 1e-5,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("block", block, tuple(_BLOCKS))
        require_choice("stem", stem, ("imagenet", "cifar"))
        require_choice("padding", padding, PADDINGS)
        if head_activation is not None:
            require_choice("head_activation", head_activation, (None, *_ACTIVATIONS))
        require_positive("width", width)
        require_positive("num_classes", num_classes)
        require_positive("in_channels", in_channels)
        if isinstance(layers, (str, int)) or len(layers) == 0:
            raise ValueError(f"layers: got {layers!r}, want the number of blocks of at least one stage")
        for count in layers:
            require_positive("layers", count)
        require_epsilon("bn_eps", bn_eps)

        self.conv1 = make_conv(
            in_channels, width, 7 if stem == "imagenet" else 3, 2 if stem == "imagenet" else 1, padding=padding
        )
        self.bn1 = nn.BatchNorm2d(width, eps=bn_eps)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity()
        if stem == "imagenet":
            self.maxpool = MaxPool2dSame(3, 2) if padding == "same" else nn.MaxPool2d(3, 2, 1)
        self._stages = len(layers)
        inplanes, expansion = width, _BLOCKS[block].expansion
        for stage, count in enumerate(layers):
            planes = width * 2**stage
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                downsample = None
                if stride != 1 or inplanes != planes * expansion:
                    downsample = nn.Sequential(
                        make_conv(inplanes, planes * expansion, 1, stride, padding=padding),
                        nn.BatchNorm2d(planes * expansion, eps=bn_eps),
                    )
                blocks.append(_BLOCKS[block](inplanes, planes, stride, downsample, padding=padding, bn_eps=bn_eps))
                inplanes = planes * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inplanes, num_classes)
        self.head_activation: nn.Module = nn.Identity() if head_activation is None else _ACTIVATIONS[head_activation]()
        self._initialize(stem)

    def _initialize(self, stem: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if stem == "cifar":  # He-normal, as the network's Keras listing has it
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_in", nonlinearity="relu")

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in_channels, H, W] -> [N, num_classes], before the head's activation: what a loss on logits takes."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self._stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        out: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in_channels, H, W] -> [N, num_classes]."""
        out: torch.Tensor = self.head_activation(self.logits(x))
        return out

    def __prepare_scriptable__(self) -> nn.Sequential:
        """For ``torch.jit.script``, which knows no computed names: the same modules one after the other."""
        stages = [f"layer{stage}" for stage in range(1, self._stages + 1)]
        names = ["conv1", "bn1", "relu", "maxpool", *stages, "avgpool", "flatten", "fc", "head_activation"]
        flatten = nn.Flatten(1)
        return nn.Sequential(
            OrderedDict((name, flatten if name == "flatten" else getattr(self, name)) for name in names)
        )


def resnet18(**options: Any) -> ResNet:
    """ResNet-18; the options are `ResNet`'s."""
    return ResNet("basic", [2, 2, 2, 2], **options)


def resnet34(**options: Any) -> ResNet:
    """ResNet-34; the options are `ResNet`'s."""
    return ResNet("basic", [3, 4, 6, 3], **options)


def resnet50(**options: Any) -> ResNet:
    """ResNet-50; the options are `ResNet`'s."""
    return ResNet("bottleneck", [3, 4, 6, 3], **options)


def resnet101(**options: Any) -> ResNet:
    """ResNet-101; the options are `ResNet`'s."""
    return ResNet("bottleneck", [3, 4, 23, 3], **options)


def resnet152(**options: Any) -> ResNet:
    """ResNet-152; the options are `ResNet`'s."""
    return ResNet("bottleneck", [3, 8, 36, 3], **options)
