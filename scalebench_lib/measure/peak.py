"""The machine's peak: how fast it multiplies large matrices, on the threads that torch uses now."""

from __future__ import annotations

import time

import torch

from scalebench_lib.measure.optimizations.base import has_bfloat16, has_float16
from scalebench_lib.optimizations import Precision

_SHAPES = ((512, 1024, 2048), (384, 768, 3072), (1024, 1024, 1024))
"""Of about 2 GFLOP each: which of them is fastest differs from CPU to CPU."""

_TYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
_REPEATS = 2


def peak_gflops(precision: Precision) -> dict[str, float]:
    """Return the best GFLOP/s of a matrix product in `precision`, by its name.

    Empty if the CPU has no arithmetic of that type: torch would emulate it.
    """
    if precision == "bf16" and not has_bfloat16():
        return {}
    if precision == "fp16" and not has_float16():
        return {}
    if precision == "int8" and not torch.cpu._is_vnni_supported():
        return {}
    return {precision: max(_gflops(shape, _TYPES[precision]) for shape in _SHAPES)}


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
