"""Functional forms of the layers."""

from resfuse.layers.conv_bn_relu import conv_bn_relu
from resfuse.runtime.global_avg_pool import global_avg_pool2d

__all__ = ["conv_bn_relu", "global_avg_pool2d"]
