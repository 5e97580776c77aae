"""Free-threaded Python."""

from __future__ import annotations

import sys


def require_gil() -> None:
    """Raises ImportError in an interpreter that runs without the global interpreter lock.

    A free-threaded interpreter turns the lock on when it loads the core, which does not declare that it needs none;
    ``PYTHON_GIL=0`` keeps it off all the same. The caches of plans and weights rely on it.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise ImportError(
            "resfuse needs the global interpreter lock, which PYTHON_GIL=0 or -X gil=0 turned off; want PYTHON_GIL=1"
        )
