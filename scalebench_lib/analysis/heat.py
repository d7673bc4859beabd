"""One optimization at a glance: batch size by threads, a cell a point."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from scalebench_lib.analysis.figures import source_words
from scalebench_lib.analysis.picture import STYLE, WIDTH, Picture, canvas, caption, missing_notes
from scalebench_lib.analysis.selection import (
    METRICS,
    MetricName,
    choose,
    measured_only,
    missing_words,
    model_title,
)
from scalebench_lib.numerals import number

_ROW = 0.34
_MOST_WRITTEN = 20
"""With more columns than this, numbers would lie on one another."""


def heat_map(
    table: pd.DataFrame,
    model: str,
    metric: MetricName,
    optimization: str,
    smt: bool,
    *,
    source: str | None = None,
) -> Picture:
    """`metric` of one optimization by batch size and threads, a coloured cell each.

    A cross is a config that failed or was skipped, an empty cell was not asked for. Latency in
    ms, throughput in inferences/s. Raises `RequestError` where nothing of it was measured.
    """
    rows = choose(table, model=model, optimization=optimization, smt=smt)
    found = measured_only(rows).assign(value=lambda some: METRICS[metric].of(some)[0])
    cells = found.pivot_table(index="batch_size", columns="threads", values="value")
    cells = cells.reindex(sorted(rows["batch_size"].unique())).astype(float)
    title = f"{model_title(model)} {metric}: {optimization}, SMT {'on' if smt else 'off'}"
    notes = [source_words(rows, source), f"{METRICS[metric].axis}; colours on a log scale."]
    gone = missing_words(rows)
    notes += [*(["Crosses: failed or skipped."] if gone else []), *missing_notes(gone)]
    with rc_context({**STYLE, "axes.grid": False}):
        figure, axes = canvas(title, len(notes), max(1.2, _ROW * len(cells)))
        _fill(axes, cells, "viridis" if metric == "throughput" else "viridis_r")
        _cross(axes, cells)
        axes.set(xlabel="threads", ylabel="batch size")
        figure.subplots_adjust(right=1 - 0.2 / WIDTH)
        caption(figure, title, notes)
    return figure


def _fill(axes: Axes, cells: pd.DataFrame, palette: str) -> None:
    written = len(cells.columns) <= _MOST_WRITTEN
    labels = cells.map(lambda value: number(value) if np.isfinite(value) else "").to_numpy()
    low, high = np.nanmin(cells), np.nanmax(cells)
    sns.heatmap(
        cells,
        norm=LogNorm(low, high if high > low else 1.01 * low),
        cmap=palette,
        cbar=False,
        annot=labels if written else None,
        fmt="",
        annot_kws={"fontsize": 8 if len(cells.columns) <= 10 else 6},
        linewidths=0.8,
        ax=axes,
    )
    axes.tick_params(axis="y", rotation=0)


def _cross(axes: Axes, cells: pd.DataFrame) -> None:
    for row in np.flatnonzero(cells.isna().all(axis=1)).tolist():
        width = len(cells.columns)
        axes.add_patch(Rectangle((0, row), width, 1, color="0.93", linewidth=0, zorder=0))
        axes.plot(np.arange(width) + 0.5, np.full(width, row + 0.5), "x", color="0.35", gid="gone")
