from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

class Program:
    def __init__(self, text: str, isa: str | None = None, dtype: str = "fp32") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def layers(self) -> list[str]: ...

class WeightSet:
    def __init__(self, program: Program) -> None: ...
    def set_parameters(self, parameters: Sequence[npt.NDArray[Any]]) -> None: ...
    def set_first(self, weight: FloatArray, bias: Sequence[float]) -> None: ...
    def int8(
        self, layer: int, threads: int
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float64]]: ...
    @property
    def packed_bytes(self) -> int: ...

class Plan:
    def __init__(
        self,
        program: Program,
        batch: int,
        inputs: Sequence[tuple[int, int, bool]],
        threads: int,
        planes: Sequence[int] = (),
    ) -> None: ...
    def output_shape(self, output: int) -> tuple[int, int, int, int]: ...
    def prepare(self, weights: WeightSet) -> None: ...
    def run(
        self,
        weights: WeightSet,
        inputs: Sequence[FloatArray],
        outputs: Sequence[FloatArray],
        profile: bool = False,
    ) -> list[float]: ...
    def run_if(
        self,
        weights: WeightSet,
        inputs: Sequence[FloatArray],
        outputs: Sequence[FloatArray],
        are_current: Callable[[], bool],
    ) -> bool: ...
    @property
    def threads(self) -> int: ...
    def task_times(
        self, weights: WeightSet, inputs: Sequence[FloatArray], outputs: Sequence[FloatArray]
    ) -> npt.NDArray[np.float64]: ...
    def layers(self) -> list[dict[str, Any]]: ...
    def buffers(self) -> list[dict[str, Any]]: ...
    def segments(self) -> list[tuple[int, int, int]]: ...
    @property
    def workspace_bytes(self) -> int: ...

class StateWatch:
    def __init__(
        self,
        held: Sequence[tuple[dict[Any, Any], Any, Any]],
        absent: Sequence[tuple[dict[Any, Any], Any]],
        contents: Sequence[tuple[Any, Any]],
        types: Sequence[tuple[Any, Any]],
        cells: Sequence[tuple[Any, Any]],
        empty: Sequence[dict[Any, Any]],
        usual: Sequence[tuple[dict[Any, Any], Any, Any]],
    ) -> None: ...
    def check(self) -> int: ...

class DictReader:
    def __init__(self, items: Sequence[tuple[dict[Any, Any], Any]]) -> None: ...
    def values(self) -> list[Any]: ...

class Fingerprint:
    def __init__(self, arrays: Sequence[FloatArray]) -> None: ...
    def take(self, threads: int) -> None: ...
    def samples(self) -> int: ...
    def same_slice(self, threads: int) -> bool: ...
    @property
    def slices(self) -> int: ...

def global_avg_pool(
    x: int, dtype: int, shape: Sequence[int], strides: Sequence[int], y: int, threads: int, isa: str | None = None
) -> None: ...
def global_avg_pool_backward(
    grad: int,
    grad_strides: Sequence[int],
    dx: int,
    dtype: int,
    shape: Sequence[int],
    strides: Sequence[int],
    threads: int,
    isa: str | None = None,
) -> None: ...
def read_all(buffer: npt.NDArray[Any], threads: int) -> int: ...
def copy_to_planes(x: FloatArray, y: FloatArray, threads: int, isa: str | None = None) -> None: ...
def active_isa() -> str: ...
def available_isas() -> list[str]: ...
def kernel_table(isa: str) -> dict[str, Any]: ...
def kernel_types(isa: str) -> dict[str, list[str]]: ...
def algorithms() -> list[str]: ...
def usable_threads(wanted: int) -> int: ...
def cpu_quota() -> float: ...
def cgroup_cpus(root: str, membership: str) -> float: ...
def cache_bytes() -> tuple[int, int]: ...
def norm_statistics(
    x: FloatArray, mean: FloatArray, variance: FloatArray, threads: int, isa: str | None = None
) -> None: ...
def norm_forward(
    x: FloatArray,
    residual: FloatArray | None,
    mean: FloatArray,
    scale: FloatArray,
    bias: FloatArray,
    relu: bool,
    y: FloatArray,
    threads: int,
    isa: str | None = None,
) -> None: ...
def norm_backward(
    grad: FloatArray,
    y: FloatArray | None,
    scale: FloatArray | None,
    bias: FloatArray | None,
    x: FloatArray,
    mean: FloatArray,
    inverse_deviation: FloatArray,
    weight: FloatArray | None,
    batch_statistics: bool,
    dx: FloatArray,
    dresidual: FloatArray | None,
    dweight: FloatArray | None,
    dbias: FloatArray | None,
    threads: int,
    isa: str | None = None,
) -> None: ...
def weight_gradient(
    x: FloatArray,
    grad: FloatArray,
    dw: FloatArray,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    algorithm: str,
    threads: int,
    isa: str | None = None,
) -> None: ...
def input_gradient(
    grad: FloatArray,
    weight: FloatArray,
    dx: FloatArray,
    accumulate: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    threads: int,
    isa: str | None = None,
) -> None: ...
def max_pool_forward(
    x: FloatArray,
    y: FloatArray,
    taps: npt.NDArray[np.uint8],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    threads: int,
    isa: str | None = None,
) -> None: ...
def max_pool_backward(
    grad: FloatArray,
    taps: npt.NDArray[np.uint8],
    dx: FloatArray,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    threads: int,
    isa: str | None = None,
) -> None: ...
def empty(shape: Sequence[int], item_bytes: int = 4) -> npt.NDArray[Any]: ...
def heap_bytes() -> tuple[int, int]: ...
def measure_clock() -> float: ...
def measure_handover(threads: int) -> float: ...
def measure_multiply_adds(threads: int) -> float: ...
def openmp_max_threads() -> int: ...
