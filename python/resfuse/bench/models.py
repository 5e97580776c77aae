"""Models by name, for commands and benchmarks."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import resfuse.models

SEED = {"num_classes": 41, "stem": "cifar", "padding": "same", "head_activation": "tanh", "bn_eps": 1e-3}
_OURS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
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
    """A model by name: "seed", or a torchvision ResNet (ours of the same structure where torchvision is missing).

    Raises:
        ValueError: no such model here.
    """
    if name == "seed":
        return resfuse.models.resnet18(**SEED)
    torchvision = torchvision_models()
    if torchvision is not None and re.fullmatch(r"(wide_)?resne[x]?t\d+(_\w+)?", name) and hasattr(torchvision, name):
        model: nn.Module = getattr(torchvision, name)(weights=None)
        return model
    if name in _OURS:
        model = getattr(resfuse.models, name)()
        return model
    raise ValueError(f"model: got {name!r}, want seed, {', '.join(_OURS)} or, with torchvision, any ResNet of its")


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
