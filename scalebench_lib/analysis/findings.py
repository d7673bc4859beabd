"""Conclusions of a sweep: its `recommendations`, and sentences computed from its table.

Page, `index.md`, notebook and command take their wording from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.analysis import tables
from scalebench_lib.config import DEFAULTS
from scalebench_lib.cost import MARGIN, per_million
from scalebench_lib.disturbances import disturbance_sentences
from scalebench_lib.operators import BETWEEN, QUANTIZING, SHARES
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.record import EXACT_DB, Record, conditions
from scalebench_lib.results import EAGER, Results, Row
from scalebench_lib.stats import ASSUMED_SPREAD, MIN_TURNS, Ratio
from scalebench_lib.text import format_error_db, format_number, pluralize, with_margin

MUCH_QUANTIZING = 0.1
"""Smaller shares of a pass, such as eager's conversion of its mask, are not reported."""

MUCH_SLOWER = 1.5
"""A profiler that slows passes down by more may have changed the shares of operators."""

COARSE, EXPORTED = "○", "†"
"""Marks of cells, which `table_notes` explains: a coarse point, a time with exporting."""

PRODUCT = "PyTorch matmul"
BEYOND_PRODUCT = (
    "More than 100 %: this engine multiplies faster than PyTorch's library, which is the yardstick."
)

MEAN_OFF = 0.05
"""A mean is reported if it differs from its median by more than this, and than its interval."""


@dataclass(frozen=True)
class Fact:
    """A best value of a sweep, the point that has it, and a note."""

    title: str
    value: str
    where: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.title}: {self.value}, with {self.where}{self.note and f'; {self.note}'}."


@dataclass(frozen=True)
class Recommendation:
    """What to run, in one context of a sweep, which `label` names where it has several.

    For each batch size `advice` names the config to run, and alternatives, a sentence each;
    `rankings` has a table of texts, the fastest first. `best` has the first row of each.
    """

    label: str
    facts: list[Fact]
    advice: dict[int, list[str]]
    rankings: dict[int, pd.DataFrame]
    best: pd.DataFrame

    @property
    def lines(self) -> list[str]:
        """The facts, and the advice for the smallest batch size."""
        begin, advice = f"{self.label}: " if self.label else "", next(iter(self.advice.values()))
        return [f"{begin}{line}" for line in (*self.facts, " ".join(advice))]


def recommendations(results: Results, price: float | None = None) -> list[Recommendation]:
    """Return one for each context of a sweep in which anything was measured.

    With a `price` per hour it has the cost of a million requests, of one instance that is busy all
    but `MARGIN` of the time.
    """
    table = tables.merge_axis(results.table)
    slowest = table["latency_ms_high"].fillna(table["latency_ms"])
    usable = (1 - MARGIN) * table["batch_size"] / slowest * 1e3
    table = table.assign(cost=per_million(math.nan if price is None else price, usable))
    return [_recommendation(results, label, rows) for label, rows in _contexts(table)]


def table_notes(
    results: Results, answers: Sequence[Recommendation], price: float | None = None
) -> Iterator[str]:
    """Yield notes on the marks in the tables of `answers`, a sentence each."""
    marks = {str(cell)[-1:] for t in _tables(answers) for cell in t.to_numpy().ravel()}
    if not results.imported:
        yield "Each at its best thread count, ± 95 % interval."
    if COARSE in marks:
        rough = f"fewer than {MIN_TURNS} turns, so the interval is a rough guess"
        yield f"{COARSE}: {rough}; {_finer(results)}."
    if EXPORTED in marks:
        yield (
            f"{EXPORTED}: with exporting and compiling, which takes more time and memory: it was "
            "measured before there was anything to read from disk."
        )
    if price is not None:
        yield (
            f"Cost: of a million requests at {price} an hour, one instance on the machine, "
            f"{100 * MARGIN:.0f} % of its time left unused."
        )


