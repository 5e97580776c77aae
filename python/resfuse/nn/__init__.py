"""Layers with torchvision's parameter names, each fused by itself under eval() without gradients."""

from resfuse.layers.same import Conv2dSame, MaxPool2dSame
from resfuse.nn import functional
from resfuse.nn.blocks import BasicBlock, Bottleneck, ConvBNReLU2d
from resfuse.nn.pooling import GlobalAvgPool2d

__all__ = ["BasicBlock", "Bottleneck", "Conv2dSame", "ConvBNReLU2d", "GlobalAvgPool2d", "MaxPool2dSame", "functional"]
