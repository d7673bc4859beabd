"""The best points of a sweep, and sentences computed from its table, for notebooks and pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.analysis.tables import (
    CONTEXT,
    METRICS,
    MetricName,
    best_threads,
    by_context,
    config_label,
    context_label,
    measured_only,
    over_eager,
    over_one_thread,
    pairing_label,
    varying_context,
)
from scalebench_lib.disturbances import disturbances
from scalebench_lib.record import Record, conditions
from scalebench_lib.results import Results
from scalebench_lib.stats import Ratio
from scalebench_lib.text import format_number, pluralize

_SHOWN = (
    *("latency_ms", "latency_ms_low", "latency_ms_high", "throughput"),
    *("optimization", "smt", "threads", "coarse", "ties"),
    *("speedup", "speedup_low", "speedup_high", "speedup_paired", "sqnr_db", "peak_fraction"),
)

MEAN_OFF = 0.05
"""A mean is given with its median where it differs from it by more than this, and its interval."""


def best_points(results: Results, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the fastest point of each batch size: of the lowest latency, the highest throughput.

    Latencies in ms, throughput in inferences/s; ``ties`` names the configs to which no
    difference could be measured. A `table` of several contexts has a row for each.
    """
    table = results.table if table is None else table
    found, keys = measured_only(table), [*varying_context(table), "batch_size"]
    compared = pd.concat([over_eager(part) for _, part in by_context(found)])
    compared = compared.astype({"sqnr_db": float})
    best = compared.loc[compared.groupby(keys)["latency_ms"].idxmin()]
    ties = [", ".join(_ties(results, found, row)) for _, row in best.iterrows()]
    return best.assign(ties=ties)[[*keys, *_SHOWN]].reset_index(drop=True)


def _ties(results: Results, rows: pd.DataFrame, best: Any) -> list[str]:
    """The other configs of the context and batch size of `best`, each at its best thread count,
    to which no difference could be measured; the fastest first."""
    alike = ["model", *CONTEXT, "batch_size"]
    same = rows[(rows[alike] == best[alike]).all(axis=1)]
    own = (same["optimization"] == best["optimization"]) & (same["smt"] == best["smt"])
    others = best_threads(same[~own]).sort_values("latency_ms")
    return [
        config_label(rows, row["optimization"], row["smt"])
        for row in others.to_dict("records")
        if results.row_ratio(best, row).high >= 1
    ]


def findings(results: Results) -> list[str]:
    """Return what the sweep shows, a sentence each; by context where it holds several."""
    table, sentences = results.table, list[str]()
    for context, part in by_context(table):
        if (part["status"] == "ok").any():
            label = context_label(table, context)
            sentences += [
                f"{label}: {sentence}" if label else sentence
                for sentence in _of_context(results, measured_only(part))
            ]
    return [*sentences, *_of_allocators(results), *_reservations(results)]


def _of_context(results: Results, rows: pd.DataFrame) -> Iterator[str]:
    yield from (extreme(results, rows, metric) for metric in METRICS)
    for name in sorted(set(rows["optimization"]) - {"none"}):
        alike = ["batch_size", "smt", "threads"]
        ratios = _ratios(results, rows, "optimization", (name, "none"), alike)
        yield from _shares(name, ratios, "none, at the same batch size and threads")
    best = best_threads(rows)
    ratios = _ratios(results, best, "smt", (True, False), ["batch_size", "optimization"])
    yield from _shares("SMT on", ratios, "SMT off, each at its best thread count")
    yield from _scaling(rows)
    yield from _fastest(results, rows)
    yield from _throttled(rows)


def _of_allocators(results: Results) -> Iterator[str]:
    rows = results.table[results.table["status"] == "ok"]
    context = [column for column in ("model", *CONTEXT) if column != "allocator"]
    alike = [*context, "batch_size", "optimization", "smt", "threads"]
    for name in sorted(set(rows["allocator"]) - {"default"}):
        ratios = _ratios(results, rows, "allocator", (name, "default"), alike)
        yield from _shares(name, ratios, "the default allocator, all else equal")


