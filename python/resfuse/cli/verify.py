"""``resfuse verify``."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from torch import nn

import resfuse
from resfuse.bench.models import make_model, randomize_batch_norm


def show(name: str, batch: int, size: int, algorithm: str) -> None:
    """Prints the errors block by block; exits with 1 past the tolerance."""
    console = Console()
    torch.manual_seed(0)
    try:
        model: nn.Module = make_model(name).eval()
        randomize_batch_norm(model)
        fast = resfuse.fuse(model, algorithm=algorithm)
    except ValueError as error:
        sys.exit(f"resfuse verify: {error}")
    try:
        with console.status(f"running {name} in fp64, fp32 and fused"):
            verification = resfuse.verify(model, fast, torch.randn(batch, 3, size, size))
    except resfuse.VerificationError as error:
        console.print(str(error), highlight=False)
        sys.exit(f"resfuse verify: {name} is past the tolerance")
    console.print(str(verification), highlight=False)
