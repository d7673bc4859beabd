"""What the explorer can show: its views, what each needs chosen, draws, and saves as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scalebench_lib.analysis.axis import Scale
from scalebench_lib.analysis.figures import (
    by_batch_size,
    of_peak,
    over_none,
    over_threads,
    per_batch,
    per_optimization,
)
from scalebench_lib.analysis.findings import extreme, interval_words, point_words
from scalebench_lib.analysis.heat import heat_map
from scalebench_lib.analysis.picture import Picture
from scalebench_lib.analysis.ratios import EAGER, best_threads, over_eager, over_one_thread
from scalebench_lib.analysis.samples import distribution, samples_table
from scalebench_lib.analysis.selection import (
    ALL,
    Measured,
    MetricName,
    beside_each_other,
    measured_only,
)
from scalebench_lib.errors import RequestError
from scalebench_lib.numerals import number

_LINES = ("batch_sizes", "optimizations", "smts")


@dataclass(frozen=True)
class Asked:
    """What was chosen. `at` is the thread count to compare at, None for each config's best;
    `reach` the least and the most threads; `setting` the values of model and `SETTING`."""

    metric: MetricName
    batch_size: int
    optimization: str
    smt: bool
    batch_sizes: tuple[int, ...]
    optimizations: tuple[str, ...]
    smts: tuple[bool, ...]
    at: int | None
    reach: tuple[int, int]
    scale: Scale
    setting: dict[str, Any]
    source: str = ""

    @property
    def words(self) -> dict[str, Any]:
        """For figures with a y axis."""
        return {"scale": self.scale, "source": self.source}

    @property
    def config(self) -> tuple[str, bool]:
        """For figures of one optimization, SMT off or on."""
        return self.optimization, self.smt


@dataclass(frozen=True)
class View:
    """A way to look at a sweep: its `title`, the controls that apply to it, and its picture.

    `data` gives the numbers in the picture from the rows chosen; `needs` says whether a results
    table holds what it shows; `always` are optimizations that it compares with, ticked or not.
    """

    title: str
    controls: tuple[str, ...]
    draw: Callable[[pd.DataFrame, Asked], Picture]
    data: Callable[[pd.DataFrame, Asked], pd.DataFrame] = lambda rows, asked: rows
    needs: Callable[[pd.DataFrame], bool] = lambda table: True
    always: tuple[str, ...] = ()


def _model(rows: pd.DataFrame) -> str:
    return str(rows["model"].iloc[0])


def _sizes(rows: pd.DataFrame, asked: Asked) -> Picture:
    return by_batch_size(rows, _model(rows), asked.metric, threads=asked.at, **asked.words)


def _compares(table: pd.DataFrame) -> bool:
    return {EAGER} < set(table["optimization"])


VIEWS: dict[str, View] = {
    "eager": View(
        "Speed-up over eager",
        (*_LINES, "at", "scale"),
        lambda rows, asked: over_none(rows, _model(rows), threads=asked.at, **asked.words),
        lambda rows, asked: over_eager(rows, asked.at),
        _compares,
        always=(EAGER,),
    ),
    "sizes": View(
        "By batch size",
        ("metric", *_LINES, "at", "scale"),
        _sizes,
        lambda rows, asked: best_threads(rows, asked.at),
    ),
    "batch": View(
        "One batch size, by cores",
        ("metric", "batch_size", "optimizations", "smts", "reach", "scale"),
        lambda rows, asked: per_batch(
            rows, _model(rows), asked.metric, asked.batch_size, **asked.words
        ),
    ),
    "optimization": View(
        "One optimization, by threads",
        ("metric", "optimization", "smt", "batch_sizes", "reach", "scale"),
        lambda rows, asked: per_optimization(
            rows, _model(rows), asked.metric, *asked.config, **asked.words
        ),
    ),
    "scaling": View(
        "Speed-up over one thread",
        ("optimization", "smt", "batch_sizes", "scale"),
        lambda rows, asked: over_threads(rows, _model(rows), *asked.config, **asked.words),
        lambda rows, asked: over_one_thread(rows),
    ),
    "heat": View(
        "Heat map: batch size × threads",
        ("metric", "optimization", "smt", "batch_sizes", "reach"),
        lambda rows, asked: heat_map(
            rows, _model(rows), asked.metric, *asked.config, source=asked.source
        ),
    ),
    "peak": View(
        "Share of the machine's peak",
        (*_LINES, "at", "scale"),
        lambda rows, asked: of_peak(rows, _model(rows), threads=asked.at, **asked.words),
        lambda rows, asked: best_threads(rows[rows["peak_fraction"].notna()], asked.at),
        needs=lambda table: bool(table["peak_fraction"].notna().any()),
    ),
    "samples": View(
        "Every sample of a batch size",
        ("batch_size", "optimization", "smt", "reach"),
        lambda rows, asked: distribution(rows, _model(rows), asked.batch_size, asked.source),
        needs=lambda table: bool(table["latency_ms_min"].notna().any()),
    ),
}
"""By the names that the page has for them too; the first that a sweep can have is shown first."""


def table_of(measured: Measured, view: str) -> pd.DataFrame:
    """What `view` draws from: a row a point, or a row a sample in view ``samples``."""
    return samples_table(measured.results) if view == "samples" else measured.table


def rows_of(table: pd.DataFrame, view: str, asked: Asked) -> pd.DataFrame:
    """The rows of `table` (`table_of` gave it) that were asked for.

    Raises `RequestError` where nothing is left.
    """
    controls = VIEWS[view].controls
    setting = {name: [value] for name, value in asked.setting.items() if value != ALL}
    together = setting.keys() != asked.setting.keys()
    rows = _choose_some(beside_each_other(table) if together else table, setting)
    rows = _choose_some(rows, _wanted(view, asked))
    if view != "samples":
        measured_only(rows)
    if "reach" in controls:
        within = rows["threads"].isna() | rows["threads"].between(*asked.reach)
        rows = rows[within.astype(bool)]
    return rows


def _wanted(view: str, asked: Asked) -> dict[str, list[Any]]:
    """The values of each column that the view's controls left in."""
    controls = VIEWS[view].controls
    several = {"batch_size": "batch_sizes", "optimization": "optimizations", "smt": "smts"}
    wanted: dict[str, list[Any]] = {
        column: list(getattr(asked, many)) if many in controls else [getattr(asked, column)]
        for column, many in several.items()
    }
    if any(not values for values in wanted.values()):
        raise RequestError("Nothing is chosen: tick at least one box of each row.")
    wanted["optimization"] += VIEWS[view].always
    return wanted


