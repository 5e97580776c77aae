"""One OpenMP runtime, the same bits for any number of threads, many Python threads on one model."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import resfuse
from resfuse import _core
from resfuse.bench.models import make_model, randomize_batch_norm
from resfuse.engine.executor import Executor
from resfuse.engine.gil import require_gil


def _fused(name: str) -> torch.nn.Module:
    model = make_model(name).eval()
    randomize_batch_norm(model)
    return resfuse.fuse(model)


@pytest.mark.parametrize("data", ["", "from resfuse.bench.digits import load_digits; load_digits();"])
def test_one_openmp_runtime_is_mapped(data: str) -> None:
    code = (
        "import torch, resfuse; from resfuse.cli.info import openmp_runtimes;" + data + "torch.set_num_threads(2);"
        "m = resfuse.fuse(resfuse.models.ResNet('basic', [1], width=8, num_classes=3).eval());"
        "torch.set_grad_enabled(False); m(torch.randn(2, 3, 64, 64)); torch.randn(999, 999) @ torch.randn(999, 999);"
        "r = openmp_runtimes(); assert len(r) == 1 and 'torch' in r[0], r"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "size"), [("resnet18", 96), ("resnet50", 64), ("seed", 32)])
@pytest.mark.parametrize("batch", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(name: str, size: int, batch: int) -> None:
    fast = _fused(name)
    x = torch.randn(batch, 3, size, size)
    results = []
    with torch.no_grad():
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(fast(x))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("width", [1, 4, 8, 24])
def test_results_of_narrow_networks_do_not_depend_on_threads(isa: str, width: int) -> None:
    """Where the pool runs, in the last convolution or behind it, does; found on AVX2, by workers with one thread."""
    fast = resfuse.fuse(resfuse.models.ResNet("basic", [1], width=width, num_classes=5, stem="cifar").eval())
    (bound,) = fast.fusion().binding.programs
    executor, x = Executor(bound.step.spec, isa), torch.randn(2, 3, 16, 16)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(executor.run([x], bound.parameters())[0])
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_position_in_the_batch_does_not_matter_under_a_pinned_algorithm() -> None:
    model = make_model("resnet18").eval()
    randomize_batch_norm(model)
    fast = resfuse.fuse(model, algorithm="direct")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        alone = fast(x)
        batch = fast(torch.cat([torch.randn(3, 3, 64, 64), x, torch.randn(2, 3, 64, 64)]))
    assert torch.equal(alone[0], batch[3])


def test_several_python_threads_call_one_model() -> None:
    fast = _fused("resnet18")
    inputs = [torch.randn(1 + i % 3, 3, 64, 64) for i in range(8)]

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return fast(x)

    expected = [call(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(expected, pool.map(call, inputs), strict=True))


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


@pytest.mark.parametrize("isa", _core.available_isas())
def test_isa_can_be_forced(isa: str) -> None:
    code = (
        "import torch, resfuse; from resfuse import _core; assert _core.active_isa() == '" + isa + "';"
        # Errors of a few numbers are chance: many outputs, the same ones each time.
        "torch.manual_seed(0); x = torch.randn(8, 3, 40, 40);"
        "m = resfuse.models.ResNet('basic', [1], width=16, num_classes=100).eval();"
        "resfuse.verify(m, resfuse.fuse(m), x)"
    )
    result = _python(code, RESFUSE_ISA=isa)
    assert result.returncode == 0, result.stderr


def test_an_unknown_isa_is_a_clear_error() -> None:
    result = _python("import resfuse; resfuse._core.active_isa()", RESFUSE_ISA="sse9")
    assert result.returncode != 0
    assert "RESFUSE_ISA=sse9" in result.stderr
    levels = {
        "x86_64": "generic, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16, avx512_amx, zen4",
        "aarch64": "generic, neon, neon_dotprod, neon_i8mm, neon_bf16",
    }
    assert f"want one of {levels[platform.machine()]}" in result.stderr


_MANY = """
import torch, resfuse
torch.manual_seed(0)
model = resfuse.models.ResNet("bottleneck", [1, 1, 1, 1], width=32, num_classes=50).eval()
fast = resfuse.fuse(model)
for batch in (1, 5):
    x = torch.randn(batch, 3, 112, 112)
    torch.set_num_threads(1)
    with torch.no_grad():
        want = fast(x)
        for threads in (2, 3, 7, 16, 31, 64, 128):
            torch.set_num_threads(threads)
            assert torch.equal(fast(x), want), (batch, threads)
