"""A classifier behind HTTP, without torch: FastAPI and uvicorn, requests gathered into batches.

pip install "resfuse-runtime[images]" fastapi uvicorn
python examples/serve_with_fastapi.py MODEL.resfuse [--port 8000] [--batch 8] [--wait 2] [--threads N]
curl --data-binary @photo.jpg http://127.0.0.1:8000/classify

One batch is computed at a time, by all threads; meanwhile the next one gathers. `--engine onnxruntime MODEL.onnx --like
MODEL.resfuse` serves ONNX Runtime the same way, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request

try:
    import resfuse_runtime as runtime  # the small package
except ModuleNotFoundError:
    from resfuse import runtime  # the same, where resfuse is installed

Compute = Callable[[np.ndarray], np.ndarray]
MOST_BYTES = 16 << 20  # of a request


class Batcher:
    """Hands images to a model in batches: as many as have come, or come within a short wait, up to a limit."""

    def __init__(self, compute: Compute, most: int, wait_ms: float, most_waiting: int) -> None:
        self.compute, self.most, self.wait = compute, most, wait_ms / 1e3
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = asyncio.Queue(most_waiting)
        self.batches = self.images = 0
        # One thread of its own: OpenMP keeps a pool of workers for each thread that calls.
        self.executor = ThreadPoolExecutor(1, "compute")

    async def __call__(self, image: np.ndarray) -> np.ndarray:
        """The model's output for one image; raises asyncio.QueueFull where too many wait already."""
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((image, future))
        return await future

    async def run(self) -> None:
        """Gathers and computes until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            deadline = loop.time() + self.wait
            while len(batch) < self.most:
                with contextlib.suppress(asyncio.QueueEmpty):
                    batch.append(self.queue.get_nowait())
                    continue
                try:
                    batch.append(await asyncio.wait_for(self.queue.get(), deadline - loop.time()))
                except TimeoutError:
                    break
            images = np.stack([image for image, _ in batch])
            try:
                results = await loop.run_in_executor(self.executor, self.compute, images)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.batches, self.images = self.batches + 1, self.images + len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


def make_app(compute: Compute, preprocessing: Any, labels: list[str], most: int, wait_ms: float) -> FastAPI:
    """The service over a function from images [N, C, H, W] to scores [N, classes]."""
    batcher = Batcher(compute, most, wait_ms, most_waiting=16 * most)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, object]:
        body = await request.body()
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"want at most {MOST_BYTES} bytes")
        try:
            image = await asyncio.to_thread(runtime.read_image, io.BytesIO(body), preprocessing)
        except (OSError, ValueError) as error:
            raise HTTPException(400, f"no image: {error}") from error
        try:
            scores = await batcher(image)
        except asyncio.QueueFull as error:
            raise HTTPException(503, "too many requests wait") from error
        index = int(scores.argmax())
        exponents = np.exp(scores.astype(np.float64) - scores[index])
        return {
            "class": labels[index] if index < len(labels) else str(index),
            "index": index,
            "probability": float(1 / exponents.sum()),
        }

    @app.get("/statistics")
    async def statistics() -> dict[str, int]:
        return {"batches": batcher.batches, "images": batcher.images}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", choices=["resfuse", "onnxruntime"], default="resfuse")
    parser.add_argument("--like", help="for onnxruntime: the .resfuse file that knows preprocessing and labels")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8, help="images in a batch at most")
    parser.add_argument("--wait", type=float, default=2.0, help="milliseconds that the first of a batch waits")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    model = runtime.load(options.like or options.model, options.threads)
    if model.preprocessing is None:
        parser.error(f"{model.path} does not say how images are made ready; save it with preprocessing=")
    compute: Compute = model
    if options.engine == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = model.threads
        session = onnxruntime.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def compute(images: np.ndarray) -> np.ndarray:
            return session.run(None, {name: images})[0]

    app = make_app(compute, model.preprocessing, model.labels, options.batch, options.wait)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
