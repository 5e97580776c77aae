"""ResNets in plain torch, ready for `resfuse.fuse`."""

from resfuse.models.keras import load_keras_weights
from resfuse.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = ["ResNet", "load_keras_weights", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
