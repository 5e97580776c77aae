"""Training with fused kernels: nothing in the loop changes.

python examples/train.py [--epochs 3]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn import functional as F

import resfuse
from resfuse.bench.digits import load_digits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=3)
options = parser.parse_args()

torch.manual_seed(0)
digits = load_digits(size=32)
model = resfuse.fuse(resfuse.models.ResNet("basic", [2, 2, 2], width=32, num_classes=10, stem="cifar"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

for epoch in range(options.epochs):
    start = time.perf_counter()
    model.train()
    for batch in torch.randperm(len(digits.train_x)).split(64):
        loss = F.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():  # now as one program, with the weights of the last step
        accuracy = (model(digits.test_x).argmax(1) == digits.test_y).float().mean()
    print(f"epoch {epoch + 1}: {seconds:.1f} s, loss {loss:.3f}, held-out accuracy {accuracy:.1%}")

print(f"{len(model.state_dict())} tensors in state_dict, under the names of the plain model")
