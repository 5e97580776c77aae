"""The package's own imports of torch, put off until torch is wanted.

What torch.export has saved names operators and nothing of this package, so whoever has imported resfuse and then torch,
in whatever way, finds them registered.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_WITHOUT_TORCH = ("_core", "_lazy", "_openmp", "cli", "errors", "runtime", "__main__")


class TorchFinder(MetaPathFinder):
    """Calls a function behind torch's import, and before the import of any module of ours that needs torch."""

    def __init__(self, load: Callable[[], None]) -> None:
        self._load = load
        self._inside = threading.local()  # of a search of our own, or of `load`

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of torch its own, whose execution calls `load`; of our modules what `load` has imported."""
        if getattr(self._inside, "busy", False):
            return None
        if fullname == "torch":
            return self._torch()
        package, _, name = fullname.partition(".")
        if package != "resfuse" or name.partition(".")[0] in _WITHOUT_TORCH:
            return None
        importlib.import_module("torch")
        module = sys.modules.get(fullname)
        return None if module is None else ModuleSpec(fullname, _Imported(module))

    def _torch(self) -> ModuleSpec | None:
        self._inside.busy = True
        try:
            spec = importlib.util.find_spec("torch")
        finally:
            self._inside.busy = False
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._inside.busy = True
            try:
                self._load()
            finally:
                self._inside.busy = False
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = exec_module
        return spec


class _Imported(Loader):
    """Of a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """That module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Leaves it as it was."""
        module.__spec__ = self._spec
