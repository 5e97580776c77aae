"""``resfuse demo``: train, fuse, verify, measure and look inside the seed network, on real images."""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.bench.digits import Digits, load_digits
from resfuse.bench.timing import Timing, interleaved
from resfuse.models import ResNet

BATCH = 32
LEARNING_RATE = 0.05
CALIBRATION = 256  # images


def run(output: Path, epochs: int, seed: int) -> None:
    """Runs the demo and writes its picture to ``output``."""
    console = Console()
    torch.manual_seed(seed)
    digits = load_digits(size=24, seed=seed)
    model = resfuse.models.resnet18(num_classes=10, stem="cifar", padding="same", head_activation="tanh", bn_eps=1e-3)
    native = copy.deepcopy(model)
    parameters = sum(p.numel() for p in model.parameters())
    console.rule("resfuse demo")
    console.print(
        f"[bold]1. Data.[/] {len(digits.train_x) + len(digits.test_x)} scans of handwritten digits (scikit-learn), "
        f"scaled to {digits.size}x{digits.size}: {len(digits.train_x)} to train on, {len(digits.test_x)} held out.\n"
        f"[bold]2. Training[/] a ResNet-18 with global average pooling ({parameters / 1e6:.1f} M parameters): "
        f"cross-entropy on the logits, SGD with momentum, weight decay, cosine schedule, {epochs} epochs; fused, then "
        f"the same in plain torch."
    )
    curves = {}
    for name, network, trained in (
        ("resfuse", model, resfuse.fuse(_Logits(model))),
        ("plain torch", native, _Logits(native)),
    ):
        curves[name] = train(trained, digits, epochs, seed, name, console)
        console.print(
            f"   {name}: {curves[name].seconds:.0f} s; held-out accuracy [bold]{evaluate(network, digits):.1%}[/]."
        )
    ratio = curves["plain torch"].seconds / curves["resfuse"].seconds
    console.print(f"   Training fused was [bold]{ratio:.2f} x[/] as fast; the loss curves are in the picture.")

    model.eval()
    fast = resfuse.fuse(model)
    with torch.no_grad():
        fast(digits.test_x[:1])
    report = resfuse.report(fast)
    console.print(
        f"[bold]3. Fusing.[/] fast = resfuse.fuse(model): {len(report.fused)} layers in one native program, "
        f"{len(report.native)} left as they were. Same parameters, same call."
    )
    verification = resfuse.verify(model, fast, digits.test_x[:64])
    error = verification.rows[-1]
    console.print(
        f"[bold]4. Verifying[/] against fp64: output error {error.fused_rms:.1e} (plain torch in fp32: "
        f"{error.eager_rms:.1e}); held-out accuracy {evaluate(fast, digits):.1%}."
    )
    images = digits.train_x[:CALIBRATION]
    quantized = resfuse.quantize(model, images.split(BATCH), progress=False)
    cost = resfuse.verify(model, quantized, digits.test_x)
    console.print(
        f"[bold]5. Quantising[/] to int8 with {len(images)} of the training images: quantized = "
        f"resfuse.quantize(model, batches). Held-out accuracy {evaluate(quantized, digits):.1%}; {cost.agreement:.1%} "
        f"of the predictions are those of real numbers, signal-to-noise ratio {cost.rows[-1].noise:.0f} dB."
    )
    timings = measure(model, fast, quantized, digits, console)
    console.print(f"[bold]6. Measured[/] on {torch.get_num_threads()} threads, interleaved rounds, medians:")
    console.print(_table(timings))
    draw(fast, digits, curves, output)
    console.print(f"[bold]7. Class activation maps[/] (where the network looked) and loss curves: [bold]{output}[/].")


