"""Each layer shape of the ResNets under each algorithm, beside torch, the cost model's choice and its estimate.

python benchmarks/layers.py [--batch 1 16] [--threads 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

import torch
from torch import nn

from resfuse import _core
from resfuse.bench.timing import interleaved
from resfuse.engine.executor import Executor
from resfuse.engine.spec import ConvSpec, OutputSpec, ProgramSpec


@dataclasses.dataclass(frozen=True)
class Shape:
    """A convolution with the padding that keeps the image's side (over the stride)."""

    channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int  # of the input
    groups: int = 1

    def __str__(self) -> str:
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        kernel = f"{self.kernel}x{self.kernel} /{self.stride}"
        return f"{self.channels}->{self.out_channels} {kernel} at {self.size}x{self.size}{groups}"

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What can be asked for."""
        if self.kernel == 1 and self.groups == 1:
            return ("direct", "strassen", "paired")
        if self.kernel == 1 or (self.groups > 1 and self.stride > 1):
            return ("direct",)
        winograd = ("winograd_f2", "winograd_f4") if self.stride == 1 else ("winograd",)
        return ("direct", *winograd, *(("paired",) if self.groups == 1 else ()))

    def flop(self, batch: int) -> int:
        """Of the direct algorithm."""
        side = (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1
        return 2 * batch * side * side * self.channels // self.groups * self.out_channels * self.kernel**2


STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
SHAPES = [
    Shape(3, 64, 7, 2, 224),
    *[Shape(c, c, 3, 1, s) for c, s in STAGES],
    *[Shape(c, 2 * c, 3, 2, s) for c, s in STAGES[:3]],
    *[Shape(2 * c, 2 * c, 3, 2, s) for c, s in STAGES[:3]],
    *[Shape(c, 4 * c, 1, 1, s) for c, s in STAGES],
    *[Shape(4 * c, c, 1, 1, s) for c, s in STAGES],
    *[Shape(4 * c, 8 * c, 1, 2, s) for c, s in STAGES[:3]],
    *[Shape(2 * c, 2 * c, 3, 1, s) for c, s in STAGES[2:]],
    *[Shape(2 * c, 2 * c, 3, 1, s, 32) for c, s in STAGES],
    *[Shape(c, c, 3, 1, s) for c, s in ((16, 32), (32, 16), (64, 8))],
]


def make_executor(shape: Shape, algorithm: str) -> Executor:
    """A program of this one layer."""
    layer = ConvSpec(
        "conv", 0, 1, shape.channels, shape.out_channels, 0, kernel_size=(shape.kernel, shape.kernel),
        stride=(shape.stride, shape.stride), padding=(shape.kernel // 2,) * 4, groups=shape.groups,
        activation="relu", algorithm=algorithm,
    )  # fmt: skip
    return Executor(ProgramSpec((shape.channels,), (layer,), (OutputSpec(1),)))


@dataclasses.dataclass(frozen=True)
class Result:
    """Effective GFLOP/s (2 x the direct algorithm's multiply-adds / median time)."""

    rates: dict[str, float]  # by contender
    choice: str  # one of them
    chosen_algorithm: str  # its name in the plan
    estimate: float

    @property
    def share(self) -> float:
        """The choice's rate over the best algorithm's."""
        return self.rates[self.choice] / max(rate for name, rate in self.rates.items() if name != "torch")


def measure(batch: int, shape: Shape, clock: float, rounds: int) -> Result:
    """Times torch and every algorithm in interleaved rounds."""
    x = torch.randn(batch, shape.channels, shape.size, shape.size).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(
        shape.channels, shape.out_channels, shape.kernel, shape.stride, shape.kernel // 2, groups=shape.groups,
        bias=False,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    weight = conv.weight.detach().contiguous()
    contenders = {"torch": lambda: conv(x)}
    planned = {}
    for algorithm in ("auto", *shape.algorithms):
        executor = make_executor(shape, algorithm)
        executor.run([x], [weight])
        assert executor.last_plan is not None
        planned[algorithm] = executor.last_plan.layers()[0]
        if algorithm != "auto":
            contenders[algorithm] = lambda executor=executor: executor.run([x], [weight])
    auto = planned.pop("auto")
    choice = next(name for name, row in planned.items() if row["algorithm"] == auto["algorithm"])
    with torch.no_grad():
        timings = interleaved(contenders, rounds=rounds)
    flop = shape.flop(batch)
    rates = {name: flop / timing.median / 1e9 for name, timing in timings.items()}
    return Result(rates, choice, auto["algorithm"], flop / auto["estimated_cycles"] * clock / 1e9)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = _core.measure_clock()
    columns = ("torch", "direct", "winograd_f2", "winograd_f4", "winograd", "strassen", "paired")
    heads = ("torch", "direct", "f2", "f4", "stride 2", "strassen", "paired", "estimate")
    line = "{:>5} {:42} " + "{:>8} " * len(heads) + " {}"
    print(line.format("batch", "effective GFLOP/s", *heads, "chosen, of the best"))
    for batch in options.batch:
        shares = []
        for shape in SHAPES:
            result = measure(batch, shape, clock, options.rounds * (3 if batch == 1 else 1))
            shares.append(result.share)
            cells = [f"{result.rates[c]:.0f}" if c in result.rates else "-" for c in columns]
            chosen = f"{result.chosen_algorithm}, {result.share:.0%}"
            print(line.format(batch, str(shape), *cells, f"{result.estimate:.0f}", chosen), flush=True)
        print(
            f"batch {batch}: the choice reaches {statistics.geometric_mean(shares):.1%} of the best (geometric mean), "
            f"at worst {min(shares):.0%}"
        )


if __name__ == "__main__":
    main()
