"""Residual blocks (He et al., "Deep Residual Learning for Image Recognition", 2016) that run fused by themselves."""

from __future__ import annotations

from resfuse.fused.module import FusedModule
from resfuse.models import blocks as plain


class ConvBNReLU2d(FusedModule, plain.ConvBNReLU2d):
    """ReLU(BN(conv(x))), parameters ``conv.weight`` and ``bn.*``.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, dilation: as in ``nn.Conv2d``.
        padding: "torch" (dilation * (kernel_size // 2) on all sides) or "same" (TensorFlow's).
        bn_eps: the batch norm's epsilon.
    """


class BasicBlock(FusedModule, plain.BasicBlock):
    """ReLU(F(x) + shortcut(x)), F = conv 3x3 - BN - ReLU - conv 3x3 - BN (fig. 2 and table 1 of the paper).

    Args:
        inplanes, planes: channels in and out.
        stride: of the first convolution; the shortcut must match it.
        downsample: the shortcut, None for the identity.
        padding: "torch" or "same" (TensorFlow's, asymmetric at stride 2).
        bn_eps: the batch norms' epsilon.
    """


class Bottleneck(FusedModule, plain.Bottleneck):
    """ReLU(F(x) + shortcut(x)), F = conv 1x1 - conv 3x3 - conv 1x1, each with BN (fig. 5 of the paper).

    The stride is in the 3x3 convolution, as in torchvision ("ResNet v1.5").

    Args:
        inplanes: channels in; ``planes * expansion`` come out.
        planes: channels of the inner convolutions (times ``base_width / 64 * groups``).
        stride, downsample, padding, bn_eps: as in `BasicBlock`.
        groups, base_width: of the 3x3 convolution (ResNeXt, Wide ResNet).
    """
