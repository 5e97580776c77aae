"""What a deployed model costs: installed size, time to the first result in a fresh process, resident memory.

python benchmarks/deploying.py [--model resnet50] [--batch 1] [--rounds 5]   engines in processes of their own, in turn
python benchmarks/deploying.py --sizes                                       each engine installed into an empty folder
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).parent.parent
_WHAT = {  # installed by pip, with what they need
    "resfuse-runtime": [str(_ROOT / "packaging" / "runtime")],
    "ONNX Runtime": ["onnxruntime"],
    "OpenVINO": ["openvino"],
    "torch": ["torch==2.13.0"],
}

# Each prints a line of JSON: its resident memory, and the seconds of calls once all is warm.
_START = """
import json, sys, time
import numpy as np
path, shape = sys.argv[1], json.loads(sys.argv[2])
x = np.zeros(shape, np.float32)
"""
_END = """
run(x)
first = time.time()
with open("/proc/self/status") as file:
    status = dict(line.split(":") for line in file)
resident, peak = (int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
seconds = []
for _ in range(5):
    start = time.perf_counter()
    run(x)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"first": first, "resident": resident, "peak": peak, "seconds": sorted(seconds)[2]}))
"""
_ENGINES = {
    "resfuse.runtime": ("resfuse", "from resfuse import runtime\nrun = runtime.load(path)"),
    "ONNX Runtime": (
        "onnx",
        "import onnxruntime\nsession = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])\n"
        "name = session.get_inputs()[0].name\nrun = lambda x: session.run(None, {name: x})",
    ),
    "OpenVINO": ("onnx", "import openvino\nrun = openvino.Core().compile_model(path, 'CPU')"),
    "resfuse.load (torch)": (
        "resfuse",
        "import torch, resfuse\nmodel = resfuse.load(path)\nrun = lambda x: model(torch.from_numpy(x))",
    ),
    "torch.export": (
        "pt2",
        "import torch\nmodel = torch.export.load(path).module()\n"
        "def run(x):\n    with torch.no_grad():\n        return model(torch.from_numpy(x))",
    ),
}


def sizes(console: Console) -> None:
    """Installed bytes of each engine and all that it needs."""
    table = Table(title="installed, without Python")
    for column in ("", "MiB", "of it the engine"):
        table.add_column(column, justify="left" if not column else "right")
    for name, packages in _WHAT.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", folder, *packages]
            subprocess.run(command, check=True)
            everything = _bytes(Path(folder))
            shared = sum(_bytes(p) for p in Path(folder).iterdir() if p.name.startswith("numpy"))
        table.add_row(name, f"{everything / 2**20:.0f}", f"{(everything - shared) / 2**20:.1f}")
    console.print(table)


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def starts(console: Console, model_name: str, batch: int, rounds: int) -> None:
    """Time to the first result and memory, in interleaved rounds."""
    import torch

    import resfuse
    from resfuse.bench.models import default_size, make_model

    size = default_size(model_name)
    model, x = make_model(model_name).eval(), torch.randn(batch, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"model.{kind}" for kind in ("resfuse", "onnx", "pt2")}
        resfuse.save(resfuse.fuse(model), files["resfuse"], x)
        torch.onnx.export(model, (x,), files["onnx"], dynamo=True, verbose=False)
        torch.export.save(torch.export.export(model, (x,)), files["pt2"])
        found: dict[str, list[dict[str, float]]] = {name: [] for name in _ENGINES}
        for _ in range(rounds + 1):
            for name, (kind, code) in _ENGINES.items():
                arguments = [str(files[kind]), json.dumps(list(x.shape))]
                start = time.time()
                done = subprocess.run(
                    [sys.executable, "-c", _START + code + _END, *arguments], capture_output=True, text=True, check=True
                )
                row = json.loads(done.stdout.splitlines()[-1])
                found[name].append({**row, "first": row["first"] - start})
    table = Table(title=f"{model_name}, batch {batch}: a fresh process, medians of {rounds} rounds")
    for column in ("", "first result after", "resident", "at most", "a call then"):
        table.add_column(column, justify="left" if not column else "right")
    for name, rows in found.items():
        median = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}  # the first read the files
        table.add_row(
            name, f"{median['first']:.2f} s", f"{median['resident']:.0f} MiB", f"{median['peak']:.0f} MiB",
            f"{1e3 * median['seconds']:.1f} ms",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", action="store_true")
    options = parser.parse_args()
    console = Console(width=120)
    if options.sizes:
        sizes(console)
    else:
        starts(console, options.model, options.batch, options.rounds)


if __name__ == "__main__":
    main()
