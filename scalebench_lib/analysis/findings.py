"""What a sweep says: the best points, and sentences computed from them.

Notebooks and pages type no conclusion: they take theirs from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.analysis.tables import (
    CONTEXT,
    METRICS,
    Measured,
    MetricName,
    best_threads,
    by_context,
    config_label,
    context_label,
    errors_db,
    measured_only,
    over_eager,
    over_one_thread,
    pairing_label,
    varying_context,
)
from scalebench_lib.disturbances import disturbances
from scalebench_lib.stats import Ratio
from scalebench_lib.text import format_number, pluralize

_LIKE = ("batch_size", "optimization", "smt", "threads")

_SHOWN = (
    *("latency_ms", "latency_ms_low", "latency_ms_high", "throughput"),
    *("optimization", "smt", "threads", "coarse", "ties"),
    *("speedup", "speedup_low", "speedup_high", "speedup_paired", "sqnr_db", "peak_fraction"),
)

FAR = 0.05
"""A mean is said beside its median where it is further from it than this, and than its interval."""


def best_points(measured: Measured, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The fastest point of each batch size: its lowest latency, so its highest throughput too.

    Latencies in ms, throughput in inferences/s; ``ties`` names the configs to which no
    difference could be measured. A `table` of several settings has a row for each.
    """
    table = measured.table if table is None else table
    found, keys = measured_only(table), [*varying_context(table), "batch_size"]
    found = found.assign(sqnr_db=errors_db(found))
    compared = pd.concat([over_eager(part) for _, part in by_context(found)])
    best = compared.loc[compared.groupby(keys)["latency_ms"].idxmin()]
    ties = [", ".join(_ties(measured, found, row)) for _, row in best.iterrows()]
    return best.assign(ties=ties)[[*keys, *_SHOWN]].reset_index(drop=True)


def _ties(measured: Measured, rows: pd.DataFrame, best: Any) -> list[str]:
    """The other configs of `rows` with the setting and batch size of `best`, each at its best
    thread count, to which no difference could be measured; the fastest first."""
    alike = ["model", *CONTEXT, "batch_size"]
    same = rows[(rows[alike] == best[alike]).all(axis=1)]
    own = (same["optimization"] == best["optimization"]) & (same["smt"] == best["smt"])
    others = best_threads(same[~own]).sort_values("latency_ms")
    return [
        config_label(rows, row["optimization"], row["smt"])
        for row in others.to_dict("records")
        if measured.ratio(best, row).high >= 1
    ]


def findings(measured: Measured) -> list[str]:
    """What the sweep says, a sentence each; told apart where it holds several settings."""
    table = measured.table
    return [
        f"{words}: {sentence}" if (words := context_label(table, setting)) else sentence
        for setting, part in by_context(table)
        if (part["status"] == "ok").any()
        for sentence in _findings(measured, measured_only(part))
    ] + [*_of_allocators(measured, table[table["status"] == "ok"]), *_reservations(measured)]


def _of_allocators(measured: Measured, rows: pd.DataFrame) -> Iterator[str]:
    for name in sorted(set(rows["allocator"]) - {"default"}):
        alike = [*(column for column in CONTEXT if column != "allocator"), "model", *_LIKE]
        pairs = _ratios(measured, rows, "allocator", (name, "default"), alike)
        yield from _compared(name, pairs, "the default allocator, all else equal")


def _findings(measured: Measured, rows: pd.DataFrame) -> Iterator[str]:
    yield from (extreme(measured, rows, metric) for metric in METRICS)
    for name in sorted(set(rows["optimization"]) - {"none"}):
        alike = ["batch_size", "smt", "threads"]
        pairs = _ratios(measured, rows, "optimization", (name, "none"), alike)
        yield from _compared(name, pairs, "none, at the same batch size and threads")
    best = best_threads(rows)
    pairs = _ratios(measured, best, "smt", (True, False), ["batch_size", "optimization"])
    yield from _compared("SMT on", pairs, "SMT off, each at its best thread count")
    yield from _scaling(rows)
    yield from _fastest(measured, rows)
    yield from _throttled(rows)


def _fastest(measured: Measured, rows: pd.DataFrame) -> Iterator[str]:
    """The fastest optimization of each batch size: those that failed verification are not rows."""
    if rows["optimization"].nunique() < 2:
        return
    alike = best_points(measured, rows).groupby(["optimization", "smt", "ties"], sort=False)
    for (_, _, ties), part in alike:
        name = config_label(rows, part["optimization"].iloc[0], part["smt"].iloc[0])
        sizes = f"at batch size {', '.join(str(size) for size in part['batch_size'])}"
        told = _in_brackets(list(_merits(part)))
        if ties:
            yield f"No measurable difference {sizes} between {name} and {ties}. {name}{told}."
        elif measured.imported:
            yield f"Lowest published mean {sizes}: {name}{told}."
        else:
            yield f"Fastest {sizes}: {name}{told}."


def _merits(part: pd.DataFrame) -> Iterator[str]:
    """Speed-up, error and share of the peak of one optimization's best points."""
    error, shares = part["sqnr_db"].min(), 100 * part["peak_fraction"].dropna()
    gains = part[(part["optimization"] != "none") & part["speedup"].notna()]
    if len(gains):
        hidden = (gains["speedup_low"] <= 1) & (gains["speedup_high"] >= 1)
        how = pairing_label(gains["speedup_paired"].dropna())
        span = f"{_span(gains['speedup'])}× eager"
        yield f"{'no measurable difference to eager' if hidden.all() else span}, {how}"
    if error == error:
        yield f"SQNR at least {format_number(error)} dB"
    if len(shares):
        yield f"{_span(shares)} % of the machine's peak in its type"


