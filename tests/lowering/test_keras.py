"""The seed network against the same network built in Keras 3 on its torch backend."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import resfuse

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")


def _functional(block_list: list[int], filters: int, size: int):
    """The listing of shared/design/seed_network.md, as a functional model."""
    conv = lambda f, k, s, **o: keras.layers.Conv2D(f, k, strides=s, padding="same", use_bias=False, **o)  # noqa: E731
    norm, relu = keras.layers.BatchNormalization, keras.layers.ReLU
    inputs = keras.Input((size, size, 3))
    x = relu()(norm()(conv(filters, 3, 1, kernel_initializer="he_normal")(inputs)))
    for stage, count in enumerate(block_list):
        for i in range(count):
            path = stage > 0 and i == 0
            y = relu()(norm()(conv(filters, 3, 2 if path else 1)(x)))
            y = norm()(conv(filters, 3, 1)(y))
            shortcut = norm()(conv(filters, 1, 2)(x)) if path else x
            x = relu()(keras.layers.Add()([y, shortcut]))
        filters *= 2
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(41, activation="tanh")(x))


class _Block(keras.Model):
    def __init__(self, filters: int, strides: int = 1, residual_path: bool = False) -> None:
        super().__init__()
        self.c1 = keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)
        self.b1 = keras.layers.BatchNormalization()
        self.c2 = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.b2 = keras.layers.BatchNormalization()
        self.residual_path = residual_path
        if residual_path:
            self.down_c1 = keras.layers.Conv2D(filters, 1, strides=strides, padding="same", use_bias=False)
            self.down_b1 = keras.layers.BatchNormalization()

    def call(self, x):
        y = self.b2(self.c2(keras.ops.relu(self.b1(self.c1(x)))))
        return keras.ops.relu(y + (self.down_b1(self.down_c1(x)) if self.residual_path else x))


class _Subclassed(keras.Model):
    """The same network in the style of the article: subclassed blocks in a Sequential."""

    def __init__(self, block_list: list[int], filters: int) -> None:
        super().__init__()
        self.c1 = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")
        self.b1 = keras.layers.BatchNormalization()
        self.blocks = keras.Sequential()
        for stage, count in enumerate(block_list):
            for i in range(count):
                path = stage > 0 and i == 0
                self.blocks.add(_Block(filters, 2 if path else 1, path))
            filters *= 2
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(41, activation="tanh")

    def call(self, x):
        return self.dense(self.pool(self.blocks(keras.ops.relu(self.b1(self.c1(x))))))


def _randomize(model) -> None:
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "moving_variance" in weight.path or "gamma" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape).astype("float32"))
        elif "moving_mean" in weight.path or "beta" in weight.path or "bias" in weight.path:
            weight.assign(rng.normal(0, 0.1, weight.shape).astype("float32"))


@pytest.mark.parametrize("form", ["functional", "subclassed"])
@pytest.mark.parametrize(
    ("block_list", "filters", "size"), [([2, 2, 2, 2], 64, 32), ([1, 1, 1, 1], 16, 30), ([3, 1], 8, 17)]
)
def test_seed_network_equals_keras(form: str, block_list: list[int], filters: int, size: int) -> None:
    theirs = _functional(block_list, filters, size) if form == "functional" else _Subclassed(block_list, filters)
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype("float32")
    theirs(images)
    _randomize(theirs)
    options = {"num_classes": 41, "stem": "cifar", "padding": "same", "head_activation": "tanh", "bn_eps": 1e-3}
    if (block_list, filters) == ([2, 2, 2, 2], 64):
        ours = resfuse.models.resnet18(**options).eval()
    else:
        ours = resfuse.models.ResNet("basic", block_list, width=filters, **options).eval()
    resfuse.models.load_keras_weights(ours, theirs)
    with torch.no_grad():
        expected = keras.ops.convert_to_numpy(theirs(images, training=False))
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        assert np.abs(ours(x).numpy() - expected).max() <= 1e-5
        fast = resfuse.fuse(ours)
        assert np.abs(fast(x).numpy() - expected).max() <= 1e-5
        assert not resfuse.report(fast).native


def test_what_does_not_fit_is_named() -> None:
    theirs = _functional([1, 1], 8, 16)
    with pytest.raises(ValueError, match="has 6 Conv2D"):
        resfuse.models.load_keras_weights(resfuse.models.ResNet("basic", [1], width=8, stem="cifar"), theirs)
    with pytest.raises(ValueError, match="no convolution left of kernel shape"):
        resfuse.models.load_keras_weights(
            resfuse.models.ResNet("basic", [1, 1], width=4, stem="cifar", bn_eps=1e-3), theirs
        )
    with pytest.raises(ValueError, match="epsilon"):
        resfuse.models.load_keras_weights(resfuse.models.ResNet("basic", [1, 1], width=8, stem="cifar"), theirs)
