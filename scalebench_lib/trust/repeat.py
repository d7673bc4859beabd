"""How far whole sweeps of the same differ."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.config import Sweep
from scalebench_lib.results import load_results
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.runner import Job


def sweeps(folder: Path, times: int, kernels: Kernels, **axes: Any) -> list[pd.DataFrame]:
    """The same sweep `times` times, one after another; their results tables."""
    tables = []
    for number in range(1, times + 1):
        job = Job.prepare(Sweep(**axes), folder / f"sweep-{number}")
        job.run(lambda _: None, kernels)
        tables.append(load_results(job.out))
    return tables


def differences(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """How far the points of each pair of sweeps differ, and whether their intervals agree.

    Columns: pair, config_id, threads, headline and raw (relative differences), compatible.
    """
    rows = []
    for (i, one), (j, other) in combinations(enumerate(tables, 1), 2):
        both = one.merge(other, on=["config_id", "threads"], suffixes=("_1", "_2"))
        for row in both.to_dict("records"):
            apart = abs(_log(row, "latency_ms"))
            rows.append(
                {
                    "pair": f"{i}–{j}",
                    "config_id": row["config_id"],
                    "threads": row["threads"],
                    "headline": apart,
                    "raw": abs(_log(row, "latency_ms_raw")),
                    "compatible": apart <= np.hypot(_reach(row, "_1"), _reach(row, "_2")),
                }
            )
    return pd.DataFrame(rows)


def _log(row: Mapping[Any, Any], column: str) -> float:
    return float(np.log(row[f"{column}_1"] / row[f"{column}_2"]))


def _reach(row: Mapping[Any, Any], side: str) -> float:
    return float(np.log(row[f"latency_ms_high{side}"] / row[f"latency_ms{side}"]))