"""


@pytest.mark.parametrize("isa", _core.available_isas())
def test_results_of_many_threads_are_the_same_bits(isa: str) -> None:
    result = _python(_MANY, RESFUSE_ISA=isa, OMP_WAIT_POLICY="passive")  # threads that wait leave their core
    assert result.returncode == 0, result.stderr[-2000:]


_FORK = """
import os, signal, sys, torch, resfuse
torch.set_num_threads(2)
model = resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=5, stem="cifar").eval()
fast, x = resfuse.fuse(model), torch.randn(4, 3, 32, 32)
with torch.no_grad():
    before = fast(x)  # starts OpenMP's threads, which a fork does not take along
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    with torch.no_grad():
        same = torch.equal(fast(x), before)
        pool = resfuse.nn.GlobalAvgPool2d()(torch.randn(8, 256, 28, 28)).shape == (8, 256, 1, 1)
    os._exit(0 if same and pool else 1)
_, status = os.waitpid(pid, 0)
with torch.no_grad():
    assert torch.equal(fast(x), before)
sys.exit(os.waitstatus_to_exitcode(status) & 0xff)
"""


def test_a_forked_process_computes_the_same() -> None:
    """libgomp's pool is gone in a forked child; a region that waited for it would hang."""
    result = _python(_FORK)
    assert result.returncode == 0, result.stderr


_WORKERS = """
import sys, torch, resfuse

class Features(torch.utils.data.Dataset):
    def __init__(self, fast): self.fast = fast
    def __len__(self): return 12
    def __getitem__(self, i):
        with torch.no_grad():
            return self.fast(torch.full((1, 3, 16, 16), float(i)))[0]

if __name__ == "__main__":
    torch.manual_seed(0)
    fast = resfuse.fuse(resfuse.models.ResNet("basic", [1], width=8, num_classes=5, stem="cifar").eval())
    data = Features(fast)
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=sys.argv[1], timeout=120)
    assert torch.equal(torch.cat(list(loader)), expected)
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers(method: str, tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(_WORKERS)
    command = [sys.executable, str(script), method]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_threads_see_old_or_new_weights_and_nothing_between() -> None:
    """One thread replaces all weights while others run: each result is wholly of one version."""
    torch.manual_seed(0)
    model = resfuse.models.ResNet("basic", [1, 1], width=8, num_classes=5, stem="cifar").eval()
    versions = []
    x = torch.randn(1, 3, 16, 16)
    fast = resfuse.fuse(model)
    states = []
    with torch.no_grad():
        for _ in range(2):
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            states.append({key: value.clone() for key, value in model.state_dict().items()})
            versions.append(fast(x))
    stop = threading.Event()
    lock = threading.Lock()

    def write() -> None:
        i = 0
        while not stop.is_set():
            # A writer that locks readers out, as a server does; what must hold then is that no packing is stale.
            with lock, torch.no_grad():
                model.load_state_dict(states[i % 2])
            i += 1

    def read(_: int) -> bool:
        with lock, torch.no_grad():
            y = fast(x)
        return any(torch.equal(y, version) for version in versions)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(200)))
    finally:
        stop.set()
        writer.join()


def test_threads_may_be_set_at_any_time() -> None:
    fast = _fused("seed")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = fast(x)
        for threads in (1, 4, 2, 1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fast(x), expected)


def _mxcsr_flushes() -> bool:
    """Whether torch computes with denormals as zeros in this thread."""
    return bool((torch.tensor([1e-39]) * torch.tensor([1.0])).item() == 0.0)


def test_the_floating_point_environment_is_restored() -> None:
    fast = _fused("seed")
    assert not _mxcsr_flushes()
    with torch.no_grad():
        fast(torch.randn(2, 3, 32, 32))
    assert not _mxcsr_flushes()
    fast.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert not _mxcsr_flushes()
    # In OpenMP's other threads too.
    tiny = torch.full((1 << 20,), 1e-39)
    assert bool(((tiny * 1.0) == tiny).all())


@pytest.mark.parametrize("what", ["input", "weights"])
def test_denormal_numbers_are_as_good_as_zeros(what: str) -> None:
    model = resfuse.models.ResNet("basic", [1], width=8, num_classes=5, stem="cifar").eval()
    fast = resfuse.fuse(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        if what == "input":
            x = x * 1e-39
        else:
            model.conv1.weight.mul_(1e-39)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


_INTERRUPTED = """
import os, signal, threading, torch, resfuse
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit that it is ignored
model = resfuse.models.ResNet("basic", [1, 1], width=16, num_classes=5, stem="cifar").eval()
fast, x = resfuse.fuse(model), torch.randn(64, 3, 32, 32)
with torch.no_grad():
    before = fast(x)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            fast(x)
    except KeyboardInterrupt:
        assert torch.equal(fast(x), before)
        print("interrupted")
