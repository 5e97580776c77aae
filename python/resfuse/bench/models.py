"""Models by name, for commands and benchmarks."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import resfuse.models
from resfuse.models.blocks import BasicBlock, Bottleneck

SEED = {"num_classes": 41, "stem": "cifar", "padding": "same", "head_activation": "tanh", "bn_eps": 1e-3}
_OURS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_POOLED_CHANNELS = 2048
# What makes each layer, and the side of its feature maps in a ResNet at 224x224.
LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{f"basic{i + 1}": (partial(BasicBlock, 64 << i, 64 << i), 56 >> i) for i in range(4)},
    **{f"bottleneck{i + 1}": (partial(Bottleneck, 256 << i, 64 << i), 56 >> i) for i in range(4)},
    "gap": (partial(nn.AdaptiveAvgPool2d, 1), 7),
}
# Libraries whose models can be named behind these words.
_LIBRARIES = {"timm": "timm", "smp": "segmentation_models_pytorch", "ultralytics": "ultralytics"}
_declared: list[torch.library.Library] = []


def torchvision_models() -> Any | None:
    """``torchvision.models``, also on a torch without torchvision's compiled operators; None where not installed.

    torchvision has no CPU wheel on the registry. Its models are plain Python, but importing them registers fake kernels
    for its detection operators, whose names must be known to torch.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError):
        pass
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = set(re.findall(r'register_meta\("(\w+)"', text)) | set(re.findall(r"torchvision::(\w+)", text))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        library.define(f"{name}(Tensor x) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision.models")


def make_model(name: str) -> nn.Module:
    """A model by name: "seed", a ResNet of torchvision's (ours where torchvision is missing), or a layer.

    Layers are "basic1" to "basic4" and "bottleneck1" to "bottleneck4", a residual block of ResNet's stages, and "gap",
    the global average pool behind the last.

    Raises:
        ValueError: no such model here.
    """
    if name == "seed":
        return resfuse.models.resnet18(**SEED)
    if name in LAYERS:
        return LAYERS[name][0]()
    torchvision = torchvision_models()
    if torchvision is not None and re.fullmatch(r"(wide_)?resne[x]?t\d+(_\w+)?", name) and hasattr(torchvision, name):
        model: nn.Module = getattr(torchvision, name)(weights=None)
        return model
    if name in _OURS:
        model = getattr(resfuse.models, name)()
        return model
    library, _, rest = name.partition(" ")
    if rest and library in _LIBRARIES and importlib.util.find_spec(_LIBRARIES[library]) is not None:
        return _of_library(library, rest)
    raise ValueError(
        f"model: got {name!r}, want seed, {', '.join(_OURS)}, with torchvision any ResNet of its, 'timm', 'smp' or "
        f"'ultralytics' with a model of theirs behind a space (where installed), or a layer: {', '.join(LAYERS)}"
    )


def _of_library(library: str, name: str) -> nn.Module:
    """A model of timm, of segmentation-models-pytorch (its architecture and encoder, "Unet resnet34"), or of
    ultralytics ("yolo11n"), which returns boxes and scores alone.
    """
    torchvision_models()  # all of them import it
    module = importlib.import_module(_LIBRARIES[library])
    try:
        if library == "timm":
            model: nn.Module = module.create_model(name, pretrained=False)
            return model
        if library == "ultralytics":
            model = module.YOLO(f"{name}.yaml", verbose=False).model
            model.model[-1].export = True  # type: ignore[union-attr, index]
            return model
        architecture, encoder = name.split(" ")
        model = module.create_model(architecture, encoder, encoder_weights=None)
        return model
    except (ValueError, KeyError, RuntimeError, FileNotFoundError) as error:
        raise ValueError(f"model: got {library} {name!r}, which {_LIBRARIES[library]} has not: {error}") from error


def default_size(name: str) -> int:
    """Of a model's images, or of a layer's feature maps."""
    if name in LAYERS:
        return LAYERS[name][1]
    if name.startswith("ultralytics "):
        return 640
    return 32 if name == "seed" else 224


def input_channels(model: nn.Module) -> int:
    """Of a model's or layer's input."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return _POOLED_CHANNELS if first is None else first.in_channels


def randomize_batch_norm(model: nn.Module) -> None:
    """Gives every batch norm statistics as a trained network has them; fresh ones hide mistakes in folding."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.1)
