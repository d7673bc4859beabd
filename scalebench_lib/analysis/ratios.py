"""Ratios of points of one sweep in its table: speed-ups over eager, and over one thread.

`Results.ratio` makes each of them; here they become columns, so that figures and the page's
script need the table alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from scalebench_lib.stats import Ratio

EAGER = "none"

RATIOS = ("speedup", "same_threads", "scaling")
"""What a point is compared with: eager at its best thread count, eager at the same number of
threads, and its own config at one thread. Each is the other's latency over the point's."""

_PARTS = ("", "_low", "_high", "_paired")
RATIO_COLUMNS = tuple(f"{name}{part}" for name in RATIOS for part in _PARTS)

_LIKE = ["batch_size", "optimization", "smt"]


Row = Mapping[Any, Any]
"""A row of the results table."""

RatioOf = Callable[[Row, Row], Ratio]
"""The latency of one row over that of another."""

_GROUP = ["machine", "model", "seq_len", "image_size", "placement", "device", "batch_size"]


def with_ratios(table: pd.DataFrame, ratio: RatioOf) -> pd.DataFrame:
    """`table` with `RATIO_COLUMNS`, and with ``is_base`` for the rows of what is called eager.

    That is eager on the default allocator with SMT off, each: else the first that there is.
    Ratios to what was not measured are empty.
    """
    groups = table.groupby(_GROUP, sort=False, dropna=False)
    found = pd.concat([_ratios_in(part, ratio) for _, part in groups])
    return table.drop(columns=[*RATIO_COLUMNS, "paired"], errors="ignore").join(found)


def _ratios_in(rows: pd.DataFrame, ratio: RatioOf) -> pd.DataFrame:
    """The new columns for the `rows` of one group."""
    eager = rows[rows["optimization"] == EAGER].sort_values(["allocator", "smt"])
    name = None if eager.empty else eager["config_id"].iloc[0]
    measured = rows[rows["status"] == "ok"].to_dict("index")
    points = {(row["config_id"], row["threads"]): row for row in measured.values()}
    base = {row["threads"]: row for row in measured.values() if row["config_id"] == name}
    best = min(base.values(), key=lambda row: row["latency_ms"], default=None)
    found = {
        place: [
            *_cells(best, row, ratio),
            *_cells(base.get(row["threads"]), row, ratio),
            *_cells(points.get((row["config_id"], 1)), row, ratio),
        ]
        for place, row in measured.items()
    }
    columns = pd.DataFrame.from_dict(found, orient="index", columns=list(RATIO_COLUMNS))
    return columns.reindex(rows.index).assign(is_base=rows["config_id"] == name)


def _cells(over: Row | None, row: Row, ratio: RatioOf) -> tuple[Any, ...]:
    """How many times as fast `row` is as the one `over` which it is compared."""
    if over is None:
        return math.nan, math.nan, math.nan, None
    found = ratio(over, row)
    return found.value, found.low, found.high, found.label


def over_eager(table: pd.DataFrame, threads: int | None = None) -> pd.DataFrame:
    """How many times as fast as eager each config is, by batch size: a row each.

    `table` holds one setting. Both sides at `threads` threads, by default each at its best
    thread count. Columns ``speedup, speedup_low, speedup_high, speedup_paired``: NaN where
    eager was not measured.
    """
    name = "speedup" if threads is None else "same_threads"
    return _as_speedup(best_threads(table, threads), name)


def over_one_thread(table: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast as on one thread each measured point of `table` is: a row each.

    Columns as those of `over_eager`.
    """
    return _as_speedup(table[table["status"] == "ok"], "scaling")


def _as_speedup(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows.assign(**{f"speedup{part}": rows[f"{name}{part}"] for part in _PARTS})


def best_threads(table: pd.DataFrame, threads: int | None = None) -> pd.DataFrame:
    """The measured points at `threads`, or at each config's best thread count."""
    found = table[table["status"] == "ok"]
    if threads is not None:
        return found[found["threads"] == threads]
    return found.loc[found.groupby(_LIKE)["latency_ms"].idxmin()]


def how_words(hows: Iterable[str]) -> str:
    """How ratios were got: ``paired``, or ``3 paired, 1 via eager``; empty where there is none."""
    counts = Counter(how.replace(f"via {EAGER}", "via eager") for how in hows)
    if len(counts) < 2:
        return next(iter(counts), "")
    return ", ".join(f"{count} {how}" for how, count in counts.items())
