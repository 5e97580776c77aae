"""Every model of `zoo.py`: how much of it is fused, how exact it is, and how fast beside torch in the same process.

python benchmarks/model_zoo.py [--models resnet18 "timm seresnet50" ...] [--batch 1 16] [--peers] [--compile]

"share": of the multiply-adds, those in fused programs. "error": the fused output's rms error from fp64 over eager's.
The other columns: the other's median time over that of `resfuse.fuse`, in interleaved rounds. "onnxruntime" and
"openvino" (with ``--peers``, for models that ``resfuse bench`` knows by this name) run in own processes. "backend" is
``torch.compile(model, backend="resfuse")``, "inductor" ``torch.compile`` with freezing, in channels_last; it takes half
a minute a model and is there with ``--compile`` only.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import resfuse

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python benchmarks/model_zoo.py`
from benchmarks.zoo import ZOO, Entry, fused_share
from resfuse.bench.duel import duel
from resfuse.bench.engines import installed
from resfuse.bench.models import default_size, make_model, randomize_batch_norm
from resfuse.bench.timing import interleaved
from resfuse.quantization.sensitivity import tensors_of


def error_ratio(model: nn.Module, fast: nn.Module, x: torch.Tensor) -> float:
    """The rms error of the fused model's last output from fp64 over eager's."""
    exact = tensors_of(copy.deepcopy(model).double()(x.double()))[-1]
    fused, eager = ((tensors_of(m(x))[-1].double() - exact).square().mean().sqrt() for m in (fast, model))
    return float(fused / eager.clamp_min(2.0**-24 * float(exact.square().mean().sqrt())))


def measure(entry: Entry, batch: int, size: int, rounds: int, with_inductor: bool) -> dict[str, float]:
    """One row of the table."""
    torch._dynamo.reset()
    model = entry.make().eval()
    randomize_batch_norm(model)
    x = torch.randn(batch, 3, size, size)
    moved, nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    fast = resfuse.fuse(model)
    backend = torch.compile(copy.deepcopy(model), backend="resfuse")
    contenders: dict[str, Callable[[], object]] = {
        "resfuse": lambda: fast(nhwc),
        "backend": lambda: backend(nhwc),
        "eager": lambda: model(x),
        "channels_last": lambda: moved(nhwc),
    }
    if with_inductor:
        compiled = torch.compile(moved, options={"freezing": True})
        contenders["inductor"] = lambda: compiled(nhwc)
    with torch.no_grad():
        fast(nhwc)
        row = {"share": fused_share(model, fast, x), "error": error_ratio(model, fast, x[:2])}
        timings = interleaved(contenders, rounds * (4 if batch == 1 else 1), warmup=3)
    ours = timings["resfuse"].median
    row["ms"] = ours * 1e3
    return row | {name: timing.median / ours for name, timing in timings.items() if name != "resfuse"}


PEERS = ("onnxruntime", "openvino")


def measure_peers(name: str, batch: int, size: int, rounds: int, threads: int) -> dict[str, float]:
    """The times of other engines over ours; nothing for a model that has no name for `resfuse bench`."""
    try:
        make_model(name)
    except ValueError:
        return {}
    names = ["resfuse", *(peer for peer in PEERS if installed(peer))]
    scores = duel(names, name, batch=batch, size=size, threads=threads, rounds=rounds, forwards=4 if batch == 1 else 1)
    return {peer: scores[peer].timing.median / scores["resfuse"].timing.median for peer in names[1:] if peer in scores}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ZOO), choices=list(ZOO), metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--size", type=int, help="of the images; 224, or what the model is made for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="beside ONNX Runtime and OpenVINO, where installed")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    columns = ["share", "error", "ms", "backend", "eager", "channels_last", *(["inductor"] if options.compile else []),
               *(PEERS if options.peers else [])]  # fmt: skip
    table = Table(box=None, title=f"{options.threads} threads; ratios: their time / resfuse.fuse's")
    for name in ("model", "batch", *columns):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    rows: list[dict[str, Any]] = []
    console = Console(width=140)
    for name in track(options.models, console=Console(stderr=True)):
        entry = ZOO[name]
        missing = [library for library in entry.libraries if importlib.util.find_spec(library) is None]
        for batch in [] if missing else options.batch:
            size = options.size or (32 if name == "seed network" else default_size(name))
            row = measure(entry, batch, size, options.rounds, options.compile)
            if options.peers:
                row |= measure_peers(name, batch, size, options.rounds, options.threads)
            rows.append({"model": name, "batch": batch, **row})
            cells = [f"{row[column]:.2f}" if column in row else "" for column in columns[1:]]
            table.add_row(name, str(batch), f"{row['share']:.1%}", *cells)
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