def _span(values: pd.Series) -> str:
    """``1.2 to 3.4``, or the one value that there is."""
    return " to ".join(
        dict.fromkeys(format_number(value) for value in (values.min(), values.max()))
    )


def extreme(measured: Measured, table: pd.DataFrame, metric: MetricName) -> str:
    """The lowest latency or the highest throughput of `table`, and where it was reached."""
    rows = _with_far(measured_only(table))
    if metric == "latency":
        best = rows.sort_values("latency_ms").iloc[0]
        told = f"Lowest latency: {format_number(best.latency_ms)} ms"
        mean = f" (mean {format_number(best.latency_ms_mean)} ms)" if best.far else ""
    else:
        best = rows.sort_values("throughput").iloc[-1]
        told = f"Highest throughput: {format_number(best.throughput)} inferences/s"
        mean = f" ({format_number(_sustained(best))} sustained)" if best.far else ""
    ties = ", ".join(_ties(measured, rows, best))
    alike = f"; no measurable difference to {ties}" if ties else ""
    return f"{told}{mean}, with {point_label(rows, best)}{alike}."


def _with_far(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with ``far``: whether the mean is further from the median than `FAR` and interval."""
    median = rows["latency_ms"].astype(float)
    off = (rows["latency_ms_mean"].astype(float) - median).abs()
    half = (rows["latency_ms_high"].astype(float) - rows["latency_ms_low"].astype(float)) / 2
    return rows.assign(far=(off > FAR * median) & (off > half))


def _sustained(row: Any) -> float:
    """Inferences/s with the time in which passes stood still."""
    return float(row["batch_size"] / row["latency_ms_mean"] * 1e3)


def _throttled(rows: pd.DataFrame) -> Iterator[str]:
    far = _with_far(rows).query("far")
    if far.empty:
        return
    far = far.assign(off=far["latency_ms_mean"] / far["latency_ms"])
    worst = far.sort_values("off").iloc[-1]
    yield (
        f"At {len(far)} of {pluralize(len(rows), 'point')} the mean of the passes differs from "
        f"their median by more than its interval and {100 * FAR:.0f} %: some stood still "
        f"(throttled), or were disturbed. Most with {point_label(rows, worst)}: mean "
        f"{format_number(worst.latency_ms_mean)} ms, median {format_number(worst.latency_ms)} ms; "
        f"sustained {format_number(_sustained(worst))} inferences/s."
    )


def interval_label(row: Any) -> str:
    """Interval of a row's speed-up, how it was got, and whether it is one."""
    low, high, how = row["speedup_low"], row["speedup_high"], pairing_label([row["speedup_paired"]])
    if not (np.isfinite(low) and np.isfinite(high)):
        return f" ({how})"
    alike = "; no measurable difference" if low <= 1 <= high else ""
    return f" ({format_number(low)} to {format_number(high)}, {how}{alike})"


def point_label(rows: pd.DataFrame, point: Any) -> str:
    """``batch size 8, script, SMT on, 2 threads``; of SMT only where `rows` have it somewhere."""
    config = config_label(rows, point.optimization, point.smt)
    return f"batch size {point.batch_size}, {config}, {pluralize(point.threads, 'thread')}"


def _ratios(
    measured: Measured, rows: pd.DataFrame, column: str, sides: tuple[Any, Any], alike: list[str]
) -> list[Ratio]:
    """Latencies at the first of `sides` over those at the second, of rows that are `alike`."""
    one, other = (
        {tuple(row[name] for name in alike): row for row in part.to_dict("records")}
        for part in (rows[rows[column] == side] for side in sides)
    )
    return [measured.ratio(row, other[key]) for key, row in one.items() if key in other]


def _compared(subject: str, ratios: Sequence[Ratio], other: str) -> Iterator[str]:
    if not ratios:
        return
    values, how = (
        pd.Series([one.value for one in ratios]),
        pairing_label(one.label for one in ratios),
    )
    if not any(one.differs for one in ratios):
        alike = f"{_span(values)} of its time; {how}"
        yield f"{subject}: no measurable difference to {other} ({alike})."
        return
    spread = f"median; {_span(values)}; " if len(ratios) > 1 else ""
    share = format_number(values.median())
    yield f"{subject} takes {share} of the time of {other} ({spread}{how})."


def _scaling(rows: pd.DataFrame) -> Iterator[str]:
    """What the most threads do for the smallest and the largest batch, at the best of each."""
    ends = sorted({rows["batch_size"].min(), rows["batch_size"].max()})
    for batch_size in ends:
        best = rows[rows["batch_size"] == batch_size].sort_values("latency_ms").iloc[0]
        if best.threads > 1 and pd.notna(best.scaling):
            own = over_one_thread(rows.loc[[best.name]]).iloc[0]
            value = f"{format_number(own.speedup)}× as fast as 1 thread{interval_label(own)}"
            yield f"With {point_label(rows, best)}: {value}."


def _reservations(measured: Measured) -> Iterator[str]:
    """What the reader must know of all ratios and intervals."""
    if measured.results.assumed_spread:
        yield "One round only: the spread between processes is assumed to be 1 %."
    if any(record.schema_version == 1 for record in measured.records):
        yield (
            "Measured by an older scalebench, whose configs did not take turns: their ratios are "
            "'not measured together'."
        )
    yield from disturbances(measured.records)


def _in_brackets(words: list[str]) -> str:
    return f" ({'; '.join(words)})" if words else ""
