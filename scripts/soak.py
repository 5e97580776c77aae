"""Threads, random batches and sizes, weights that change: every result is compared with torch's for the same weights.

python scripts/soak.py [--minutes 30] [--threads 4]
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from pathlib import Path

import torch

import resfuse


class Versions:
    """A model whose weights are replaced now and then; readers share it, a writer has it alone."""

    def __init__(self) -> None:
        self.model = resfuse.models.ResNet("bottleneck", [1, 1, 1], width=16, num_classes=10, stem="cifar").eval()
        self.fast = resfuse.fuse(self.model)
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False

    def compare(self, x: torch.Tensor) -> float:
        """The largest difference between fused and eager, over the largest value."""
        with self._condition:
            self._condition.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            with torch.inference_mode():
                ours, theirs = self.fast(x), self.model(x)
            return float((ours - theirs).abs().max() / theirs.abs().max())
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    def change(self) -> None:
        """Other weights, in one of the ways in which people write them."""
        with self._condition:
            self._writing = True  # who comes now waits
            self._condition.wait_for(lambda: self._readers == 0)
            way = random.randrange(3)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    new = parameter * random.uniform(0.9, 1.1)
                    if way == 0:
                        parameter.copy_(new)
                    else:
                        parameter.data = new
                if way == 2:
                    self.model.load_state_dict({k: v.clone() for k, v in self.model.state_dict().items()})
            self._writing = False
            self._condition.notify_all()


def resident_mib() -> float:
    """Of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Prints a line a minute; ends with 1 at a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    versions, counts, mismatches = Versions(), [0] * options.threads, []
    end = time.monotonic() + 60 * options.minutes

    def read(thread: int) -> None:
        torch.set_num_threads(1 + thread % 2)
        while time.monotonic() < end and not mismatches:
            shape = (random.randint(1, 9), 3, random.randint(9, 40), random.randint(9, 40))
            difference = versions.compare(torch.randn(shape))
            if not difference < 1e-4:
                mismatches.append((shape, difference))
            counts[thread] += 1

    threads = [threading.Thread(target=read, args=(i,)) for i in range(options.threads)]
    for thread in threads:
        thread.start()
    changes, told = 0, time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
        versions.change()
        changes += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{sum(counts)} calls, {changes} changes of weights, {resident_mib():.0f} MiB", flush=True)
    print(f"{sum(counts)} calls, {changes} changes of weights, {len(mismatches)} mismatches, {resident_mib():.0f} MiB")
    raise SystemExit(1 if mismatches else 0)


if __name__ == "__main__":
    main()
