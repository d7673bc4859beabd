"""The machine's roof: how fast it multiplies large matrices, on the threads that torch uses now."""

from __future__ import annotations

import time

import torch

_SHAPE = (512, 1024, 2048)
_REPEATS = 5


def peak_gflops() -> dict[str, float]:
    """The best GFLOP/s of a matrix product by type: ``fp32``, and what else the CPU is made for.

    That may be ``bf16`` and ``int8``; elsewhere torch would emulate them.
    """
    types = {"fp32": torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        types["bf16"] = torch.bfloat16
    if torch.cpu._is_vnni_supported():
        types["int8"] = torch.int8
    return {name: _best(dtype) for name, dtype in types.items()}


def _best(dtype: torch.dtype) -> float:
    rows, inner, columns = _SHAPE
    left, right = (torch.ones(shape, dtype=dtype) for shape in ((rows, inner), (inner, columns)))
    product = torch.mm if dtype.is_floating_point else torch._int_mm
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter_ns()
        product(left, right)
        times.append(time.perf_counter_ns() - start)
    return 2 * rows * inner * columns / min(times[1:])
