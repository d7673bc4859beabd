"""Ratios of points of one sweep: speed-ups over eager, and over one thread, with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scalebench_lib.analysis.selection import METRICS, Values

EAGER = "none"

_LIKE = ["batch_size", "optimization", "smt"]


def over_eager(table: pd.DataFrame, threads: int | None = None) -> pd.DataFrame:
    """How many times as fast as eager each config is, by batch size: a row each.

    `table` holds one setting. Both sides at `threads` threads, by default each at its best
    thread count. Columns of the table, and ``speedup, speedup_low, speedup_high``, NaN where
    there is no eager to compare with.
    """
    best = best_threads(table, threads)
    eager = best[best["optimization"] == EAGER].set_index(["batch_size", "smt"])
    keys = pd.MultiIndex.from_frame(best[["batch_size", "smt"]])
    return _with_speedup(best, eager.reindex(keys))


def over_one_thread(table: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast as on one thread each measured point of `table` is: a row each.

    `table` holds one setting. Columns as those of `over_eager`.
    """
    found = table[table["status"] == "ok"]
    single = found[found["threads"] == 1].set_index(_LIKE)
    return _with_speedup(found, single.reindex(pd.MultiIndex.from_frame(found[_LIKE])))


def best_threads(table: pd.DataFrame, threads: int | None = None) -> pd.DataFrame:
    """The measured points at `threads`, or at each config's best thread count."""
    found = table[table["status"] == "ok"]
    if threads is not None:
        return found[found["threads"] == threads]
    return found.loc[found.groupby(_LIKE)["latency_ms"].idxmin()]


def ratio(over: Values, under: Values) -> Values:
    """`over` / `under` with the interval of independent errors, added in logarithms."""
    values = over[0] / under[0]
    low = np.hypot(np.log(over[0] / over[1]), np.log(under[2] / under[0]))
    high = np.hypot(np.log(over[2] / over[0]), np.log(under[0] / under[1]))
    return values, values * np.exp(-low), values * np.exp(high)


def _with_speedup(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    latency = METRICS["latency"].of
    speedup, low, high = ratio(latency(base), latency(rows))
    own = base["config_id"].to_numpy() == rows["config_id"].to_numpy()
    own &= base["threads"].to_numpy(float, na_value=-1) == rows["threads"].to_numpy(float)
    # A point over itself is 1 by definition: it has no error.
    columns = {"speedup": speedup, "speedup_low": low, "speedup_high": high}
    return rows.assign(**{name: np.where(own, 1.0, values) for name, values in columns.items()})
