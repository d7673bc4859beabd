"""The results table, made ready for figures: ratios as columns, rows chosen, and their labels.

`Results.ratio` makes each ratio; here they become columns, so that figures and the page's script
need the table alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from scalebench_lib.config import MODELS, slug
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from scalebench_lib.results import Imported, PointKey, Results
from scalebench_lib.stats import Ratio, Variance

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


def pairing_label(hows: Iterable[str]) -> str:
    """How ratios were got: ``paired``, or ``3 paired, 1 via eager``; empty where there is none."""
    counts = Counter(how.replace(f"via {EAGER}", "via eager") for how in hows)
    if len(counts) < 2:
        return next(iter(counts), "")
    return ", ".join(f"{count} {how}" for how, count in counts.items())


MetricName = Literal["latency", "throughput"]

CONTEXT = ("machine", "seq_len", "image_size", "placement", "allocator", "device")
"""What must be the same for all points of a picture, beside the model."""


ALL = "all"
"""In place of an allocator: all of them, `allocators_as_optimizations`."""

Values = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values with their lows and highs; NaN where an interval has no bound."""


def _latencies(rows: pd.DataFrame) -> Values:
    columns = ("latency_ms", "latency_ms_low", "latency_ms_high")
    middle, low, high = (rows[column].to_numpy(float) for column in columns)
    bounded = np.isfinite(high) & (low > 0)
    return middle, np.where(bounded, low, np.nan), np.where(bounded, high, np.nan)


def _throughputs(rows: pd.DataFrame) -> Values:
    items_ms = rows["batch_size"].to_numpy(float) * 1e3
    middle, low, high = _latencies(rows)
    return items_ms / middle, items_ms / high, items_ms / low


@dataclass(frozen=True)
class Metric:
    """A quantity to draw: its title, its axis with the unit, and its values in a table."""

    title: str
    axis: str
    of: Callable[[pd.DataFrame], Values]


METRICS: dict[MetricName, Metric] = {
    "latency": Metric("Latency", "latency of one batch (ms)", _latencies),
    "throughput": Metric("Throughput", "throughput (inferences/s)", _throughputs),
}


@dataclass(frozen=True)
class Measured:
    """A sweep as the analysis sees it: its results, with its ratios as columns of its table."""

    results: Results

    @classmethod
    def load(cls, out: Path, any_machine: bool = False) -> Measured:
        """Read the sweep in folder `out`; `RequestError` as `Results.load`."""
        return cls(Results.load(out, any_machine))

    @classmethod
    def of(cls, records: Iterable[Record]) -> Measured:
        """A sweep of these `records`."""
        return cls(Results.of(records))

    @property
    def records(self) -> list[Record]:
        """Of all trials; none of an import."""
        return self.results.records

    @property
    def imported(self) -> Imported | None:
        """What was imported in place of measured."""
        return self.results.imported

    @cached_property
    def table(self) -> pd.DataFrame:
        """The results table, with the columns of `with_ratios`."""
        return with_ratios(self.results.table, self.ratio)

    def ratio(self, one: Row, other: Row) -> Ratio:
        """The latency of row `one` of the table over that of row `other`.

        Published means have no interval, and were not measured together.
        """
        a, b = self._key(one), self._key(other)
        if a in self.results.points and b in self.results.points:
            return self.results.ratio(a, b)
        unknown = Variance(0.0 if a == b else math.nan)
        return Ratio.around(
            one["latency_ms"] / other["latency_ms"], unknown, "not measured together"
        )

    def _key(self, row: Row) -> PointKey:
        name = row["machine"], row["config_id"]
        return self._point_keys.get(name, "@".join(name)), int(row["threads"])

    @cached_property
    def _point_keys(self) -> dict[tuple[str, str], str]:
        points = self.results.points.items()
        return {(one.trials[0][0].machine_name, one.config.id): name for (name, _), one in points}

    @property
    def machines(self) -> list[str]:
        """The machines' titles: ``AMD EPYC, 16 cores, 32 threads``."""
        if self.imported:
            return [self.imported.machine_title]
        return list(dict.fromkeys(record.machine.title for record in self.records))

    @property
    def dates(self) -> str:
        """The day measured, or the first and the last."""
        if self.imported:
            return f"not known; imported {self.imported.imported.date().isoformat()}"
        days = sorted({record.started.date().isoformat() for record in self.records})
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    @property
    def source(self) -> str:
        """Where and when it was measured, for captions."""
        if self.imported:
            return self.imported.source
        return f"{'; '.join(self.machines)} · {self.dates}"

    @property
    def origin(self) -> str:
        """`source`, for the head of a page."""
        return self.source if self.imported else f"Measured on {self.source}"

    @property
    def without_smt(self) -> str | None:
        """Why there is nothing measured with SMT on, if there is nothing."""
        if self.table["smt"].any():
            return None
        if self.imported:
            return "Nothing with hyper-threading (SMT) was published in this file."
        if any(record.machine.has_smt for record in self.records):
            return "Hyper-threading (SMT) was not measured in this sweep."
        return "This machine has no hyper-threading (SMT), so there is nothing with HT=True."