def _ratios(
    results: Results, rows: pd.DataFrame, column: str, sides: tuple[Any, Any], alike: list[str]
) -> list[Ratio]:
    """Latencies at the first of `sides` over those at the second, of rows that are `alike`."""
    one, other = (
        {tuple(row[name] for name in alike): row for row in part.to_dict("records")}
        for part in (rows[rows[column] == side] for side in sides)
    )
    return [results.row_ratio(row, other[key]) for key, row in one.items() if key in other]


def _shares(subject: str, ratios: Sequence[Ratio], other: str) -> Iterator[str]:
    """Which share of the time of `other` the `subject` takes."""
    if not ratios:
        return
    values = pd.Series([ratio.value for ratio in ratios])
    how = pairing_label(ratio.label for ratio in ratios)
    if not any(ratio.differs for ratio in ratios):
        alike = f"{_span(values)} of its time; {how}"
        yield f"{subject}: no measurable difference to {other} ({alike})."
        return
    spread = f"median; {_span(values)}; " if len(ratios) > 1 else ""
    share = format_number(values.median())
    yield f"{subject} takes {share} of the time of {other} ({spread}{how})."


def _span(values: pd.Series) -> str:
    """``1.2 to 3.4``, or the one value that there is."""
    ends = (format_number(value) for value in (values.min(), values.max()))
    return " to ".join(dict.fromkeys(ends))


def _scaling(rows: pd.DataFrame) -> Iterator[str]:
    """What the most threads do for the smallest and the largest batch, at the best of each."""
    for batch_size in sorted({rows["batch_size"].min(), rows["batch_size"].max()}):
        best = rows[rows["batch_size"] == batch_size].sort_values("latency_ms").iloc[0]
        if best.threads > 1 and pd.notna(best.scaling):
            own = over_one_thread(rows.loc[[best.name]]).iloc[0]
            value = f"{format_number(own.speedup)}× as fast as 1 thread{interval_label(own)}"
            yield f"With {point_label(rows, best)}: {value}."


def _fastest(results: Results, rows: pd.DataFrame) -> Iterator[str]:
    """The fastest optimization of each batch size: those that failed verification are not rows."""
    if rows["optimization"].nunique() < 2:
        return
    alike = best_points(results, rows).groupby(["optimization", "smt", "ties"], sort=False)
    for (optimization, smt, ties), part in alike:
        name = config_label(rows, str(optimization), bool(smt))
        sizes = f"at batch size {', '.join(map(str, part['batch_size']))}"
        merits = "; ".join(_merits(part))
        merits = f" ({merits})" if merits else ""
        if ties:
            yield f"No measurable difference {sizes} between {name} and {ties}. {name}{merits}."
        else:
            best = "Lowest published mean" if results.imported else "Fastest"
            yield f"{best} {sizes}: {name}{merits}."


def _merits(part: pd.DataFrame) -> Iterator[str]:
    """Speed-up, error and share of the peak of one optimization's best points."""
    gains = part[(part["optimization"] != "none") & part["speedup"].notna()]
    if len(gains):
        hidden = (gains["speedup_low"] <= 1) & (gains["speedup_high"] >= 1)
        how = pairing_label(gains["speedup_paired"].dropna())
        span = f"{_span(gains['speedup'])}× eager"
        yield f"{'no measurable difference to eager' if hidden.all() else span}, {how}"
    if part["sqnr_db"].notna().any():
        yield f"SQNR at least {format_number(part['sqnr_db'].min())} dB"
    shares = 100 * part["peak_fraction"].dropna()
    if len(shares):
        yield f"{_span(shares)} % of the machine's peak in its type"


