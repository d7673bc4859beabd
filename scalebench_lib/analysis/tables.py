"""Choose rows of the results table for figures, with their metrics and labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from scalebench_lib.config import AXES, DEFAULTS
from scalebench_lib.errors import RequestError
from scalebench_lib.model_names import model_title
from scalebench_lib.optimizations import OPTIMIZATIONS, optimization_title
from scalebench_lib.results import EAGER, Row
from scalebench_lib.text import pluralize, with_margin

CONTEXT = {
    "model": "Model",
    "machine": "Machine",
    **{name: axis.title for name, axis in AXES.items() if axis.splits},
}
"""The columns that must be the same for all points of a chart, and their titles."""

ALL = "all"
"""The value of an axis that `merge_axis` has merged."""

MERGED = ("allocator", "placement")
"""The axes that a chart can merge."""

MetricName = Literal["latency", "throughput"]

Values = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values with their lows and highs; NaN where an interval has no bound."""


@dataclass(frozen=True)
class Metric:
    """A quantity to draw: its axis, its unit, and the function of its values in a table."""

    axis: str
    unit: str
    of: Callable[[pd.DataFrame], Values]
    ratio: bool = False


def value_and_bounds(rows: pd.DataFrame, name: str) -> Values:
    """Return the column `name` of `rows`, with its ``_low`` and ``_high``."""
    middle, low, high = (rows[f"{name}{part}"].to_numpy(float) for part in ("", "_low", "_high"))
    bounded = np.isfinite(high) & (low > 0)
    return middle, np.where(bounded, low, np.nan), np.where(bounded, high, np.nan)


latencies = partial(value_and_bounds, name="latency_ms")


def _throughputs(rows: pd.DataFrame) -> Values:
    items_ms = rows["batch_size"].to_numpy(float) * 1e3
    middle, low, high = latencies(rows)
    return items_ms / middle, items_ms / high, items_ms / low


METRICS: tuple[MetricName, ...] = get_args(MetricName)


def metric_named(rows: pd.DataFrame, name: MetricName) -> Metric:
    """Return a metric of `rows`, of one phase: decoding is counted in tokens."""
    decoding = (rows["phase"] == "decode").all()
    if name == "throughput":
        unit = f"{'tokens' if decoding else 'inferences'}/s"
        return Metric(f"throughput ({unit})", unit, _throughputs)
    time = "time per output token" if decoding else "latency"
    return Metric(f"{time} of one batch (ms)", "ms", latencies)


