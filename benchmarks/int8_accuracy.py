"""What int8 costs on real images: top-1 in fp32, and as resfuse, OpenVINO and ONNX Runtime quantise it.

``python benchmarks/int8_accuracy.py`` trains each network for each task (about a minute each on two cores), quantises
it with every engine on the same calibration images, and counts right answers on images that none has seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import resfuse

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script
from benchmarks.photographs import Task, photographs
from resfuse.bench import engines, int8_engines
from resfuse.bench.digits import load_digits

Draw = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]  # of a count and a seed
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with as many images as it takes to learn and to test it."""

    name: str
    classes: int
    train: Draw
    test: Draw


def photograph_problem(crop: int, noise: float = 0.03) -> Problem:
    """Which of 12 photographs a crop of so many pixels is from."""
    task: Task = photographs(64, crop, noise)
    return Problem(
        f"photographs, crops of {crop} pixels", task.classes, task.draw, lambda n, seed: task.draw(n, seed + 10**6)
    )


def digit_problem(noise: float) -> Problem:
    """scikit-learn's handwritten digits, shifted and with noise of so many times half the grey scale."""
    digits = load_digits(32, held_out=0.4)

    def draw(x: torch.Tensor, y: torch.Tensor) -> Draw:
        def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
            generator = torch.Generator().manual_seed(seed)
            which = torch.randint(len(y), (count,), generator=generator)
            rows, columns = (torch.randint(-4, 5, (count,), generator=generator).tolist() for _ in range(2))
            moved = torch.stack(
                [x[i].roll((r, c), (1, 2)) for i, r, c in zip(which.tolist(), rows, columns, strict=True)]
            )
            grey = moved[:, :1] + noise * torch.randn(count, 1, *x.shape[2:], generator=generator)
            return grey.expand(-1, 3, -1, -1).contiguous(), y[which]

        return drawn

    return Problem(
        f"digits, noise {noise:g}", 10, draw(digits.train_x, digits.train_y), draw(digits.test_x, digits.test_y)
    )


def networks(classes: int, width: int = 64) -> dict[str, nn.Module]:
    """A ResNet-18 and a ResNet of eight bottlenecks."""
    return {
        "ResNet-18": resfuse.models.ResNet("basic", [2, 2, 2, 2], width=width, num_classes=classes, stem="imagenet"),
        "ResNet-26": resfuse.models.ResNet(
            "bottleneck", [2, 2, 2, 2], width=width, num_classes=classes, stem="imagenet"
        ),
    }


def train(model: nn.Module, problem: Problem, images: int) -> None:
    """One pass over so many new images."""
    model.train()
    fast = resfuse.fuse(model)
    steps = images // BATCH
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    for step in track(range(steps), description=f"training on {problem.name}", transient=True):
        x, y = problem.train(BATCH, step)
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def quantizers() -> dict[str, int8_engines.Quantizer]:
    """The engines that are installed."""
    found = {
        "resfuse": int8_engines.resfuse_int8,
        "openvino": int8_engines.openvino_int8,
        "onnxruntime": int8_engines.onnxruntime_int8,
        "compile": int8_engines.compile_int8,
    }
    return {name: quantize for name, quantize in found.items() if engines.installed(name, "int8")}


@dataclasses.dataclass(frozen=True)
class Result:
    """Top-1 of one engine, and how many answers are those of fp32."""

    engine: str
    top1: float
    agreement: float


def compare(model: nn.Module, problem: Problem, test: int, calibration: int = 256) -> list[Result]:
    """fp32 first, then every engine of `quantizers`."""
    batches = [problem.train(BATCH, 10**5 + i)[0] for i in range(calibration // BATCH)]
    shown = [problem.test(BATCH, i) for i in range(test // BATCH)]
    labels = torch.cat([y for _, y in shown])

    def answers(predict: int8_engines.Predictor) -> torch.Tensor:
        return torch.cat([torch.from_numpy(predict(x).copy()).argmax(1) for x, _ in shown])

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        onnx = Path(folder) / "model.onnx"
        exact = answers(lambda x: model(x).numpy())
        results = [Result("fp32", _share(exact == labels), 1.0)]
        methods = quantizers()
        if any(engines.needs_onnx(name) for name in methods):
            engines.export_onnx(model, batches[0], onnx)
        for name, quantize in methods.items():
            got = answers(quantize(model, onnx, batches))
            results.append(Result(name, _share(got == labels), _share(got == exact)))
    return results


def _share(hits: torch.Tensor) -> float:
    return float(hits.double().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of docs/accuracy.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000, help="to train on")
    parser.add_argument("--test", type=int, default=8000, help="to count right answers on")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    options = parser.parse_args(arguments)
    table = Table("task", "network", "engine", "top-1", "against fp32", "same answers")
    for problem in (photograph_problem(160), photograph_problem(112), digit_problem(0.8)):
        for name, model in networks(problem.classes, options.width).items():
            torch.manual_seed(0)
            train(model, problem, options.images)
            results = compare(model, problem, options.test)
            for result in results:
                change = f"{100 * (result.top1 - results[0].top1):+.2f}"
                table.add_row(
                    problem.name, name, result.engine, f"{result.top1:.2%}", change, f"{result.agreement:.2%}"
                )
            table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
