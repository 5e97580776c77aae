"""A folder of images through a fused classifier on Ray Data: on this machine, or on every machine of a Ray cluster.

python examples/classify_with_ray.py FOLDER --model resnet50 --weights FILE [--actors 1] [--output classes]

Without a folder: scikit-learn's digits, as files, and a small network that is trained for a moment first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import resfuse
from resfuse.bench.digits import load_digits
from resfuse.bench.models import default_size, make_model

_IMAGENET = resfuse.Preprocessing()
_MEAN, _DEVIATION = torch.tensor(_IMAGENET.mean), torch.tensor(_IMAGENET.std)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """[N, H, W, 3] bytes to [N, 3, H, W], channels_last in memory as they are."""
    return ((pixels / 255 - _MEAN) / _DEVIATION).permute(0, 3, 1, 2)


class Classifier:
    """Lives in an actor: fuses once, then takes one batch after another."""

    def __init__(self, model: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        self.fast = resfuse.fuse(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Images [N, H, W, 3] of bytes to classes and probabilities."""
        with torch.inference_mode():
            probability, index = self.fast(normalized(torch.tensor(batch["image"]))).softmax(1).max(1)
        return {"path": batch["path"], "class": index.numpy(), "probability": probability.numpy()}


def trained_on_digits(folder: Path) -> nn.Module:
    """Also writes 100 digits that it never saw to the folder, their class in the name."""
    torch.manual_seed(0)
    digits = load_digits(size=16)
    train_x, test_x = (((x + 1) * 127.5).byte().permute(0, 2, 3, 1) for x in (digits.train_x, digits.test_x))
    model = resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=10, stem="cifar")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(150):
        chosen = torch.arange(step * 64, (step + 1) * 64) % len(train_x)
        loss = F.cross_entropy(model(normalized(train_x[chosen])), digits.train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for i, (pixels, y) in enumerate(zip(test_x[:100], digits.test_y, strict=False)):
        Image.fromarray(pixels.numpy()).save(folder / f"{i:03d}_{int(y)}.png")
    return model


def main() -> None:
    """Prints each file's class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", type=Path, help="state dict; needed with a folder")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each actor; by default all CPUs but one, shared")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output", type=Path, help="folder for the result as Parquet files")
    options = parser.parse_args()
    if options.folder and not options.weights:
        parser.error("--weights is needed with a folder")

    ray.init(include_dashboard=False, log_to_driver=False)  # or the cluster that RAY_ADDRESS names
    # One CPU reads and decodes.
    threads = options.threads or max(1, (int(ray.cluster_resources()["CPU"]) - 1) // options.actors)
    with tempfile.TemporaryDirectory() as digits:
        if options.folder:
            model, size = make_model(options.model), default_size(options.model)
            model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
        else:
            model, size = trained_on_digits(Path(digits)), 16
        images = ray.data.read_images(str(options.folder or digits), size=(size, size), mode="RGB", include_paths=True)
        classes = images.map_batches(
            Classifier,
            fn_constructor_args=(model.eval(), threads),
            batch_size=options.batch,
            compute=ray.data.ActorPoolStrategy(size=options.actors),
            num_cpus=threads,
        )
        if options.output:
            classes.write_parquet(str(options.output))
            return
        rows = sorted(classes.take_all(), key=lambda row: row["path"])
    for row in rows:
        print(f"{Path(row['path']).name}  {row['class']}  {row['probability']:.1%}")
    if not options.folder:
        right = sum(Path(row["path"]).stem.endswith(f"_{row['class']}") for row in rows)
        print(f"{right} of {len(rows)} digits read right")


if __name__ == "__main__":
    main()
