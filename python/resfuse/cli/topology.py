"""How a machine's cores hang together: NUMA nodes and the clusters that share an L3 cache, as Linux tells."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")


@dataclasses.dataclass(frozen=True)
class Topology:
    """The CPUs that this process may use, by what they share."""

    cores: tuple[frozenset[int], ...]  # the threads of one core
    clusters: tuple[frozenset[int], ...]  # that share an L3; empty where Linux does not tell
    nodes: dict[int, frozenset[int]]  # by number; each has memory of its own

    def __str__(self) -> str:
        parts = [f"{len(self.cores)} cores"]
        if self.clusters:
            parts.append(f"L3 shared by {' + '.join(str(self._cores_in(cluster)) for cluster in self.clusters)}")
        parts.append(f"{len(self.nodes)} NUMA node{'s' if len(self.nodes) > 1 else ''}")
        return ", ".join(parts)

    def advice(self, threads: int) -> str | None:
        """How to start processes where one with so many threads would use the memory of several nodes."""
        if len(self.nodes) < 2:
            return None
        largest = max(self._cores_in(cpus) for cpus in self.nodes.values())
        if threads <= largest:
            return None
        node, cpus = min(self.nodes.items())
        return (
            f"{threads} threads span several NUMA nodes. One process a node is faster: OMP_NUM_THREADS="
            f"{self._cores_in(cpus)} numactl --cpunodebind={node} --membind={node} python ..., and likewise the others."
        )

    def _cores_in(self, cpus: frozenset[int]) -> int:
        return sum(1 for core in self.cores if core & cpus)


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list as Linux writes it: "0-3,8"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def read_topology(root: Path = _SYSTEM, allowed: frozenset[int] | None = None) -> Topology:
    """Of the CPUs in ``allowed``; None: those that this process may use."""
    if allowed is None:
        allowed = frozenset(os.sched_getaffinity(0))

    def groups(of_cpu: str) -> tuple[frozenset[int], ...]:
        """Sets of CPUs, from a file that each CPU has; none where it is missing."""
        files = [root / "cpu" / f"cpu{cpu}" / of_cpu for cpu in sorted(allowed)]
        found = {cpu_list(file.read_text()) & allowed: None for file in files if file.exists()}
        return tuple(found)

    nodes = {
        int(file.parent.name.removeprefix("node")): cpus
        for file in sorted((root / "node").glob("node[0-9]*/cpulist"))
        if (cpus := cpu_list(file.read_text()) & allowed)
    }
    return Topology(
        groups("topology/thread_siblings_list") or tuple(frozenset({cpu}) for cpu in sorted(allowed)),
        groups("cache/index3/shared_cpu_list") or groups("topology/cluster_cpus_list"),
        nodes or {0: allowed},
    )
