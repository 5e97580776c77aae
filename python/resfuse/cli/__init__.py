"""The command line. Its looks (typer, rich, matplotlib) come with ``pip install "resfuse[bench]"``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``resfuse`` and ``python -m resfuse``."""
    try:
        from resfuse.cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(f'resfuse: the command line needs {error.name}; install it with: pip install "resfuse[bench]"')
    app()
