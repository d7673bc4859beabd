"""Choosing from the results table what one picture can show, and naming what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from scalebench_lib.analysis.ratios import Row, with_ratios
from scalebench_lib.errors import RequestError
from scalebench_lib.imported import Imported
from scalebench_lib.record import Record
from scalebench_lib.results import PointKey, Results
from scalebench_lib.stats import Ratio, Variance
from scalebench_lib.words import MODELS, slug

MetricName = Literal["latency", "throughput"]

SETTING = ("machine", "seq_len", "image_size", "placement", "allocator", "device")
"""What must be the same for all points of a picture, beside the model."""


ALL = "all"
"""In place of an allocator: all of them, `beside_each_other`."""

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

    Raises ValueError where the rows mix what cannot be compared in one picture (`SETTING`).
    """
    rows = table
    for column, value in wanted.items():
        known = rows[column].unique()
        rows = rows[rows[column] == value]
        if rows.empty:
            there = ", ".join(str(other) for other in sorted(known)) or "nothing"
            raise RequestError(f"nothing has {column} {value!r}: there is {there}")
    for column in SETTING:
        only_value(rows, column)
    return rows


def only_value(rows: pd.DataFrame, column: str) -> Any:
    """The one value of `column`; ValueError where it has several."""
    values = rows[column].unique()
    if len(values) != 1:
        raise ValueError(f"{column} is one of {sorted(values)} here: choose one first")
    return values[0]


def beside_each_other(table: pd.DataFrame) -> pd.DataFrame:
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
    rows = beside_each_other(table) if value == ALL else table
    found: pd.DataFrame = rows[rows[column] == value]
    return found


def measured_only(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a measurement; `RequestError` says why there are none."""
    found = rows[rows["status"] == "ok"]
    if found.empty:
        raise RequestError("not measured: " + "; ".join(missing_words(rows)))
    return found


def config_words(table: pd.DataFrame, optimization: str, smt: bool) -> str:
    """``script, SMT on``; of SMT only where `table` has it on somewhere."""
    return f"{optimization}, SMT {'on' if smt else 'off'}" if table["smt"].any() else optimization


def errors_db(rows: pd.DataFrame) -> pd.Series:
    """Each row's SQNR against fp64 in dB; NaN where it is not known."""
    if "sqnr_db" in rows:
        return rows["sqnr_db"].astype(float)
    return pd.Series(np.nan, rows.index)


def error_words(rows: pd.DataFrame) -> str:
    """The least SQNR of `rows`: `` · 34 dB``; empty where none is known."""
    found = errors_db(rows).min()
    return f" · {found:.0f} dB" if np.isfinite(found) else ""


def missing_words(rows: pd.DataFrame) -> list[str]:
    """A line for each config that failed or was skipped: ``batch 8, script: failed, why``."""
    gone = rows[rows["status"] != "ok"].sort_values(["batch_size", "optimization", "smt"])
    return [
        f"batch {row['batch_size']}, {config_words(rows, row['optimization'], row['smt'])}: "
        f"{row['status']}, {row['reason']}"
        for row in gone.to_dict("records")
    ]


def parts(rows: pd.DataFrame, columns: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The rows by their values of `columns`, in the order of the values."""
    yield from rows.groupby(columns, sort=True)


def settings(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The table in parts that one picture can hold, each with its model and `SETTING`."""
    keys = ["model", *SETTING]
    for values, part in parts(table, keys):
        yield dict(zip(keys, values, strict=True)), part


def varying(table: pd.DataFrame) -> list[str]:
    """The columns of model and `SETTING` in which the rows of `table` differ."""
    return [name for name in ("model", *SETTING) if len(table[name].unique()) > 1]


def setting_words(table: pd.DataFrame, setting: dict[str, Any]) -> str:
    """What tells `setting` from the others of `table`: ``seq_len 128``; empty if it is alone."""
    return ", ".join(f"{name} {setting[name]}" for name in varying(table))