def _choose_some(rows: pd.DataFrame, wanted: dict[str, list[Any]]) -> pd.DataFrame:
    """The rows that have one of the values in each column; `RequestError` where none has."""
    for column, values in wanted.items():
        if column in rows:
            there, rows = rows, rows[rows[column].isin(values)]
            if rows.empty:
                names = ", ".join(map(str, values))
                known = ", ".join(map(str, sorted(there[column].unique())))
                raise RequestError(f"nothing has {column} {names}: there is {known}")
    return rows


def seen(view: str, data: pd.DataFrame, metric: MetricName, measured: Measured) -> str:
    """A sentence on what is seen in a picture of `view`, computed from its `data`."""
    if view == "samples":
        return f"{len(data):,} passes, {int(data['outlier'].sum()):,} of them outliers."
    if view in ("eager", "scaling"):
        top = data.sort_values("speedup").dropna(subset="speedup").iloc[-1]
        value = f"{number(top['speedup'])}×{interval_words(top)}"
        return f"Largest speed-up: {value}, with {point_words(data, top)}."
    if view == "peak":
        top = data.sort_values("peak_fraction").dropna(subset="peak_fraction").iloc[-1]
        share = number(100 * top["peak_fraction"])
        return f"Largest share: {share} % of the peak, with {point_words(data, top)}."
    return extreme(measured, data, metric)
