"""What a results table says: the best points, and sentences computed from them.

Notebooks and pages type no conclusion: they take theirs from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from scalebench_lib.analysis.ratios import over_eager
from scalebench_lib.analysis.selection import (
    METRICS,
    SETTING,
    MetricName,
    config_words,
    errors_db,
    measured_only,
    setting_words,
    settings,
    varying,
)
from scalebench_lib.numerals import counted, number

_LIKE = ("batch_size", "optimization", "smt", "threads")

_SHOWN = (
    *("latency_ms", "latency_ms_low", "latency_ms_high", "throughput"),
    *("optimization", "smt", "threads", "coarse", "latency_ms_raw"),
    *("speedup", "speedup_low", "speedup_high", "sqnr_db", "peak_fraction"),
)


def best_points(table: pd.DataFrame) -> pd.DataFrame:
    """The fastest point of each batch size: its lowest latency, so its highest throughput too.

    Latencies in ms, throughput in inferences/s. A table of several settings has a row for each.
    """
    found, keys = measured_only(table), [*varying(table), "batch_size"]
    found = found.assign(sqnr_db=errors_db(found))
    compared = pd.concat([over_eager(part) for _, part in settings(found)])
    best = compared.loc[compared.groupby(keys)["latency_ms"].idxmin()]
    return best[[*keys, *_SHOWN]].reset_index(drop=True)


def findings(table: pd.DataFrame) -> list[str]:
    """What the table says, a sentence each; told apart where it holds several settings."""
    return [
        f"{words}: {sentence}" if (words := setting_words(table, setting)) else sentence
        for setting, part in settings(table)
        if (part["status"] == "ok").any()
        for sentence in _findings(measured_only(part))
    ] + list(_of_allocators(table[table["status"] == "ok"]))


def _of_allocators(rows: pd.DataFrame) -> Iterator[str]:
    for name in sorted(set(rows["allocator"]) - {"default"}):
        alike = [*(column for column in SETTING if column != "allocator"), "model", *_LIKE]
        pairs = _ratios(rows, "allocator", name, "default", alike)
        yield from _compared(f"{name} takes", pairs, "the default allocator, all else equal")


def _findings(rows: pd.DataFrame) -> Iterator[str]:
    yield from (extreme(rows, metric) for metric in METRICS)
    for name in sorted(set(rows["optimization"]) - {"none"}):
        pairs = _ratios(rows, "optimization", name, "none", ["batch_size", "smt", "threads"])
        yield from _compared(f"{name} takes", pairs, "none, at the same batch size and threads")
    best = rows.loc[rows.groupby(["batch_size", "optimization", "smt"])["latency_ms"].idxmin()]
    pairs = _ratios(best, "smt", True, False, ["batch_size", "optimization"])
    yield from _compared("SMT on takes", pairs, "SMT off, each at its best thread count")
    yield from _scaling(rows)
    yield from _fastest(rows)


def _fastest(rows: pd.DataFrame) -> Iterator[str]:
    """The fastest optimization of each batch size: those that failed verification are not rows."""
    if rows["optimization"].nunique() < 2:
        return
    best = best_points(rows)
    for name, part in best.groupby("optimization", sort=False):
        sizes = ", ".join(str(size) for size in part["batch_size"])
        error, shares = part["sqnr_db"].min(), 100 * part["peak_fraction"].dropna()
        gains = part.loc[part["optimization"] != "none", "speedup"].dropna()
        told = [f"{_span(gains)}× eager"] if len(gains) else []
        told += [f"SQNR at least {number(error)} dB"] if error == error else []
        told += [f"{_span(shares)} % of the machine's peak in its type"] if len(shares) else []
        yield f"Fastest at batch size {sizes}: {name}{_in_brackets(told)}."


def _span(values: pd.Series) -> str:
    """``1.2 to 3.4``, or the one value that there is."""
    return " to ".join(dict.fromkeys(number(value) for value in (values.min(), values.max())))


def extreme(table: pd.DataFrame, metric: MetricName) -> str:
    """The lowest latency or the highest throughput of `table`, and where it was reached."""
    rows = measured_only(table)
    if metric == "latency":
        best = rows.sort_values("latency_ms").iloc[0]
        return f"Lowest latency: {number(best.latency_ms)} ms, with {point_words(rows, best)}."
    best = rows.sort_values("throughput").iloc[-1]
    value = f"{number(best.throughput)} inferences/s"
    return f"Highest throughput: {value}, with {point_words(rows, best)}."


def point_words(rows: pd.DataFrame, point: Any) -> str:
    """``batch size 8, script, SMT on, 2 threads``; of SMT only where `rows` have it somewhere."""
    config = config_words(rows, point.optimization, point.smt)
    return f"batch size {point.batch_size}, {config}, {counted(point.threads, 'thread')}"


def _ratios(rows: pd.DataFrame, column: str, one: Any, other: Any, alike: list[str]) -> Any:
    """Latencies at `one` over those at `other`, of rows with the same values of `alike`."""
    latencies = rows.set_index([*alike, column])["latency_ms"].unstack(column)  # noqa: PD010
    if not {one, other} <= set(latencies.columns):
        return pd.Series(dtype=float)
    return (latencies[one] / latencies[other]).dropna()


def _compared(subject: str, ratios: pd.Series, other: str) -> Iterator[str]:
    if ratios.empty:
        return
    spread = f" (median; {number(ratios.min())} to {number(ratios.max())})"
    several = spread if len(ratios) > 1 else ""
    yield f"{subject} {number(ratios.median())} of the time of {other}{several}."


def _scaling(rows: pd.DataFrame) -> Iterator[str]:
    """What the most threads do for the smallest and the largest batch, at the best of each."""
    ends = sorted({rows["batch_size"].min(), rows["batch_size"].max()})
    for batch_size in ends:
        batch = rows[rows["batch_size"] == batch_size]
        best = batch.sort_values("latency_ms").iloc[0]
        same = batch[batch["optimization"].eq(best.optimization) & batch["smt"].eq(best.smt)]
        single = same.loc[same["threads"] == 1, "latency_ms"]
        if best.threads > 1 and len(single):
            speedup = number(single.iloc[0] / best.latency_ms)
            yield f"With {point_words(rows, best)}: {speedup}× as fast as 1 thread."


def _in_brackets(words: list[str]) -> str:
    return f" ({'; '.join(words)})" if words else ""