def model_title(model: str) -> str:
    """``BERT`` for ``bert``; of a folder or hub id, its last part."""
    return MODELS.get(model) or slug(model)


def choose(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows with these values; `RequestError` says what there is where there are none.

    Raises ValueError where the rows mix what cannot be compared in one picture (`CONTEXT`).
    """
    rows = table
    for column, value in wanted.items():
        known = rows[column].unique()
        rows = rows[rows[column] == value]
        if rows.empty:
            there = ", ".join(str(other) for other in sorted(known)) or "nothing"
            raise RequestError(f"nothing has {column} {value!r}: there is {there}")
    for column in CONTEXT:
        only_value(rows, column)
    return rows


def only_value(rows: pd.DataFrame, column: str) -> Any:
    """The one value of `column`; ValueError where it has several."""
    values = rows[column].unique()
    if len(values) != 1:
        raise ValueError(f"{column} is one of {sorted(values)} here: choose one first")
    return values[0]


def allocators_as_optimizations(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with allocators as part of the optimizations' names: ``none, tcmalloc``.

    So one picture can hold several, and compare all with eager PyTorch on the default one.
    """
    if table["allocator"].nunique() < 2:
        return table
    added = (", " + table["allocator"]).where(table["allocator"] != "default", "")
    return table.assign(optimization=table["optimization"] + added, allocator=ALL)


def choices(table: pd.DataFrame, column: str) -> list[Any]:
    """The values of `column` in order, as plain Python; of several allocators `ALL` comes first."""
    values = sorted(table[column].dropna().unique().tolist())
    return [ALL, *values] if column == "allocator" and len(values) > 1 else values


def chosen(table: pd.DataFrame, column: str, value: Any) -> pd.DataFrame:
    """The rows that have one of `choices`."""
    rows = allocators_as_optimizations(table) if value == ALL else table
    found: pd.DataFrame = rows[rows[column] == value]
    return found


def measured_only(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a measurement; `RequestError` says why there are none."""
    found = rows[rows["status"] == "ok"]
    if found.empty:
        raise RequestError("not measured: " + "; ".join(missing_lines(rows)))
    return found


def config_label(table: pd.DataFrame, optimization: str, smt: bool) -> str:
    """``script, SMT on``; of SMT only where `table` has it on somewhere."""
    return f"{optimization}, SMT {'on' if smt else 'off'}" if table["smt"].any() else optimization


def errors_db(rows: pd.DataFrame) -> pd.Series:
    """Each row's SQNR against fp64 in dB; NaN where it is not known."""
    if "sqnr_db" in rows:
        return rows["sqnr_db"].astype(float)
    return pd.Series(np.nan, rows.index)


def error_label(rows: pd.DataFrame) -> str:
    """The least SQNR of `rows`: `` · 34 dB``; empty where none is known."""
    found = errors_db(rows).min()
    return f" · {found:.0f} dB" if np.isfinite(found) else ""


def missing_lines(rows: pd.DataFrame) -> list[str]:
    """A line for each config that failed or was skipped: ``batch 8, script: failed, why``."""
    gone = rows[rows["status"] != "ok"].sort_values(["batch_size", "optimization", "smt"])
    return [
        f"batch {row['batch_size']}, {config_label(rows, row['optimization'], row['smt'])}: "
        f"{row['status']}, {row['reason']}"
        for row in gone.to_dict("records")
    ]


def parts(rows: pd.DataFrame, columns: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The rows by their values of `columns`, in the order of the values."""
    yield from rows.groupby(columns, sort=True)


def by_context(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The table in parts that one picture can hold, each with its model and `CONTEXT`."""
    keys = ["model", *CONTEXT]
    for values, part in parts(table, keys):
        yield dict(zip(keys, values, strict=True)), part


def varying_context(table: pd.DataFrame) -> list[str]:
    """The columns of model and `CONTEXT` in which the rows of `table` differ."""
    return [name for name in ("model", *CONTEXT) if len(table[name].unique()) > 1]


def context_label(table: pd.DataFrame, setting: dict[str, Any]) -> str:
    """What tells `setting` from the others of `table`: ``seq_len 128``; empty if it is alone."""
    return ", ".join(f"{name} {setting[name]}" for name in varying_context(table))
