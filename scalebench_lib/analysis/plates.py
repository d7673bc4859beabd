"""Which figures a page has: their names, alternative texts, and order.

Order and names are those of the published scalebench pages, so that one can stand for the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd

from scalebench_lib.analysis.figures import of_peak, over_none, per_batch, per_optimization
from scalebench_lib.analysis.picture import Picture
from scalebench_lib.analysis.ratios import EAGER, over_eager
from scalebench_lib.analysis.selection import (
    METRICS,
    MetricName,
    beside_each_other,
    missing_words,
    model_title,
    settings,
)
from scalebench_lib.config import Config
from scalebench_lib.words import OPTIMIZATIONS, slug

By = Literal["batch", "optimization", "eager", "peak"]

_SUFFIXES = {
    "seq_len": "seq",
    "image_size": "px",
    "placement": "",
    "allocator": "",
    "device": "",
    "machine": "",
}
"""What tells figures of one page apart, and how it begins in their names."""


@dataclass(frozen=True)
class Plate:
    """A place on the page: the figure `name`.png, or why there is none.

    `alt` is its alternative text, `short` its name within its group, `rows` all that it shows,
    `choices` what a reader of the live page would choose to see it.
    """

    name: str
    alt: str
    short: str
    metric: MetricName
    by: By
    placement: str
    rows: pd.DataFrame
    drawing: partial[Picture]
    choices: dict[str, Any]

    @property
    def missing(self) -> str | None:
        """Why there is no picture, where nothing of it was measured."""
        if (self.rows["status"] == "ok").any():
            return None
        return f"{self.alt}: not measured. {'; '.join(missing_words(self.rows))}."

    def draw(self, source: str | None = None) -> Picture:
        """The figure, with its alternative text; `RequestError` where nothing was measured."""
        picture = self.drawing(source=source)
        picture.alt = self.alt
        return picture


def plates(table: pd.DataFrame) -> list[Plate]:
    """All plates of `table` in the order of the page: metric, batches, then optimizations."""
    return [
        plate
        for placement in sorted(table["placement"].unique(), reverse=True)
        for metric in METRICS
        for by in (_batch_plates, _optimization_plates)
        for setting, rows in settings(table[table["placement"] == placement])
        for plate in by(rows, metric, setting, _suffixes(table, setting))
    ]


def overviews(table: pd.DataFrame) -> Iterator[Plate]:
    """Plates of all configs at once, where there is something to show.

    Speed-ups over eager, and shares of the machine's peak; allocators beside each other.
    """
    table = beside_each_other(table)
    for setting, rows in settings(table):
        model, suffixes = setting["model"], _suffixes(table, setting)
        compared = over_eager(rows).dropna(subset="speedup")
        if compared["optimization"].ne(EAGER).any():
            drawing = partial(over_none, rows, model)
            yield _overview("eager", "speedup", "Speed-up", rows, drawing, setting, suffixes)
        if rows["peak_fraction"].notna().any():
            drawing = partial(of_peak, rows, model)
            yield _overview("peak", "peak", "Peak", rows, drawing, setting, suffixes)


def _overview(
    by: By,
    name: str,
    title: str,
    rows: pd.DataFrame,
    drawing: partial[Picture],
    setting: dict[str, Any],
    suffixes: list[str],
) -> Plate:
    return Plate(
        name=_name(setting["model"], name, *suffixes),
        alt=" ".join([model_title(setting["model"]), title, *suffixes]),
        short=" ".join([title, *suffixes]),
        metric="latency",
        by=by,
        placement=setting["placement"],
        rows=rows,
        drawing=drawing,
        choices={**setting, "threads": "best"},
    )


def ordered_optimizations(table: pd.DataFrame) -> list[str]:
    """The table's optimizations: those that we know in our order, then the others by name."""
    ranks = {name: rank for rank, name in enumerate(OPTIMIZATIONS)}
    names = set(table["optimization"])
    return sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name))


def shown_optimizations(table: pd.DataFrame) -> list[str]:
    """Those with figures of their own: `none` only stands to compare with, unless it is alone."""
    ordered = ordered_optimizations(table)
    return [name for name in ordered if name != "none"] or ordered


def _batch_plates(
    rows: pd.DataFrame, metric: MetricName, setting: dict[str, Any], suffixes: list[str]
) -> Iterator[Plate]:
    model = setting["model"]
    for size in sorted(rows["batch_size"].unique()):
        yield Plate(
            name=_name(model, metric, str(size), *suffixes),
            alt=_alt(model, metric, f"BS={size}", *suffixes),
            short=" ".join([str(size), *suffixes]),
            metric=metric,
            by="batch",
            placement=setting["placement"],
            rows=rows[rows["batch_size"] == size],
            drawing=partial(per_batch, rows, model, metric, size),
            choices={**setting, "batch": size},
        )


def _optimization_plates(
    rows: pd.DataFrame, metric: MetricName, setting: dict[str, Any], suffixes: list[str]
) -> Iterator[Plate]:
    model, shown = setting["model"], shown_optimizations(rows)
    for optimization in shown:
        of_several = [f"Opt={optimization}"] if len(shown) > 1 else []
        chosen = rows[rows["optimization"] == optimization]
        for smt in sorted(chosen["smt"].unique()):
            yield Plate(
                name=_name(model, metric, optimization, str(bool(smt)), *suffixes),
                alt=_alt(model, metric, *of_several, f"HT={bool(smt)}", *suffixes),
                short=" ".join([optimization, f"HT={bool(smt)}", *suffixes]),
                metric=metric,
                by="optimization",
                placement=setting["placement"],
                rows=chosen[chosen["smt"] == smt],
                drawing=partial(per_optimization, rows, model, metric, optimization, smt),
                choices={**setting, "optimization": optimization, "smt": str(bool(smt)).lower()},
            )


def _suffixes(table: pd.DataFrame, setting: dict[str, Any]) -> list[str]:
    """What tells `setting` from the page's others; what is the default needs no word."""
    several = [column for column in _SUFFIXES if len(table[column].unique()) > 1]
    return [
        f"{_SUFFIXES[column]}{setting[column]}"
        for column in several
        if column not in Config.model_fields
        or setting[column] != Config.model_fields[column].default
    ]


def _name(*words: str) -> str:
    """A file's name; a model from elsewhere may hold a slash."""
    return re.sub(r"[^\w.-]+", "_", "-".join([slug(words[0]), *words[1:]]))


def _alt(model: str, metric: MetricName, *words: str) -> str:
    return " ".join([model_title(model), METRICS[metric].title, *words])
