"""One OpenMP runtime for torch and the core, whatever torch's copy of libgomp is called.

The core names plain ``libgomp.so.1``, and where torch's copy has that name the linker gives it this one. Torch's wheels
for 64-bit Arm have renamed theirs, so there the core names none and takes what is global in the process.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def provide() -> None:
    """Makes the mapped libgomp global, or the system's where none is mapped; before the core is loaded.

    Raises:
        ImportError: there is none.
    """
    mapped = _mapped()
    if any(Path(path).name == "libgomp.so.1" for path in mapped):
        return
    try:
        ctypes.CDLL(mapped[0] if mapped else "libgomp.so.1", os.RTLD_NOW | os.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(f"resfuse needs an OpenMP runtime, torch's or the system's (libgomp1): {error}") from error


def _mapped() -> list[str]:
    """Paths of the libgomps in this process, torch's first."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
    return sorted(paths, key=lambda path: "torch" not in path)
