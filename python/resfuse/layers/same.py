"""Plain torch layers that networks of other frameworks need and torch lacks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from resfuse.engine.spec import same_padding


class Conv2dSame(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: output side = ceil(input side / stride).

    At stride 2 an even side gets 0 before and 1 after, where ``nn.Conv2d(padding=1)`` has 1 and 1.
    The arguments are those of ``nn.Conv2d`` without ``padding``.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, K, ceil(H / stride), ceil(W / stride)]."""
        top, bottom = same_padding(input.shape[-2], self.kernel_size[0], self.stride[0], self.dilation[0])
        left, right = same_padding(input.shape[-1], self.kernel_size[1], self.stride[1], self.dilation[1])
        return super().forward(F.pad(input, (left, right, top, bottom)))


class MaxPool2dSame(nn.MaxPool2d):
    """Max-pooling with TensorFlow's "same" padding: output side = ceil(input side / stride).

    Args:
        kernel_size, stride: as in ``nn.MaxPool2d``.
    """

    def __init__(self, kernel_size: int, stride: int | None = None) -> None:
        super().__init__(kernel_size, stride)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size, self.stride
        assert isinstance(kernel, int)
        assert isinstance(stride, int)
        top, bottom = same_padding(input.shape[-2], kernel, stride, 1)
        left, right = same_padding(input.shape[-1], kernel, stride, 1)
        return F.max_pool2d(F.pad(input, (left, right, top, bottom), value=float("-inf")), kernel, stride)