def column_words(results: Results, answers: Sequence[Recommendation]) -> dict[str, str]:
    """Return the meanings of the columns in the tables of `answers` that need one."""
    shown = {str(name).partition(", ")[0] for table in _tables(answers) for name in table}
    more = f" {BEYOND_PRODUCT}" * bool((results.table["peak_fraction"] > 1).any())
    words = {
        "Speed-up": "The median over turns in pairs, so not quite the ratio of the latencies.",
        "p90": "90 % of the passes took no longer. Empty where too few passes were timed singly.",
        "Memory": "Held by the process between turns.",
        "Cold start": "The time to the first answer, with exports and compiled code read from "
        "disk.",
        "Error": "Of the outputs against fp64: −20 dB is 10 % of their size, −40 dB is 1 %.",
        f"Share of {PRODUCT}": "The speed as a share of that of a large matrix product by PyTorch, "
        f"in the same type of numbers on as many threads.{more}",
        "Read bandwidth": "The share of the rate at which as many threads read memory.",
    }
    return {} if results.imported else {w: words[w] for w in words if w in shown}


def _tables(answers: Sequence[Recommendation]) -> Iterator[pd.DataFrame]:
    for answer in answers:
        yield from (answer.best, *answer.rankings.values())


def _finer(results: Results) -> str:
    """Return how each point would get `MIN_TURNS` turns: those of a batch size share their time."""
    table, group = results.table, [*tables.CONTEXT, "batch_size"]
    costs = table.assign(cost=table["spent_s"] / table["turns"]).groupby(group)["cost"].mean()
    return f"--max-seconds {max(1, math.ceil(MIN_TURNS * costs.max()))} gives finer points"


