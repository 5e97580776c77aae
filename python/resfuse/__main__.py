"""``python -m resfuse``."""

from resfuse.cli import main

main()
