"""Makes the files that the target `fuzz_files` starts from: every layer kind, every type. Run it when the format changes.

python tests/fuzz/make_models.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import resfuse


class Kinds(nn.Module):
    """A network with most of what programs have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 4, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.pad(self.stem(x), (0, 1, 1, 0))
        y = torch.cat([F.max_pool2d(x, 3, 1, 1), F.silu(self.conv(x))], 1)
        y = self.down(F.relu(self.norm(y)))
        y = y * self.gate(y) + x[:, :4]
        up = F.interpolate(F.avg_pool2d(y, 2), size=y.shape[2:], mode="bilinear")
        logits = self.fc((y * up).mean((2, 3)))
        return {"map": up.softmax(1), "class": logits.argmax(1), "logits": logits}


def main() -> None:
    torch.manual_seed(0)
    folder = Path(__file__).parent / "models"
    folder.mkdir(exist_ok=True)
    x = torch.randn(2, 3, 12, 12)
    resfuse.save(resfuse.fuse(Kinds().eval()), folder / "kinds.resfuse", x)
    plain = resfuse.models.ResNet("basic", [1, 1], width=4, num_classes=5, stem="cifar").eval()
    words = {"preprocessing": resfuse.Preprocessing((12, 12), 14), "labels": ["a", "b", "c", "d", "e"]}
    resfuse.save(resfuse.fuse(plain), folder / "plain.resfuse", x, **words)
    resfuse.save(resfuse.quantize(plain, [x]), folder / "int8.resfuse", x)
    half = resfuse.models.ResNet("bottleneck", [1], width=4, num_classes=5, stem="cifar").eval().bfloat16()
    resfuse.save(resfuse.fuse(half), folder / "bf16.resfuse", x.bfloat16())
    convnext = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.GELU()
    )
    resfuse.save(resfuse.fuse(convnext.eval().half()), folder / "fp16.resfuse", x.half())


if __name__ == "__main__":
    main()
