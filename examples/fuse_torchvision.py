"""A torchvision ResNet, fused: the same numbers, measured and explained.

python examples/fuse_torchvision.py [resnet50] [--size 224]
"""

from __future__ import annotations

import argparse
import time

import torch

import resfuse
from resfuse.bench.models import make_model  # torchvision's models, also beside a torch without its compiled operators

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="resnet50")
parser.add_argument("--size", type=int, default=224)
options = parser.parse_args()

model = make_model(
    options.model
).eval()  # torchvision.models.resnet50(weights="DEFAULT").eval() with the network at hand
fast = resfuse.fuse(model)
x = torch.randn(8, 3, options.size, options.size).to(memory_format=torch.channels_last)

with torch.no_grad():
    for name, module in (("torch", model.to(memory_format=torch.channels_last)), ("resfuse", fast)):
        module(x)
        start = time.perf_counter()
        module(x)
        print(f"{name:8} {(time.perf_counter() - start) * 1e3:7.1f} ms")

print(resfuse.verify(model, fast, x[:1]))
print(resfuse.report(fast))