"""


def test_ctrl_c_ends_a_loop_of_calls_and_leaves_the_model_usable() -> None:
    result = _python(_INTERRUPTED)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "interrupted\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="wants Linux's affinity")
def test_affinity_limits_the_threads() -> None:
    result = _python(
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "import torch, resfuse; from resfuse import _core;"
        "m = resfuse.fuse(resfuse.models.ResNet('basic', [1], width=8, num_classes=3).eval());"
        "torch.set_grad_enabled(False); m(torch.randn(2, 3, 64, 64));"
        "print(torch.get_num_threads(), _core.openmp_max_threads(), _core.usable_threads(torch.get_num_threads()))",
        OMP_NUM_THREADS="",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", "1", "1"]


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "membership", "cpus"),
    [
        ({"pod/box/cpu.max": "150000 100000\n"}, "0::/pod/box\n", 1.5),
        ({"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, "0::/pod/box\n", 3.0),
        ({"pod/box/cpu.max": "400000 100000\n", "pod/cpu.max": "50000 100000\n"}, "0::/pod/box\n", 0.5),
        ({"cpu.max": "200000 100000\n"}, "0::/a/path/of/the/host\n", 2.0),
        ({"cpu.max": "max 100000\n"}, "0::/\n", 0.0),
        (
            {"cpu/x/cpu.cfs_quota_us": "250000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            "3:cpu,cpuacct:/x\n0::/\n",
            2.5,
        ),
        ({"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "3:cpuset:/\n1:cpu:/x\n", 0.0),
        ({}, "", 0.0),
        ({"cpu.max": "nonsense"}, "0::/\nnonsense\n", 0.0),
    ],
)
def test_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], membership: str, cpus: float) -> None:
    _write(tmp_path, files)
    assert _core.cgroup_cpus(str(tmp_path), membership) == cpus


def test_quota_of_this_process_limits_its_threads() -> None:
    """In a control group of our own (version 1 or 2), where we may make one."""
    for group, limit in (("cpu/resfuse_test", "cpu.cfs_quota_us"), ("resfuse_test", "cpu.max")):
        path = Path("/sys/fs/cgroup") / group
        try:
            path.mkdir()
            (path / limit).write_text("100000" if "cfs" in limit else "100000 100000")
            break
        except OSError:
            path.rmdir() if path.exists() else None
    else:
        pytest.skip("no control group can be made here")
    try:
        result = _python(
            "import os, pathlib;"
            f"pathlib.Path('{path}/cgroup.procs').write_text(str(os.getpid()));"
            "import torch, resfuse; from resfuse import _core; torch.set_num_threads(4);"
            "m = resfuse.fuse(resfuse.models.ResNet('basic', [1], width=8, num_classes=3).eval());"
            "torch.set_grad_enabled(False); m(torch.randn(2, 3, 64, 64));"
            "print(_core.cpu_quota(), _core.usable_threads(4))"
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == ["1.0", "1"]
    finally:
        path.rmdir()


def test_an_interpreter_without_the_gil_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_gil()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(ImportError, match="PYTHON_GIL=1"):
        require_gil()
