"""Each layer shape of the ResNets under each algorithm, beside torch and the cost model's choice.

python benchmarks/layers.py [--batch 1 16]
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from resfuse.bench.timing import interleaved
from resfuse.runtime.executor import Executor
from resfuse.runtime.spec import ConvSpec, OutputSpec, ProgramSpec

# channels in, channels out, kernel, stride, input side
SHAPES = [
    *[(c, c, 3, 1, s) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))],
    *[(c, 2 * c, 3, 2, s) for c, s in ((64, 56), (128, 28), (256, 14))],
    *[(c, 4 * c, 1, 1, s) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))],
    *[(4 * c, c, 1, 1, s) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))],
    (3, 64, 7, 2, 224),
]
ALGORITHMS = ("direct", "winograd_f2", "winograd_f4")


def measure(batch: int, shape: tuple[int, int, int, int, int]) -> tuple[dict[str, float], str]:
    """Effective GFLOP/s (2 x the direct algorithm's multiply-adds / median time) by contender; the model's choice."""
    channels, out_channels, kernel, stride, size = shape
    pad = kernel // 2
    x = torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(channels, out_channels, kernel, stride, pad, bias=False).to(memory_format=torch.channels_last)
    weight = conv.weight.detach().contiguous()
    contenders = {"torch": lambda: conv(x)}
    choice = ""
    for algorithm in ("auto", *ALGORITHMS):
        if algorithm.startswith("winograd") and (kernel, stride) != (3, 1):
            continue
        layer = ConvSpec(
            "conv", 0, 1, channels, out_channels, 0, kernel_size=(kernel, kernel), stride=(stride, stride),
            padding=(pad, pad, pad, pad), activation="relu", algorithm=algorithm,
        )  # fmt: skip
        executor = Executor(ProgramSpec((channels,), (layer,), (OutputSpec(1),)))
        executor.run([x], [weight])
        if algorithm == "auto":
            assert executor.last_plan is not None
            choice = executor.last_plan.layers()[0]["algorithm"]
        else:
            contenders[algorithm] = lambda executor=executor: executor.run([x], [weight])
    side = (size + 2 * pad - kernel) // stride + 1
    flop = 2 * batch * side * side * channels * out_channels * kernel * kernel
    with torch.no_grad():
        timings = interleaved(contenders, rounds=30 if batch == 1 else 12)
    return {name: flop / timing.median / 1e9 for name, timing in timings.items()}, choice


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{'batch':>5} {'layer':32} {'torch':>7} " + " ".join(f"{a:>11}" for a in ALGORITHMS) + "  chosen, of the best"
    )
    for batch in options.batch:
        for shape in SHAPES:
            rates, choice = measure(batch, shape)
            best = max(rates[a] for a in ALGORITHMS if a in rates)
            channels, out_channels, kernel, stride, size = shape
            cells = " ".join(f"{rates[a]:11.0f}" if a in rates else f"{'-':>11}" for a in ALGORITHMS)
            layer = f"{channels}->{out_channels} {kernel}x{kernel} /{stride} at {size}x{size}"
            print(
                f"{batch:5} {layer:32} {rates['torch']:7.0f} {cells}  {choice}, {rates[choice] / best:.0%}", flush=True
            )


if __name__ == "__main__":
    main()
