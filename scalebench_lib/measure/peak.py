"""The machine's peaks on the threads that torch uses now: of arithmetic and of reading memory."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import torch

from scalebench_lib.measure.optimizations.base import DTYPES, has_native_matmul
from scalebench_lib.optimizations import Precision

_SHAPES = ((512, 1024, 2048), (384, 768, 3072), (1024, 1024, 1024))
"""Each takes about 2 GFLOP; which of them is fastest differs from CPU to CPU."""

_REPEATS = 2

_CPUS = Path("/sys/devices/system/cpu")
_MIN_READ_BYTES = 256 << 20
"""For systems that do not list the sizes of their caches."""


def peak_gflops(precision: Precision) -> dict[str, float]:
    """Return the best GFLOP/s of a matrix product in `precision`, by its name.

    Empty if torch would emulate that type.
    """
    if not has_native_matmul(precision):
        return {}
    return {precision: max(_gflops(shape, DTYPES[precision]) for shape in _SHAPES)}


def _gflops(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    rows, inner, columns = shape
    left, right = (torch.ones(size, dtype=dtype) for size in ((rows, inner), (inner, columns)))
    product = torch.mm if dtype.is_floating_point else torch._int_mm
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter_ns()
        product(left, right)
        times.append(time.perf_counter_ns() - start)
    return 2 * rows * inner * columns / min(times[1:])


def read_gb_per_s() -> float | None:
    """Return the best GB/s (1e9 bytes/s) at which a matrix is read from memory.

    The faster of a product with a vector and a sum. The matrix is four times as large as all
    last-level caches together; None where the memory for it is not free.
    """
    size = max(_MIN_READ_BYTES, 4 * total_llc_bytes())
    if size > psutil.virtual_memory().available / 2:
        return None
    matrix, vector = torch.ones(size // 4 // 4096, 4096), torch.ones(4096)  # by these threads
    times = []
    for _ in range(1 + _REPEATS):
        for read in (lambda: torch.mv(matrix, vector), lambda: matrix.sum()):
            start = time.perf_counter_ns()
            read()
            times.append(time.perf_counter_ns() - start)
    return matrix.nbytes / min(times)


def total_llc_bytes() -> int:
    """Return the size of all third-level caches together; 0 where it is not known."""
    sizes = {}
    for cache in _CPUS.glob("cpu[0-9]*/cache/index3"):
        size = (cache / "size").read_text().strip()
        sizes[(cache / "shared_cpu_list").read_text()] = int(size.removesuffix("K")) << 10
    return sum(sizes.values())
