"""What measuring costs beside the passes that are measured."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.measure.timing import Series, TimingLoop
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.trust.bench import NO_EARLY_STOP, Bench, two_counts


def null_costs_us(repeats: int = 100) -> np.ndarray:
    """Microseconds that the timing loop adds to each sample, with a model that does nothing."""

    def nothing(_: int = 0) -> None:
        return None

    loop = TimingLoop(nothing, nothing, nothing, (1,), NO_EARLY_STOP, 0.0)
    costs = []
    for _ in range(repeats):
        start = time.perf_counter()
        samples = loop.stretch(Series(threads=1))
        costs.append((time.perf_counter() - start) / samples)
    return np.array(costs) * 1e6


def beside_sampling(bench: Bench, visits: int, **config: Any) -> pd.DataFrame:
    """Seconds of each visit that are not sampling, warm and fresh. Columns: kind, beside_s."""
    rows = []
    with Kernels(warm=False) as fresh:
        for kind, one in (("warm", bench), ("fresh", Bench(bench.folder, fresh))) * visits:
            start = time.perf_counter()
            record = one.visit(two_counts()[:1], 0.5, kind, **config)
            wall = time.perf_counter() - start
            spent = sum(point.spent_s for point in record.points)
            rows.append({"kind": record.kernel, "beside_s": wall - spent})
    return pd.DataFrame(rows)
