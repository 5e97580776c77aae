"""Residual blocks in plain torch, with torchvision's names: `resfuse.models` has them, `resfuse.nn` fuses them."""

from __future__ import annotations

import torch
from torch import nn

from resfuse.checks import require_choice, require_epsilon, require_positive
from resfuse.layers.same import Conv2dSame

PADDINGS = ("torch", "same")


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    padding: str = "torch",
) -> nn.Conv2d:
    """A convolution without bias; "torch" pads dilation * (k // 2) on all sides, "same" as TensorFlow does."""
    require_choice("padding", padding, PADDINGS)
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "stride": stride}
    for name, value in (*sizes.items(), ("groups", groups), ("dilation", dilation)):
        require_positive(name, value)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups: got {groups}, want a divisor of {in_channels} and of {out_channels} channels")
    if padding == "same" and stride > 1:
        return Conv2dSame(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups, bias=False)
    pad = dilation * (kernel_size // 2)
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, pad, dilation, groups, bias=False)


def make_norm(channels: int, eps: float) -> nn.BatchNorm2d:
    """Batch norm; raises ValueError for an epsilon that is not positive."""
    require_epsilon("bn_eps", eps)
    return nn.BatchNorm2d(channels, eps=eps)


class ConvBNReLU2d(nn.Module):
    """ReLU(BN(conv(x)))."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        padding: str = "torch",
        bn_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = make_conv(
            in_channels, out_channels, kernel_size, stride, groups=groups, dilation=dilation, padding=padding
        )
        self.bn = make_norm(out_channels, bn_eps)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.relu(self.bn(self.conv(x)))
        return out


class BasicBlock(nn.Module):
    """ReLU(conv - BN - ReLU - conv - BN + shortcut)."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        padding: str = "torch",
        bn_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv1 = make_conv(inplanes, planes, 3, stride, padding=padding)
        self.bn1 = make_norm(planes, bn_eps)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = make_conv(planes, planes, 3, padding=padding)
        self.bn2 = make_norm(planes, bn_eps)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + identity
        result: torch.Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """ReLU(1x1 - 3x3 - 1x1 convolutions, each with BN, + shortcut)."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        groups: int = 1,
        base_width: int = 64,
        padding: str = "torch",
        bn_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        for name, value in (("planes", planes), ("groups", groups), ("base_width", base_width)):
            require_positive(name, value)
        width = planes * base_width // 64 * groups
        self.conv1 = make_conv(inplanes, width, 1)
        self.bn1 = make_norm(width, bn_eps)
        self.conv2 = make_conv(width, width, 3, stride, groups=groups, padding=padding)
        self.bn2 = make_norm(width, bn_eps)
        self.conv3 = make_conv(width, planes * self.expansion, 1)
        self.bn3 = make_norm(planes * self.expansion, bn_eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + identity
        result: torch.Tensor = self.relu(out)
        return result