class _Logits(nn.Module):
    """The network without its last activation, for the loss."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.logits(x)


@dataclasses.dataclass(frozen=True)
class Curve:
    """How long a training took, and its loss step by step."""

    seconds: float
    losses: list[float]


def train(model: nn.Module, digits: Digits, epochs: int, seed: int, name: str, console: Console) -> Curve:
    """Trains in place; the same seed takes the same batches."""
    steps = epochs * (len(digits.train_x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shuffle = torch.Generator().manual_seed(seed)
    model.train()
    losses = []
    start = time.perf_counter()
    columns = (
        TextColumn("   {task.description:11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, loss=float("nan"))
        for _ in range(epochs):
            order = torch.randperm(len(digits.train_x), generator=shuffle)[: steps // epochs * BATCH]
            for batch in order.split(BATCH):
                loss = F.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.update(task, advance=1, loss=losses[-1])
    return Curve(time.perf_counter() - start, losses)


def evaluate(model: nn.Module, digits: Digits) -> float:
    """Held-out accuracy, 0 to 1."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(x).argmax(1) for x in digits.test_x.split(64)])
    return float((predicted == digits.test_y).float().mean())


def measure(
    model: nn.Module, fast: nn.Module, quantized: nn.Module, digits: Digits, console: Console
) -> dict[int, dict[str, Timing]]:
    """Times by batch size: native torch in both memory formats, the fused model and the quantised one."""
    rounds = {1: 60, 64: 12}
    timings = {}
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with Progress(
        TextColumn("   timing"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("timing", total=sum((n + 2) * 4 for n in rounds.values()))
        for batch, count in rounds.items():
            x = digits.test_x[:batch]
            xc = x.to(memory_format=torch.channels_last)
            contenders = {
                "NCHW": functools.partial(model, x),
                "channels_last": functools.partial(channels_last, xc),
                "resfuse": functools.partial(fast, x),
                "int8": functools.partial(quantized, x),
            }
            with torch.no_grad():
                timings[batch] = interleaved(contenders, count, progress=lambda: progress.advance(task))
    return timings


def _table(timings: dict[int, dict[str, Timing]]) -> Table:
    table = Table(
        "batch",
        "native torch",
        "resfuse",
        "int8",
        "images/s",
        "faster",
        caption="native: the better memory format; faster: in fp32, in int8",
    )
    for batch, row in timings.items():
        native = min(row["NCHW"].median, row["channels_last"].median)
        fused, int8 = row["resfuse"].median, row["int8"].median
        table.add_row(
            str(batch),
            f"{native * 1e3:.2f} ms",
            f"{fused * 1e3:.2f} ms",
            f"{int8 * 1e3:.2f} ms",
            f"{batch / native:.0f} -> {batch / fused:.0f}, {batch / int8:.0f}",
            f"{native / fused:.2f} x, {native / int8:.2f} x",
        )
    return table


def draw(model: nn.Module, digits: Digits, curves: dict[str, Curve], output: Path) -> None:
    """Draws eight held-out images with their class activation maps, and the loss curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x, y = digits.test_x[:8], digits.test_y[:8]
    with torch.no_grad():
        predicted = model(x).argmax(1)
    maps = resfuse.class_activation_map(model, x)
    maps = F.interpolate(maps[:, None], size=x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    figure = plt.figure(figsize=(1.6 * len(x), 6.4), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=(3.8, 2.6))
    top, bottom = (figure.add_subfigure(halves[i]) for i in (0, 1))
    axes = top.subplots(2, len(x))
    top.suptitle("Class activation maps of the fused network: what global average pooling gives for free")
    for i in range(len(x)):
        image = x[i].mean(0).numpy()
        axes[0, i].imshow(image, cmap="gray")
        axes[0, i].set_title(f"is {int(y[i])}, said {int(predicted[i])}", fontsize=9)
        axes[1, i].imshow(image, cmap="gray")
        axes[1, i].imshow(maps[i].numpy(), cmap="inferno", alpha=0.6)
        for row in (0, 1):
            axes[row, i].set_axis_off()
    by_step, by_time = bottom.subplots(1, 2, sharey=True)
    bottom.suptitle("Training loss, the same seed and data: step by step, and against time")
    for name, curve in curves.items():
        smooth = [statistics.fmean(curve.losses[max(0, i - 4) : i + 1]) for i in range(len(curve.losses))]
        by_step.plot(smooth, label=name)
        by_time.plot([curve.seconds * (i + 1) / len(smooth) for i in range(len(smooth))], smooth, label=name)
    by_step.set(xlabel="step", ylabel="loss (mean of five steps)", yscale="log")
    by_time.set(xlabel="seconds")
    by_time.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    plt.close(figure)
