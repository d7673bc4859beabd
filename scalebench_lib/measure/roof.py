"""The machine's roof: how fast it multiplies large matrices, on the threads that torch uses now."""

from __future__ import annotations

import time

import torch

_SHAPE = (512, 1024, 2048)
_REPEATS = 5


def peak_gflops() -> dict[str, float]:
    """The best GFLOP/s of a matrix product, by type: ``fp32``, and ``bf16`` where there is such."""
    types = {"fp32": torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        types["bf16"] = torch.bfloat16
    return {name: _best(dtype) for name, dtype in types.items()}


def _best(dtype: torch.dtype) -> float:
    rows, inner, columns = _SHAPE
    left = torch.full((rows, inner), 0.5, dtype=dtype)
    right = torch.full((inner, columns), 0.5, dtype=dtype)
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter_ns()
        torch.mm(left, right)
        times.append(time.perf_counter_ns() - start)
    return 2 * rows * inner * columns / min(times[1:])
