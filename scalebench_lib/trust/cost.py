"""What measuring costs beside the passes that are measured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import product

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


def beside_sampling(bench: Bench, visits: int, models: Iterable[str]) -> pd.DataFrame:
    """Seconds of each visit that are not sampling, warm and fresh. Columns: model, kind, beside_s.

    They are visits as a sweep makes them again and again; its first one of a config also measures
    the machine's peak, FLOPs and the error against fp64.
    """
    rows = []
    with Kernels(warm=False) as fresh:
        kinds = {"warm": bench, "fresh": Bench(bench.folder, fresh)}
        for _, model, (kind, one) in product(range(visits), models, kinds.items()):
            start = time.perf_counter()
            record = one.visit(two_counts(), 0.5, kind, thorough=False, model=model)
            wall = time.perf_counter() - start
            spent = sum(point.spent_s for point in record.points)
            rows.append({"model": model, "kind": record.kernel, "beside_s": wall - spent})
    return pd.DataFrame(rows)
