"""resfuse: fused residual blocks and global average pooling. ResNets on CPUs, faster, with the same numbers."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from resfuse import _openmp
from resfuse._lazy import TorchFinder

if TYPE_CHECKING:
    from resfuse.api import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "GradientsEnabledWarning", "Preprocessing", "Profile", "Report", "ResfuseError", "UnsupportedModelError",
    "Verification", "VerificationError", "class_activation_map", "fuse", "load", "models", "nn", "profile", "quantize",
    "refresh", "report", "save", "verify",
]  # fmt: skip

# `resfuse.runtime` runs without torch. So the package imports torch, and all that needs it, when the first of its names
# above is used, when a module of it that needs torch is imported, or when somebody else imports torch.


def _load() -> None:
    _openmp.provide()
    api = importlib.import_module("resfuse.api")
    globals().update({name: getattr(api, name) for name in __all__})


def __getattr__(name: str) -> Any:
    if name == "_core":
        _openmp.provide()
    if name in ("runtime", "_core"):
        return importlib.import_module(f"resfuse.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("torch")
    _load()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__name__", "__version__", "runtime"])


if "torch" in sys.modules:
    _load()
else:
    sys.meta_path.insert(0, TorchFinder(_load))