def extreme(results: Results, table: pd.DataFrame, metric: MetricName) -> str:
    """Return the lowest latency or the highest throughput of `table`, and where it was reached."""
    rows = _with_mean_off(measured_only(table))
    if metric == "latency":
        best = rows.sort_values("latency_ms").iloc[0]
        value = f"Lowest latency: {format_number(best.latency_ms)} ms"
        mean = f" (mean {format_number(best.latency_ms_mean)} ms)"
    else:
        best = rows.sort_values("throughput").iloc[-1]
        value = f"Highest throughput: {format_number(best.throughput)} inferences/s"
        mean = f" ({format_number(_sustained(best))} sustained)"
    ties = ", ".join(_ties(results, rows, best))
    alike = f"; no measurable difference to {ties}" if ties else ""
    return f"{value}{mean if best.mean_off else ''}, with {point_label(rows, best)}{alike}."


def _with_mean_off(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with ``mean_off``: whether the mean differs from the median (`MEAN_OFF`)."""
    names = ("latency_ms", "latency_ms_mean", "latency_ms_low", "latency_ms_high")
    median, mean, low, high = (rows[name].to_numpy(float) for name in names)
    off = np.abs(mean - median)
    return rows.assign(mean_off=(off > MEAN_OFF * median) & (off > (high - low) / 2))


def _sustained(row: Any) -> float:
    """Inferences/s with the time in which passes stood still."""
    return float(row["batch_size"] / row["latency_ms_mean"] * 1e3)


def _throttled(rows: pd.DataFrame) -> Iterator[str]:
    off = _with_mean_off(rows).query("mean_off")
    if off.empty:
        return
    worst = off.iloc[(off["latency_ms_mean"] / off["latency_ms"]).argmax()]
    yield (
        f"At {len(off)} of {pluralize(len(rows), 'point')} the mean of the passes differs from "
        f"their median by more than its interval and {100 * MEAN_OFF:.0f} %: some stood still "
        f"(throttled), or were disturbed. Most with {point_label(rows, worst)}: mean "
        f"{format_number(worst.latency_ms_mean)} ms, median {format_number(worst.latency_ms)} ms; "
        f"sustained {format_number(_sustained(worst))} inferences/s."
    )


def interval_label(row: Any) -> str:
    """Return the interval of a row's speed-up, how it was got, and whether it is one."""
    low, high, how = row["speedup_low"], row["speedup_high"], pairing_label([row["speedup_paired"]])
    if not (np.isfinite(low) and np.isfinite(high)):
        return f" ({how})"
    alike = "; no measurable difference" if low <= 1 <= high else ""
    return f" ({format_number(low)} to {format_number(high)}, {how}{alike})"


def point_label(rows: pd.DataFrame, point: Any) -> str:
    """``batch size 8, script, SMT on, 2 threads``; of SMT only where `rows` have it somewhere."""
    config = config_label(rows, point.optimization, point.smt)
    return f"batch size {point.batch_size}, {config}, {pluralize(point.threads, 'thread')}"


def _reservations(results: Results) -> Iterator[str]:
    """What the reader must know of all ratios and intervals."""
    if results.assumed_spread:
        yield "One round only: the spread between processes is assumed to be 1 %."
    if any(record.schema_version == 1 for record in results.records):
        yield (
            "Measured by an older scalebench, whose configs did not take turns: their ratios are "
            "'not measured together'."
        )
    yield from _mixed(results.records)
    yield from disturbances(results.records)


def _mixed(records: Sequence[Record]) -> Iterator[str]:
    """What the records of a host differ in, as by hand or of older versions they may."""
    # Those of schema 1 hold the environment of a kernel, which warm ones have of their own.
    ok = [record for record in records if record.status == "ok" and record.schema_version > 1]
    for host in dict.fromkeys(record.host_label for record in ok):
        found = conditions(record for record in ok if record.host_label == host)
        if mixed := [f"{n} {', '.join(sorted(v))}" for n, v in found.items() if len(v) > 1]:
            yield f"Latencies pool records of unlike conditions: {'; '.join(mixed)}."
