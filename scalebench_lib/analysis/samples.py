"""Every pass, one dot each: whether the numbers can be believed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes

from scalebench_lib.analysis.labels import EndLabel, label_ends
from scalebench_lib.analysis.looks import look
from scalebench_lib.analysis.picture import STYLE, WIDTH, Picture, canvas, caption
from scalebench_lib.analysis.selection import config_words, model_title, parts
from scalebench_lib.errors import RequestError
from scalebench_lib.numerals import counted
from scalebench_lib.record import Point, Record
from scalebench_lib.results import Results
from scalebench_lib.stats import turns_interval

_OUTLIER = "#d03a4a"
_SPREAD = 0.28
"""Dots of a point are strewn so far to each side of its middle."""


def samples_table(results: Results) -> pd.DataFrame:
    """Every sample of `results`, a row each: its config, ``threads``, ``trial``, ``latency_ms``,
    and ``outlier``, whether it is above 1.5 times its point's median."""
    return pd.concat(list(_samples(results)), ignore_index=True)


def _samples(results: Results) -> Iterator[pd.DataFrame]:
    for (_, threads), point in results.points.items():
        counts = [len(found.samples_ns) for _, found in point.trials]
        yield pd.DataFrame(
            {
                **point.config.model_dump(exclude={"weights", "seed"}),
                "config_id": point.config.id,
                "threads": threads,
                "trial": np.repeat([record.trial for record, _ in point.trials], counts),
                "latency_ms": point.samples_ns / 1e6,
                "outlier": point.outlier,
            }
        )


def distribution(samples: pd.DataFrame, model: str, batch_size: int, source: str) -> Picture:
    """The samples of one batch size in ms, a column a point; outliers are red crosses.

    `samples` is what `samples_table` gives, of one setting. Raises `RequestError` where there
    are none of them.
    """
    rows = samples[(samples["model"] == model) & (samples["batch_size"] == batch_size)]
    if rows.empty:
        raise RequestError(f"no samples of {model} at batch size {batch_size}")
    title = f"{model_title(model)}, batch size {batch_size}: every pass"
    many = f"{len(rows):,} passes, {int(rows['outlier'].sum()):,} of them outliers (crosses)"
    notes = [source, f"{many}; bars: medians of all. A column a point, threads in its name."]
    with rc_context(STYLE):
        figure, axes = canvas(title, len(notes) + 5, ylabel="latency of a pass (ms)")
        groups = list(parts(rows, ["optimization", "smt", "threads"]))
        for place, ((name, _, _), part) in enumerate(groups):
            _strew(axes, place, part, look(samples, name)[0])
        names = [f"{config_words(rows, o, s)}, {t}" for (o, s, t), _ in groups]
        axes.set_xticks(range(len(names)), names, rotation=50, ha="right", fontsize=8)
        axes.set_ylim(0, 1.05 * rows["latency_ms"].max())
        axes.grid(visible=False, axis="x")
        sns.despine(ax=axes)
        figure.subplots_adjust(right=1 - 0.2 / WIDTH)
        caption(figure, title, notes)
    return figure


def _strew(axes: Axes, place: int, part: pd.DataFrame, colour: str) -> None:
    strewn = place + _SPREAD * np.sin(2.4 * np.arange(len(part)))
    odd = part["outlier"].to_numpy(bool)
    values = part["latency_ms"].to_numpy(float)
    axes.plot(strewn[~odd], values[~odd], ".", color=colour, markersize=4, alpha=0.55)
    axes.plot(strewn[odd], values[odd], "x", color=_OUTLIER, markersize=5, gid="outlier")
    axes.hlines(np.median(values), place - 0.4, place + 0.4, color="0.2", linewidth=1.2)


def samples(record: Record) -> Picture:
    """The passes of `record` over time, in ms and s: dots, their median and its 95 % interval."""
    figure = Picture(figsize=(8.4, 4.0))
    figure.alt = f"Every pass of {record.config}"
    began = min(point.turns[0].start_ns for point in record.points)
    with rc_context(STYLE):
        axes = figure.add_subplot(
            xlabel="seconds since the first pass", ylabel="latency of a pass (ms)"
        )
        colours = sns.color_palette("colorblind", len(record.points))
        ends = [
            _draw(axes, point, began, colour)
            for point, colour in zip(record.points, colours.as_hex(), strict=True)
        ]
        axes.set_title(figure.alt, loc="left", fontsize=11, weight="bold")
        axes.set_ylim(bottom=0)
        sns.despine(ax=axes)
        figure.subplots_adjust(right=0.86, bottom=0.14)
        label_ends(axes, ends)
    return figure


def _draw(axes: Axes, point: Point, began_ns: int, colour: str) -> EndLabel:
    found, middle = turns_interval([turn.median_ns for turn in point.turns]), point.median_ns / 1e6
    axes.plot(
        *(_seconds(point, began_ns), np.asarray(point.samples_ns) / 1e6, "."),
        color=colour,
        alpha=0.6,
    )
    axes.axhline(middle, color=colour, linewidth=1)
    if np.isfinite(found.high):
        axes.axhspan(found.low / 1e6, found.high / 1e6, color=colour, alpha=0.2, linewidth=0)
    return EndLabel(counted(point.threads, "thread"), axes.get_xlim()[1], middle, colour)


def _seconds(point: Point, began_ns: int) -> np.ndarray:
    """When each sample began, counted from `began_ns`: those of a turn follow one another."""
    each = [
        turn.start_ns + point.passes_per_sample * np.cumsum((0, *turn.samples_ns[:-1]))
        for turn in point.turns
    ]
    return (np.concatenate(each) - began_ns) / 1e9
