"""The two kinds of figure: a batch size over cores, and an optimization over threads.

Each is a small function of the results table alone, and returns a matplotlib figure.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_hex

from scalebench_lib.analysis.picture import Line, Picture, Scale, Words, draw
from scalebench_lib.analysis.selection import (
    METRICS,
    MetricName,
    choose,
    config_words,
    measured_only,
    missing_words,
    model_title,
    only_value,
    parts,
)
from scalebench_lib.config import OPTIMIZATIONS

_MARKERS = "osD^vPX*<>"


def per_batch(
    table: pd.DataFrame,
    model: str,
    metric: MetricName,
    batch_size: int,
    *,
    scale: Scale = "auto",
    source: str | None = None,
) -> Picture:
    """`metric` of one batch size over cores: a line for each optimization, SMT off and on.

    Latency is in ms, throughput in inferences/s. `source` says where and when it was measured
    (default: the table's machine). Raises `RequestError` where nothing of it was measured.
    """
    rows = choose(table, model=model, batch_size=batch_size)
    looks = _looks(table)
    lines = [
        _line(part, "cores", metric, config_words(rows, name, smt), *looks[name])
        for (name, smt), part in parts(measured_only(rows), ["optimization", "smt"])
    ]
    return draw(lines, _words(rows, metric, f"batch size {batch_size}", "cores", source), scale)


def per_optimization(
    table: pd.DataFrame,
    model: str,
    metric: MetricName,
    optimization: str,
    smt: bool,
    *,
    scale: Scale = "auto",
    source: str | None = None,
) -> Picture:
    """`metric` of one optimization over threads, SMT off or on: a line for each batch size.

    Units, `source` and errors are those of `per_batch`.
    """
    rows = choose(table, model=model, optimization=optimization, smt=smt)
    lines = [
        _line(part, "threads", metric, f"batch {batch_size}", _batch_colour(batch_size), "o")
        for batch_size, part in parts(measured_only(rows), "batch_size")
    ]
    what = f"{optimization}, SMT {'on' if smt else 'off'}"
    return draw(lines, _words(rows, metric, what, "threads", source), scale)


def _looks(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker by optimization: for those that we know, the same in every figure."""
    unknown = sorted(set(table["optimization"]) - set(OPTIMIZATIONS))
    names = [*OPTIMIZATIONS, *unknown]
    colours = sns.color_palette("colorblind", len(names)).as_hex()
    return dict(zip(names, zip(colours, cycle(_MARKERS), strict=False), strict=True))


def _batch_colour(batch_size: int) -> str:
    """From light to dark with the logarithm of the batch size; 1024 and more are darkest."""
    palette = sns.color_palette("viridis_r", as_cmap=True)
    return to_hex(palette(0.15 + 0.85 * min(np.log2(batch_size) / 10, 1)))


def _line(
    rows: pd.DataFrame, x: str, metric: MetricName, label: str, colour: str, marker: str
) -> Line:
    rows = rows.sort_values(x)
    if rows[x].duplicated().any():
        raise ValueError(f"{label}: several rows for one point: give the rows of one sweep")
    values, low, high = METRICS[metric].of(rows)
    return Line(
        label=label,
        colour=colour,
        marker=marker,
        dashed=bool(rows["smt"].iloc[0]),
        x=rows[x].to_numpy(float),
        y=values,
        low=low,
        high=high,
        coarse=rows["coarse"].to_numpy(bool),
    )


def _words(rows: pd.DataFrame, metric: MetricName, what: str, by: str, source: str | None) -> Words:
    model = model_title(only_value(rows, "model"))
    where = [source or only_value(rows, "machine"), rows["item"].iloc[0]]
    where.append(f"{only_value(rows, 'placement')} placement")
    if not rows["pinned"].fillna(True).all():
        where.append("NOT PINNED: threads could move between CPUs")
    return Words(
        title=f"{model} {metric}: {what}, by {by}",
        x_axis=by,
        y_axis=METRICS[metric].axis,
        source=" · ".join(where),
        missing=missing_words(rows),
    )