def with_ratio_as_speedup(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return `rows` with the ratio `name`, one of `results.RATIOS`, in the columns of speed-up."""
    parts = ("", "_low", "_high", "_paired")
    return rows.assign(**{f"speedup{part}": rows[f"{name}{part}"] for part in parts})


def best_threads(rows: pd.DataFrame, threads: int | None = None) -> pd.DataFrame:
    """Return the measured points at `threads`, or at each config's best thread count."""
    found = rows[rows["status"] == "ok"]
    if threads is not None:
        return found[found["threads"] == threads]
    config = ["batch_size", "optimization", "smt"]
    return found.loc[found.groupby(config)["latency_ms"].idxmin()]


def pairing_label(hows: Iterable[str]) -> str:
    """Return how ratios were computed: ``paired``, or ``3 paired, 1 via eager``, or nothing."""
    counts = Counter(how.replace(f"via {EAGER}", "via eager") for how in hows)
    if len(counts) < 2:
        return next(iter(counts), "")
    return ", ".join(f"{count} {how}" for how, count in counts.items())


_MODEL_SIZES = {
    "bert": "BERT-base, 110 M parameters",
    "distilbert": "DistilBERT, 66 M parameters",
    "gpt2": "GPT-2 small, 124 M parameters",
    "resnet50": "ResNet-50, 26 M parameters",
}


def model_line(model: str, task: str) -> str:
    """Return ``BERT-base, 110 M parameters, no head`` for a known model, the title for others."""
    size, head = _MODEL_SIZES.get(model), "no head" if task == "none" else f"{task} head"
    return f"{size}, {head}" if size else model_title(model, task)


def select(rows: pd.DataFrame, **wanted: list[Any] | Any) -> pd.DataFrame:
    """Return the rows with these values, or one of a list of them.

    Raises `RequestError`, with the values of the table, where no row has them.
    """
    for column, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        known, rows = rows[column].unique(), rows[rows[column].isin(values)]
        if rows.empty:
            names = ", ".join(map(str, values))
            there = ", ".join(map(str, sorted(known))) or "nothing"
            raise RequestError(f"nothing has {column} {names}: there is {there}")
    return rows


def only_value(rows: pd.DataFrame, column: str) -> Any:
    """Return the value of a constant `column`; ValueError for several values."""
    values = rows[column].unique()
    if len(values) != 1:
        raise ValueError(f"{column} is one of {sorted(values)} here: choose one first")
    return values[0]


def merge_axis(table: pd.DataFrame, column: str = "allocator") -> pd.DataFrame:
    """Return `table` with the values of `column`, one of `MERGED`, in those of the optimization.

    So one chart can hold several of them: ``none, tcmalloc``.
    """
    if len(table[column].unique()) < 2:
        return table
    added = (", " + table[column]).where(table[column] != DEFAULTS[column], "")
    return table.assign(optimization=table["optimization"] + added, **{column: ALL})


def values_of(table: pd.DataFrame, column: str) -> list[Any]:
    """Return the values of `column` in order, as plain Python; several of `MERGED` with `ALL`.

    Known optimizations are in the order of `OPTIMIZATIONS`, others by name.
    """
    values = sorted(table[column].dropna().unique().tolist())
    if column == "optimization":
        return [
            *(name for name in OPTIMIZATIONS if name in values),
            *(name for name in values if name not in OPTIMIZATIONS),
        ]
    if column == "placement" and len(values) > 1:
        return sorted([*values, ALL], key=lambda value: (value == ALL, value != DEFAULTS[column]))
    return [ALL, *values] if column == "allocator" and len(values) > 1 else values


def optimizations_but_eager(table: pd.DataFrame) -> list[str]:
    """Return the optimizations with figures of their own: all but eager, unless it is alone."""
    every = values_of(table, "optimization")
    return [name for name in every if name != EAGER] or every


def default_optimization(table: pd.DataFrame) -> str:
    """Return the fastest optimization at the smallest batch size, the first where none succeeded.

    It is not eager, unless that is alone.
    """
    names = optimizations_but_eager(table)
    rows = table[(table["status"] == "ok") & table["optimization"].isin(names)]
    first = rows[rows["batch_size"] == rows["batch_size"].min()].sort_values("latency_ms")
    return str(first["optimization"].iloc[0]) if len(first) else names[0]


def succeeded_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the measured rows; raise `RequestError`, with the reasons, where there are none."""
    found = rows[rows["status"] == "ok"]
    if found.empty:
        raise RequestError("not measured: " + "; ".join(failure_lines(rows)))
    return found


def config_label(table: pd.DataFrame, row: Row | pd.Series) -> str:
    """Return ``TorchScript, SMT on``; without SMT where `table` never has it on."""
    smt = f", SMT {'on' if row['smt'] else 'off'}" if table["smt"].any() else ""
    return f"{optimization_title(row['optimization'])}{smt}"


def point_label(table: pd.DataFrame, row: Row | pd.Series) -> str:
    """Return ``batch 8, TorchScript, SMT on, 2 threads``; without SMT as in `config_label`."""
    threads = pluralize(row["threads"], "thread")
    return f"batch {row['batch_size']}, {config_label(table, row)}, {threads}"


def failure_lines(rows: pd.DataFrame) -> list[str]:
    """Return a line for each config that failed or was skipped: ``batch 8, eager: failed, why``."""
    missing = rows[rows["status"] != "ok"].sort_values(["batch_size", "optimization", "smt"])
    return [
        f"batch {row['batch_size']}, {config_label(rows, row)}: {row['status']}, {row['reason']}"
        for row in missing.to_dict("records")
    ]


def value_text(row: Row, name: str, scale: float = 1.0) -> str:
    """Return ``9.45 ± 0.45``: a value with its interval, if it has one; empty if unknown."""
    if not math.isfinite(row[name]):
        return ""
    low, high = (row.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
    return with_margin(scale * row[name], scale * low, scale * high)


def row_dicts(rows: pd.DataFrame) -> Sequence[Row]:
    """Return the rows as dictionaries, with NaN for missing values."""
    return rows.astype(object).where(rows.notna(), math.nan).to_dict("records")


def by_values(rows: pd.DataFrame, columns: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Yield the rows by their values of `columns`, in the order of the values."""
    yield from rows.groupby(columns)


def by_context(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the parts of the table that one chart can hold, each with its `CONTEXT`."""
    for values, part in by_values(table, list(CONTEXT)):
        yield dict(zip(CONTEXT, values, strict=True)), part


def varying(table: pd.DataFrame, names: Iterable[str] = CONTEXT) -> list[str]:
    """Return those of the columns `names` in which the rows of `table` differ."""
    return [name for name in names if len(table[name].unique()) > 1]


def context_label(table: pd.DataFrame, context: dict[str, Any]) -> str:
    """Return what tells `context` from the others of `table`: ``tokens 128``; empty if alone."""
    return ", ".join(f"{CONTEXT[name].lower()} {context[name]}" for name in varying(table))
