"""Functional forms of the layers."""

from resfuse.engine.global_avg_pool import global_avg_pool2d
from resfuse.layers.conv_bn_relu import conv_bn_relu

__all__ = ["conv_bn_relu", "global_avg_pool2d"]