def _contexts(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the measured rows of each context that has some, with its label."""
    for context, rows in tables.by_context(table[table["status"] == "ok"]):
        yield tables.context_label(table, context), rows


def _recommendation(results: Results, label: str, rows: pd.DataFrame) -> Recommendation:
    every = tables.best_threads(rows).sort_values(["batch_size", "latency_ms"])
    ranked = every.drop_duplicates(["batch_size", "optimization"])
    gains = ranked[ranked["optimization"] != EAGER].dropna(subset="speedup")
    parts = {int(size): part for size, part in tables.by_values(ranked, "batch_size")}
    facts = [best_fact(results, rows, metric) for metric in tables.METRICS]
    return Recommendation(
        label,
        [*facts, largest_speedup_fact(gains, rows)] if len(gains) else facts,
        {size: _advice(results, rows, part) for size, part in parts.items()},
        {size: _as_text(part, rows) for size, part in parts.items()},
        _as_text(ranked.drop_duplicates("batch_size"), rows, all_sizes=True),
    )


def _advice(results: Results, rows: pd.DataFrame, ranked: pd.DataFrame) -> list[str]:
    """Return the config to run at the batch size of `ranked`, and others, a sentence each."""
    best, *others = tables.row_dicts(ranked)
    ties = _ties(results, rows, best)
    eager = next((row for row in ties if row["optimization"] == EAGER), None)
    if eager and best["optimization"] != EAGER:
        return [f"Run {_run(eager, rows)}.", "Nothing is measurably faster."]
    alike = ", ".join(tables.config_label(rows, row) for row in ties)
    more = [f"No measurable difference to {alike}."] if alike else []
    run = "Fastest:" if (lossy := best["sqnr_db"] < EXACT_DB) else "Run"
    if lossy:
        error = format_number(100 * 10 ** (-best["sqnr_db"] / 20), 1)
        check = ": check the accuracy with your own weights" * _has_random_weights(results)
        more.append(f"Its outputs differ by {error} %{check}.")
        exact = (row for row in others if row["sqnr_db"] >= EXACT_DB and row["speedup_low"] > 1)
        runs = (f"With less error: {_run(row, rows)}." for row in exact)
        more.append(next(runs, "With less error, nothing is measurably faster than eager."))
    return [f"{run} {_run(best, rows)}.", *more]


def _has_random_weights(results: Results) -> bool:
    return any(record.config.weights == "random" for record in results.records)


def _run(row: Row, rows: pd.DataFrame) -> str:
    """``TorchScript, 2 threads: 4.5 ms at batch 1, 2.1× as fast as eager (1.8–2.2), 1.6 GB``."""
    gain = row["optimization"] != EAGER and pd.notna(row["speedup"])
    memory = _memory_mb(row)
    merits = [
        f"{format_number(row['latency_ms'])} ms at batch {row['batch_size']}",
        speedup_label(row) if gain else "",
        "" if pd.isna(memory) else f"{memory / 1e3:.1f} GB of memory",
        ""
        if pd.isna(row["sqnr_db"]) or not gain
        else f"error {format_error_db(row['sqnr_db'])} dB",
    ]
    where = f"{tables.config_label(rows, row)}, {pluralize(row['threads'], 'thread')}"
    return f"{where}: {', '.join(filter(None, merits))}"


def _memory_mb(row: Row) -> float:
    """Return the memory held between turns; of older records, which lack it, the peak."""
    resident: float = row["resident_memory_mb"]
    return row["peak_memory_mb"] if pd.isna(resident) else resident


def _as_text(found: pd.DataFrame, rows: pd.DataFrame, all_sizes: bool = False) -> pd.DataFrame:
    """Return `found` as texts, intervals as ±, without the columns that are constant."""
    text = pd.DataFrame([_cells(row, rows) for row in tables.row_dicts(found)])
    kept = (text != "").any() & ((text != text.iloc[0]).any() | (len(text) == 1))
    kept["Batch size"] = all_sizes
    kept[text.columns.str.startswith(("Optimization", "Latency", "Throughput"))] = True
    return text.loc[:, kept]


def _cells(row: Row, rows: pd.DataFrame) -> dict[str, str]:
    setup = row["build_s"] + row["first_pass_s"]
    cached, anew = setup + row["optimize_s"], setup + row["optimize_anew_s"]
    coarse = f" {COARSE}" * (row["coarse"] == 1 and not (rows["coarse"] == 1).all())
    exported = f" {EXPORTED}" * (math.isnan(cached) and not math.isnan(anew))
    known = {"memory_mb": _memory_mb(row), "start_s": anew if exported else cached}
    text = partial(tables.value_text, {**row, **known})
    return {
        "Batch size": str(row["batch_size"]),
        "Optimization": tables.config_label(rows, row),
        "Speed-up, × eager": "1" if row["is_base"] else text("speedup"),
        "Latency, ms": text("latency_ms") + coarse,
        f"Throughput, {tables.metric_named(rows, 'throughput').unit}": text("throughput"),
        "Cost, per million": text("cost"),
        "p90, ms": text("latency_ms_p90"),
        "Threads": str(row["threads"]),
        "Memory, GB": text("memory_mb", 1e-3) + exported,
        "Cold start, s": text("start_s") + exported,
        "Error, dB": format_error_db(row["sqnr_db"]),
        f"Share of {PRODUCT}, %": text("peak_fraction", 100),
        "Read bandwidth, %": text("bandwidth_fraction", 100),
    }


def _ties(results: Results, rows: pd.DataFrame, best: Row, sizes: bool = False) -> list[Row]:
    """Return the points that are not measurably slower than `best`, the fastest first.

    They are of the other configs at its batch size, or, for `sizes`, of its config at others, by
    throughput; each at its best thread count.
    """
    same_size = rows["batch_size"] == best["batch_size"]
    own = (rows["optimization"] == best["optimization"]) & (rows["smt"] == best["smt"])
    others = tables.best_threads(rows[own & ~same_size if sizes else same_size & ~own])
    size, found = best["batch_size"], others.sort_values("latency_ms").to_dict("records")
    return [row for row in found if results.row_ratio(best, row).high >= size / row["batch_size"]]


def conclusions(results: Results) -> list[str]:
    """Return the recommendations and the observations, a sentence each."""
    lines = [line for answer in recommendations(results) for line in answer.lines]
    return [*lines, *observations(results)]


def observations(results: Results) -> list[str]:
    """Return the other `conclusions`; where a sweep has several allocators, of the default."""
    table, sentences = results.table, list[str]()
    if (default := table["allocator"] == DEFAULTS["allocator"]).any():
        table = table[default]
    for label, rows in _contexts(table):
        begin = f"{label}: " if label else ""
        sentences += [f"{begin}{sentence}" for sentence in _of_context(results, rows)]
    return [*sentences, *_of_allocators(results), *_reservations(results)]


def _of_context(results: Results, rows: pd.DataFrame) -> Iterator[str]:
    alike = ["batch_size", "smt", "threads"]
    found = [
        (optimization_title(name), _ratios(results, rows, "optimization", (name, EAGER), alike))
        for name in set(rows["optimization"]) - {EAGER}
    ]
    for name, ratios in sorted(found, key=lambda each: (-_median(each[1]), each[0])):
        yield from _comparison(name, ratios, "eager at the same batch size and threads")
    best = tables.best_threads(rows)
    ratios = _ratios(results, best, "smt", (True, False), ["batch_size", "optimization"])
    yield from _comparison("SMT on", ratios, "SMT off, each at its best thread count")
    profiled = tables.best_threads(rows.dropna(subset=SHARES[BETWEEN]))
    if len(profiled):
        yield operator_sentence(profiled[profiled["batch_size"] == profiled["batch_size"].min()])
    yield from _scaling(rows)
    yield from _throttled(rows)


def _of_allocators(results: Results) -> Iterator[str]:
    rows = results.table[results.table["status"] == "ok"]
    context = [column for column in tables.CONTEXT if column != "allocator"]
    alike = [*context, "batch_size", "optimization", "smt", "threads"]
    for name in sorted(set(rows["allocator"]) - {"default"}):
        ratios = _ratios(results, rows, "allocator", (name, "default"), alike)
        yield from _comparison(name, ratios, "the default allocator, all else equal")


def _ratios(
    results: Results, rows: pd.DataFrame, column: str, sides: tuple[Any, Any], alike: list[str]
) -> list[Ratio]:
    """Return latencies at the second of `sides` over the first, of rows that are `alike`."""
    one, other = (
        {tuple(row[name] for name in alike): row for row in part.to_dict("records")}
        for part in (rows[rows[column] == side] for side in sides)
    )
    return [results.row_ratio(other[key], row) for key, row in one.items() if key in other]


def _median(ratios: Sequence[Ratio]) -> float:
    return float(np.median([ratio.value for ratio in ratios])) if ratios else math.nan


def _comparison(subject: str, ratios: Sequence[Ratio], other: str) -> Iterator[str]:
    """Yield how many times as fast as `other` the `subject` is, by the `ratios` of latencies."""
    if not ratios:
        return
    first, values = ratios[0], [ratio.value for ratio in ratios]
    points, ends = "", f" ({_interval(first.low, first.high, [first.label])})"
    if len(ratios) > 1:
        how = tables.pairing_label(ratio.label for ratio in ratios)
        points = f", in the median of {len(ratios)} points"
        ends = f", from {format_number(min(values))}× to {format_number(max(values))}×"
        ends += f" ({how})" * (how != "paired")
    if any(ratio.differs for ratio in ratios):
        yield f"{subject}: {format_number(_median(ratios))}× as fast as {other}{points}{ends}."
    else:
        yield f"{subject}: no measurable difference to {other}{ends}."


def operator_sentence(rows: pd.DataFrame) -> str:
    """Return the operators with the most time in the fastest of `rows`, and the most quantizing.

    Only of rows that their profiler did not slow down much, if there are any.
    """
    trusted = rows[~(rows["profiled_ms"] > MUCH_SLOWER * rows["latency_ms"])]
    rows = (rows if trusted.empty else trusted).sort_values("latency_ms")
    shares = rows[list(SHARES.values())].astype(float).set_axis(list(SHARES), axis=1)
    most, quantizing = str(shares.iloc[0].idxmax()), int(shares[QUANTIZING].argmax())
    wanted = [(0, most)]
    if shares[QUANTIZING].iloc[quantizing] >= MUCH_QUANTIZING:
        wanted.append((quantizing, QUANTIZING))
    said = [
        f"{tables.config_label(rows, rows.iloc[place])} spends "
        f"{100 * shares[kind].iloc[place]:.0f} %{'' if kind == BETWEEN else ' on'} {kind}"
        for place, kind in dict.fromkeys(wanted)
    ]
    return f"Of a pass at batch {rows['batch_size'].iloc[0]}, {', '.join(said)}."


def _scaling(rows: pd.DataFrame) -> Iterator[str]:
    """Yield the speed-up by threads at the best point of the smallest and the largest batch."""
    for batch_size in sorted({rows["batch_size"].min(), rows["batch_size"].max()}):
        best = rows[rows["batch_size"] == batch_size].sort_values("latency_ms").iloc[0]
        if best["threads"] > 1 and pd.notna(best["scaling"]):
            value = speedup_label(best, "1 thread", "scaling")
            yield f"At {tables.point_label(rows, best)}: {value}."


def best_fact(results: Results, table: pd.DataFrame, metric: tables.MetricName) -> Fact:
    """Return the lowest latency or the highest throughput of `table`, with its point."""
    rows, quantity = tables.succeeded_rows(table), tables.metric_named(table, metric)
    lowest, values = metric == "latency", quantity.of(rows)[0]
    row = rows.iloc[[int(values.argmin() if lowest else values.argmax())]]
    (best,) = tables.row_dicts(row)
    mean = f"mean {format_number(best['latency_ms_mean'])} ms"
    sustained = f"{format_number(_sustained(best))} sustained"
    sizes = [] if lowest else _ties(results, rows, best, sizes=True)
    batches = ", ".join(str(size) for size in sorted(each["batch_size"] for each in sizes))
    configs = ", ".join(tables.config_label(rows, each) for each in _ties(results, rows, best))
    ties = "; ".join(filter(None, [f"batch {batches}" if sizes else "", configs]))
    notes = [mean if lowest else sustained] if _is_mean_off(row).any() else []
    notes += [f"no measurable difference to {ties}"] if ties else []
    title = "Lowest latency" if lowest else "Highest throughput of one instance"
    value = with_margin(*(float(each[0]) for each in quantity.of(row)))
    where = tables.point_label(rows, best)
    return Fact(title, f"{value} {quantity.unit}", where, "; ".join(notes))


def largest_speedup_fact(found: pd.DataFrame, rows: pd.DataFrame, other: str = "eager") -> Fact:
    """Return the largest ``speedup`` of `found`, over `other`; `rows` are all of the figure."""
    top = found.sort_values("speedup").iloc[-1]
    value = speedup_label(top, other)
    if not _differs(top, "speedup"):
        times = f"{format_number(top['speedup'])}× ({_ends(top, 'speedup')})"
        value = f"none measurable over {other}; largest {times}"
    return Fact("Largest speed-up", value, tables.point_label(rows, top))


def _is_mean_off(rows: pd.DataFrame) -> np.ndarray:
    """Return whether the mean of each row differs from the median (`MEAN_OFF`)."""
    median, low, high = tables.value_and_bounds(rows, "latency_ms")
    off = np.abs(rows["latency_ms_mean"].to_numpy(float) - median)
    is_off: np.ndarray = (off > MEAN_OFF * median) & (off > (high - low) / 2)
    return is_off


def _sustained(row: Row | pd.Series) -> float:
    """Return inferences/s by the mean, which includes throttled time."""
    return float(row["batch_size"] / row["latency_ms_mean"] * 1e3)


def _throttled(rows: pd.DataFrame) -> Iterator[str]:
    off = rows[_is_mean_off(rows)]
    if off.empty:
        return
    worst = off.iloc[(off["latency_ms_mean"] / off["latency_ms"]).argmax()]
    mean, median = (format_number(worst[name]) for name in ("latency_ms_mean", "latency_ms"))
    yield (
        f"At {len(off)} of {pluralize(len(rows), 'point')} the mean of the passes differs from "
        f"their median by more than its interval and {100 * MEAN_OFF:.0f} %: some stood still "
        f"(throttled), or were disturbed. Most with {tables.point_label(rows, worst)}: mean "
        f"{mean} ms, median {median} ms; sustained {format_number(_sustained(worst))} "
        f"{tables.metric_named(rows, 'throughput').unit}."
    )


def speedup_label(row: Row | pd.Series, other: str = "eager", name: str = "speedup") -> str:
    """Return ``2.1× as fast as eager (1.8–2.2)``, or that no difference could be measured."""
    times, ends = f"{format_number(row[name])}×", _ends(row, name)
    if _differs(row, name):
        return f"{times} as fast as {other}{ends and f' ({ends})'}"
    return f"no measurable difference to {other} ({times}, {ends})"


def _differs(row: Row | pd.Series, name: str) -> bool:
    """Return whether the interval of a ratio excludes 1; True for one without an interval."""
    return not row[f"{name}_low"] <= 1 <= row[f"{name}_high"]


def _ends(row: Row | pd.Series, name: str) -> str:
    return _interval(row[f"{name}_low"], row[f"{name}_high"], [row[f"{name}_paired"]])


def _interval(low: float, high: float, how: Sequence[str]) -> str:
    """``1.8–2.2; via eager``: the interval of a ratio if it has one, and how, unless paired."""
    known = np.isfinite(low) and np.isfinite(high)
    unbounded = "too few turns" if np.isinf(high) else ""
    ends = f"{format_number(low)}–{format_number(high)}" if known else unbounded
    label = tables.pairing_label(how)
    return "; ".join(filter(None, [ends, label * (label != "paired")]))


def _reservations(results: Results) -> Iterator[str]:
    """Yield reservations about all ratios and intervals."""
    if results.assumed_spread:
        share = f"{100 * ASSUMED_SPREAD:g} %"
        yield f"One round only: intervals assume that other processes would differ by {share}."
    elif results.rarely_repeated:
        count = int(results.table["trials"].median())
        yield (
            "Latencies have wide intervals because most configs ran in "
            f"{'one process' if count == 1 else f'{count} processes'} only, and another may be "
            f"faster or slower: --rounds {count + 2} narrows them."
        )
    if (results.table["coarse"] == 1).any() and (results.table["coarse"] != 0).all():
        yield (
            f"Every point is coarse: it had fewer than {MIN_TURNS} turns, so its interval is a "
            f"rough guess; {_finer(results)}."
        )
    if _has_random_weights(results) and (results.table["sqnr_db"] < EXACT_DB).any():
        yield "The weights are random: errors of int8 and bf16 differ for trained weights."
    if any(record.schema_version == 1 for record in results.records):
        yield (
            "Measured by an older scalebench, whose configs did not take turns: their points were "
            "not measured together."
        )
    yield from _mixed(results.records)
    yield from disturbance_sentences(results.records)


def _mixed(records: Sequence[Record]) -> Iterator[str]:
    """Yield how conditions differ among the records of a host."""
    # Records of schema 1 hold the environment of their kernel, which differs for warm ones.
    ok = [record for record in records if record.status == "ok" and record.schema_version > 1]
    for host in dict.fromkeys(record.host_label for record in ok):
        found = conditions(record for record in ok if record.host_label == host)
        if mixed := [f"{n} {', '.join(sorted(v))}" for n, v in found.items() if len(v) > 1]:
            yield f"Latencies pool records of unlike conditions: {'; '.join(mixed)}."
