"""Probe the machine: its peaks of arithmetic and of reading memory, and its noise.

Peaks are those of the threads that torch uses now.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from scalebench_lib.measure.optimizations.base import DTYPES, best_ns, multiplies_in
from scalebench_lib.optimizations import Precision

_SHAPES = ((512, 1024, 2048), (384, 768, 3072), (1024, 1024, 1024))
"""Each takes about 2 GFLOP; which of them is fastest differs from CPU to CPU."""

_REPEATS = 2

_CPUS = Path("/sys/devices/system/cpu")
_MIN_READ_BYTES = 256 << 20
"""For systems that do not list the sizes of their caches."""

PROBE_SECONDS = 10.0

QUIET = 1.15
"""A machine is quiet if its times stay below this ratio to the best."""


def peak_gflops(precision: Precision) -> dict[str, float]:
    """Return the best GFLOP/s of a matrix product in `precision`, by its name.

    Empty if torch would emulate that type.
    """
    if not multiplies_in(precision):
        return {}
    return {precision: max(_gflops(shape, DTYPES[precision]) for shape in _SHAPES)}


def _gflops(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    rows, inner, columns = shape
    left, right = (torch.ones(size, dtype=dtype) for size in ((rows, inner), (inner, columns)))
    product = torch.mm if dtype.is_floating_point else torch._int_mm
    return 2 * rows * inner * columns / best_ns(lambda: product(left, right), _REPEATS)


def read_gb_per_s() -> float | None:
    """Return the best GB/s (1e9 bytes/s) at which a matrix is read from memory.

    The faster of a product with a vector and a sum. The matrix is four times as large as all
    last-level caches together; None where the memory for it is not free.
    """
    size = max(_MIN_READ_BYTES, 4 * total_llc_bytes())
    if size > psutil.virtual_memory().available / 2:
        return None
    matrix, vector = torch.ones(size // 4 // 4096, 4096), torch.ones(4096)  # by these threads
    reads = (lambda: torch.mv(matrix, vector), matrix.sum)
    return matrix.nbytes / min(best_ns(read, _REPEATS) for read in reads)


def total_llc_bytes() -> int:
    """Return the size of all third-level caches together; 0 where it is not known."""
    sizes = {}
    for cache in _CPUS.glob("cpu[0-9]*/cache/index3"):
        size = (cache / "size").read_text().strip()
        sizes[(cache / "shared_cpu_list").read_text()] = int(size.removesuffix("K")) << 10
    return sum(sizes.values())


class Noise(NamedTuple):
    """Times of a fixed piece of work in ms: the 5th, 50th and 99th percentile."""

    best: float
    typical: float
    worst: float

    @property
    def advice(self) -> str:
        """One sentence: the error to expect of measurements made now, and what to do."""
        if self.worst / self.best < QUIET:
            return "Quiet: measurements made now will repeat well."
        if self.typical / self.best < QUIET:
            return "Disturbed at times: use more seconds a point (--max-seconds)."
        return "Noisy: others use this machine, or its clock changes; stop them, or measure later."


def probe_noise(seconds: float = PROBE_SECONDS) -> Noise:
    """Time a small matrix product over and over for `seconds`."""
    left, right = np.ones((16, 768), np.float32), np.ones((768, 3072), np.float32)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(8):
            _ = left @ right
        times.append((time.perf_counter() - start) * 1e3)
    return Noise(*map(float, np.percentile(times, (5, 50, 99))))
