"""The commands; each one's work is in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="resfuse",
    help="Fused residual blocks and global average pooling: ResNets on CPUs, faster, with the same numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; torch's own choice if not given.")]


@app.callback()
def _options(threads: Threads = None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@app.command()
def info() -> None:
    """Show the instruction set, threads, OpenMP runtime, torch version and kernels in use."""
    from resfuse.cli.info import show

    show()


@app.command()
def verify(
    model: Annotated[
        str, typer.Option(help="resnet18 ... resnet152 (torchvision's where installed), or seed.")
    ] = "resnet18",
    batch: Annotated[int, typer.Option(min=1)] = 2,
    size: Annotated[int, typer.Option(min=1, help="Image height and width.")] = 224,
    algorithm: Annotated[str, typer.Option(help="auto, direct or winograd.")] = "auto",
) -> None:
    """Compare a fused model with fp64, block by block, beside eager torch's errors."""
    from resfuse.cli.verify import show

    show(model, batch, size, algorithm)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("resfuse-demo.png"),
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train the seed network on real images, fuse it, check it, time it, and draw what it looks at."""
    from resfuse.cli.demo import run

    run(output, epochs, seed)
