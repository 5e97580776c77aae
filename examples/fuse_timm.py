"""A timm ResNet with squeeze-and-excitation, through both doors: resfuse.fuse and torch.compile.

python examples/fuse_timm.py [seresnet50] [--size 224]
"""

from __future__ import annotations

import argparse

import torch

import resfuse
from resfuse.bench.models import torchvision_models

torchvision_models()  # timm imports torchvision, which has no CPU build on the registry: see README
import timm  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="seresnet50")
parser.add_argument("--size", type=int, default=224)
options = parser.parse_args()

model = timm.create_model(options.model, pretrained=False).eval()
x = torch.randn(2, 3, options.size, options.size)
fast = resfuse.fuse(model)
compiled = torch.compile(model, backend="resfuse", dynamic=True)

with torch.no_grad():
    expected = model(x)
    for name, module in (("resfuse.fuse", fast), ('torch.compile(backend="resfuse")', compiled)):
        difference = (module(x) - expected).abs().max() / expected.abs().max()
        print(f"{name}: largest difference from eager {difference:.1e}")

report = resfuse.report(fast)
print(f"{len(report.fused)} parts fused; native: {[f'{row.part}: {row.what}' for row in report.native] or 'none'}")
