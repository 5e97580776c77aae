"""resfuse: fused residual blocks and global average pooling. ResNets on CPUs, faster, with the same numbers."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resfuse.api import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "GradientsEnabledWarning", "Preprocessing", "Profile", "Report", "ResfuseError", "UnsupportedModelError",
    "Verification", "VerificationError", "class_activation_map", "fuse", "load", "models", "nn", "profile", "quantize",
    "refresh", "report", "save", "verify",
]  # fmt: skip

# `resfuse.runtime` runs without torch. So the package imports torch, and all that needs it, when the first of its names
# above is used, or when somebody else imports torch.


def _load() -> None:
    api = importlib.import_module("resfuse.api")
    globals().update({name: getattr(api, name) for name in __all__})


def __getattr__(name: str) -> Any:
    if name in ("runtime", "_core"):
        return importlib.import_module(f"resfuse.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("torch")
    _load()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_importing() -> bool:
    """Whether a module of this package is being imported just now: it will import what it needs."""
    own = [module for name, module in sys.modules.items() if name.startswith("resfuse.")]
    return any(getattr(module.__spec__, "_initializing", False) for module in own)


class _AfterTorch(MetaPathFinder):
    """Registers the operators once torch is there: programs that torch.export saved need them and name nothing here."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if not _is_importing():
                    _load()

            loader.exec_module = exec_module
        return spec


if "torch" in sys.modules:
    _load()
else:
    sys.meta_path.insert(0, _AfterTorch())
