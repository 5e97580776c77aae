"""Training on several processes or machines with torch's own DistributedDataParallel, or FSDP2 (``--shard``).

torchrun --nproc-per-node 2 examples/train_distributed.py [--steps 20] [--shard] [--check]

``--check`` repeats the training in one process, averaging the gradients of the ranks' batches, and compares parameters.
"""

from __future__ import annotations

import argparse
import copy
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import resfuse
from resfuse.bench.digits import Digits, load_digits

BATCH = 32  # of each rank


def shard(digits: Digits, step: int, rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's images and labels of one step."""
    first = (step * ranks + rank) * BATCH % (len(digits.train_x) - BATCH)
    return digits.train_x[first : first + BATCH], digits.train_y[first : first + BATCH]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same for both trainings."""
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def train(model: nn.Module, digits: Digits, steps: int, rank: int, ranks: int) -> float:
    """The last loss of this rank."""
    optimizer = make_optimizer(model)
    loss = torch.zeros(())
    for step in range(steps):
        x, y = shard(digits, step, rank, ranks)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def train_alone(model: nn.Module, digits: Digits, steps: int, ranks: int) -> None:
    """All ranks' batches in one process, one after the other, gradients averaged."""
    optimizer = make_optimizer(model)
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(ranks):
            x, y = shard(digits, step, rank, ranks)
            (F.cross_entropy(model(x), y) / ranks).backward()
        optimizer.step()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--shard", action="store_true")
parser.add_argument("--check", action="store_true")
options = parser.parse_args()

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", ranks))))
torch.manual_seed(0)  # the same weights everywhere
digits = load_digits(size=16)
model = resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=10, stem="cifar")
alone = copy.deepcopy(model)
fast = resfuse.fuse(model, inplace=True)

if options.shard:  # each rank keeps a part of every parameter
    wrapped: nn.Module = fully_shard(fast, mesh=init_device_mesh("cpu", (ranks,)))
else:
    wrapped = DistributedDataParallel(fast)
loss = train(wrapped, digits, options.steps, rank, ranks)
trained = [p.full_tensor() if options.shard else p for p in fast.parameters()]
print(f"rank {rank} of {ranks}: loss {loss:.3f} after {options.steps} steps", flush=True)
if options.check and rank == 0:
    train_alone(alone, digits, options.steps, ranks)
    difference = max((a - b).abs().max().item() for a, b in zip(trained, alone.parameters(), strict=True))
    print(f"largest difference from training in one process: {difference:.1e}", flush=True)
    assert difference < 1e-3
    print(f"{resfuse.report(fast).fused_calls} of {options.steps} steps ran fused", flush=True)
dist.barrier()  # gloo aborts a rank that leaves while another still works
dist.destroy_process_group()
