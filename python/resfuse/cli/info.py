"""``resfuse info``."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import resfuse
from resfuse import _core
from resfuse.cli.topology import read_topology


def openmp_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes mapped into this process (one is right, two fight for the cores)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    names = ("libgomp", "libomp.so", "libiomp5")
    return sorted(path for path in paths if Path(path).name.startswith(names))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def facts() -> dict[str, str]:
    """What this machine and installation are, ready to print."""
    isa = _core.active_isa()
    kernels = _core.kernel_table(isa)
    l2, l3 = _core.cache_bytes()
    threads, quota = torch.get_num_threads(), _core.cpu_quota()
    limit = f", {_core.usable_threads(threads)} used: a quota of {quota:g} CPUs" if 0 < quota < threads else ""
    return {
        "resfuse": resfuse.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "CPU": _cpu_name(),
        "caches": f"L2 {l2 // 1024} KiB a core, L3 {l3 // 2**20} MiB",
        "cores": str(read_topology()),
        "ISA found": _core.available_isas()[-1],
        "ISA used": f"{isa} (of {', '.join(_core.available_isas())}; RESFUSE_ISA forces a lower one)",
        "kernels": f"{kernels['name']}: {kernels['vector_floats']} floats a vector, "
        f"register tile {kernels['tile_rows']} x {kernels['tile_cols']}",
        "products": f"int8 as {'bytes' if kernels['multiplies_bytes'] else '16-bit words'}, "
        f"bf16 {'in units of several' if kernels['multiplies_bf16'] else 'in fp32'}",
        "types": "\n".join(f"{name}: {', '.join(uses)}" for name, uses in _core.kernel_types(isa).items()),
        "algorithms": ", ".join(_core.algorithms()),
        "threads": f"{threads} (torch.set_num_threads){limit}",
        "OpenMP": "\n".join(openmp_runtimes()) or "unknown",
    }


def show() -> None:
    """Prints the facts as a table."""
    table = Table(title="resfuse", show_header=False)
    for name, value in facts().items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    if advice := read_topology().advice(torch.get_num_threads()):
        console.print(f"[yellow]{advice}")
    if len(openmp_runtimes()) > 1:
        console.print("[yellow]More than one OpenMP runtime is loaded: their thread pools will disturb each other.")
