"""The example server under load, on loopback: throughput and latency beside the same server on ONNX Runtime.

python benchmarks/serving.py [--model resnet18] [--clients 8] [--requests 400] [--seconds 60] [--rounds 3]

Each round starts one server after the other, in turn. Clients send JPEG photographs and wait for the answer; a round
ends after so many requests or seconds. The clients run on the same cores as the server.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

import resfuse
from resfuse.bench.models import default_size, make_model

_SERVER = Path(__file__).parent.parent / "examples" / "serve_with_fastapi.py"
_STARTS_WITHIN = 60.0  # seconds


@dataclasses.dataclass
class Load:
    """What came of one round."""

    seconds: float
    latencies: list[float]
    failed: int
    batches: int


def photographs(count: int = 16) -> list[bytes]:
    """JPEGs of 320 x 240, cut out of scikit-learn's two photographs."""
    random = np.random.default_rng(0)
    files = []
    for i in range(count):
        image = Image.fromarray(load_sample_images().images[i % 2])
        left, top = (int(random.integers(0, limit)) for limit in (image.width - 320, image.height - 240))
        buffer = io.BytesIO()
        image.crop((left, top, left + 320, top + 240)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


async def send(url: str, clients: int, requests: int, seconds: float) -> Load:
    """So many clients, each with one request under way, until enough requests or seconds have passed."""
    files = photographs()
    latencies: list[float] = []
    failed = 0
    left = iter(range(requests))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=30) as http:
        start = time.perf_counter()

        async def client() -> None:
            nonlocal failed
            for i in left:
                if time.perf_counter() - start > seconds:
                    return
                before = time.perf_counter()
                answer = await http.post(f"{url}/classify", content=files[i % len(files)])
                if answer.status_code == 200:
                    latencies.append(time.perf_counter() - before)
                else:
                    failed += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        elapsed = time.perf_counter() - start
        batches = (await http.get(f"{url}/statistics")).json()["batches"]
    return Load(elapsed, latencies, failed, batches)


def serve(arguments: list[str], port: int, clients: int, requests: int, seconds: float) -> Load:
    """Starts a server, warms it, loads it, stops it."""
    server = subprocess.Popen([sys.executable, str(_SERVER), *arguments, "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                httpx.get(f"{url}/statistics", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start: {' '.join(arguments)}") from None
                time.sleep(0.1)
        before = asyncio.run(send(url, clients, 4 * clients, seconds))  # warms every batch size that comes up
        load = asyncio.run(send(url, clients, requests, seconds))
        return dataclasses.replace(load, batches=load.batches - before.batches)
    finally:
        server.terminate()
        server.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--port", type=int, default=18080)
    options = parser.parse_args()
    size = default_size(options.model)
    model, x = make_model(options.model).eval(), torch.randn(2, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        own, other = Path(folder) / "model.resfuse", Path(folder) / "model.onnx"
        preprocessing = resfuse.Preprocessing((size, size), round(size * 256 / 224))
        resfuse.save(resfuse.fuse(model), own, x, preprocessing=preprocessing)
        torch.onnx.export(
            model, (x,), other, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
        batch = ["--batch", str(options.batch)]
        servers = {
            "resfuse": [str(own), *batch],
            "ONNX Runtime": [str(other), "--engine", "onnxruntime", "--like", str(own), *batch],
        }
        loads: dict[str, list[Load]] = {name: [] for name in servers}
        for number in range(options.rounds):
            for offset, (name, arguments) in enumerate(servers.items()):
                port = options.port + 2 * number + offset
                loads[name].append(serve(arguments, port, options.clients, options.requests, options.seconds))
    table = Table(title=f"{options.model}, {options.clients} clients, batches of {options.batch} at most")
    for column in ("server on", "images/s", "p50", "p99", "images a batch", "failed"):
        table.add_column(column, justify="left" if column == "server on" else "right")
    for name, rounds in loads.items():
        rate = statistics.median(len(load.latencies) / load.seconds for load in rounds)
        p50, p99 = np.percentile([1e3 * t for load in rounds for t in load.latencies], [50, 99])
        gathered = statistics.median(len(load.latencies) / max(load.batches, 1) for load in rounds)
        failed = sum(load.failed for load in rounds)
        table.add_row(name, f"{rate:.1f}", f"{p50:.0f} ms", f"{p99:.0f} ms", f"{gathered:.1f}", str(failed))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
