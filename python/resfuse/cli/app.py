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
def _options(context: typer.Context, threads: Threads = None) -> None:
    context.obj = threads
    if threads is not None and context.invoked_subcommand != "run":  # which does without torch
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
    algorithm: Annotated[str, typer.Option(help="auto, direct, winograd or strassen.")] = "auto",
) -> None:
    """Compare a fused model with fp64, block by block, beside eager torch's errors."""
    from resfuse.cli.verify import show

    show(model, batch, size, algorithm)


@app.command()
def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="seed, resnet18 (if not given), ... or a layer: basic1-4, bottleneck1-4, gap. "
            "May be given several times, as --batch and --threads."
        ),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="16 if not given.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Of every engine; torch's choice.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Image height and width; the model's own.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8 (inference).")] = "fp32",
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Training steps: forward, loss, backward; under autocast where --dtype is bf16 or fp16."
        ),
    ] = False,
    peers: Annotated[str, typer.Option(help="all that are installed, or some: eager,compile,onnxruntime,...")] = "all",
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; each engine runs once a round.")] = 7,
    layers: Annotated[bool, typer.Option("--layers", help="Print the time of every layer as well.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write everything to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """Time resfuse against every engine that is installed, each in a process of its own, in interleaved rounds."""
    import torch

    from resfuse.bench.engines import DTYPES
    from resfuse.cli.bench import Options, run

    dtype = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)
    if dtype not in DTYPES:
        raise typer.BadParameter(f"got {dtype!r}, want one of {', '.join(DTYPES)}")
    if train and dtype == "int8":
        raise typer.BadParameter(f"got {dtype!r} with --train, want fp32, bf16 or fp16: nothing learns in bytes")
    thread_counts = threads or [torch.get_num_threads()]
    run(
        Options(
            models=model or ["resnet18"], batches=batch or [16], threads=thread_counts, size=size, dtype=dtype,
            train=train,             peers=peers, rounds=rounds, layers=layers, json=json, csv=csv, plot=plot,
        )
    )  # fmt: skip


@app.command()
def classify(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Searched for images, with its folders.")
    ],
    weights: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A state_dict, saved by torch.save.")],
    model: Annotated[str, typer.Option(help="As for bench; the weights must fit it.")] = "resnet50",
    batch: Annotated[int, typer.Option(min=1)] = 16,
    labels: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Names of the classes, one a line.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write image, class, probability to this CSV file.")] = None,
) -> None:
    """Classify a folder of images with a fused model."""
    from resfuse.cli.classify import run

    run(folder, model, weights, batch, labels, output)


@app.command("run")
def run_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What resfuse.save has written.")],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="A folder of images, with its folders.")],
    batch: Annotated[int, typer.Option(min=1)] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="OMP_NUM_THREADS or one a core if not given.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write image, class, probability to this CSV file.")] = None,
    arrays: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write each image's outputs to a .npz file in this folder.")
    ] = None,
) -> None:
    """Run a saved model over a folder of images, without torch."""
    from resfuse.cli.run import run

    run(file, images, batch, threads or context.obj, output, arrays)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("resfuse-demo.png"),
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train the seed network on real images, fuse it, check it, time it, and draw what it looks at."""
    from resfuse.cli.demo import run

    run(output, epochs, seed)
