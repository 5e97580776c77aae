"""Where a classifier looks: the maps that global average pooling gives for free, drawn over the images.

python examples/class_activation_maps.py [--output maps.png]
"""

from __future__ import annotations

import argparse

import matplotlib as mpl
import torch
from torch.nn import functional as F

import resfuse
from resfuse.bench.digits import load_digits

mpl.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", default="maps.png")
options = parser.parse_args()

torch.manual_seed(0)
digits = load_digits(size=32)
model = resfuse.fuse(resfuse.models.ResNet("basic", [1, 1, 1], width=32, num_classes=10, stem="cifar"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
model.train()
for batch in torch.randperm(len(digits.train_x)).split(64):
    optimizer.zero_grad()
    F.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch]).backward()
    optimizer.step()

images = digits.test_x[:8]
maps = resfuse.class_activation_map(model.eval(), images)  # of each image's highest logit
maps = F.interpolate(maps[:, None], size=images.shape[-2:], mode="bilinear")[:, 0]
figure, axes = plt.subplots(1, len(images), figsize=(1.5 * len(images), 1.7), layout="constrained")
for axis, image, heat in zip(axes, images, maps, strict=True):
    axis.imshow(image[0], cmap="gray")
    axis.imshow(heat, cmap="jet", alpha=0.4)
    axis.axis("off")
figure.savefig(options.output, dpi=120)
print(f"wrote {options.output}")
