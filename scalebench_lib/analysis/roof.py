"""How close to the limit: each point's share of the machine's own matrix-product peak."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from scalebench_lib.analysis.picture import Line, Picture, Words, draw
from scalebench_lib.analysis.selection import config_words, model_title, parts

_MOST_LINES = 8
"""More lines than this cover each other: then only the least and the most threads are drawn."""


def roof(rows: pd.DataFrame, source: str | None = None) -> Picture:
    """Share of the peak in percent by batch size; a line per optimization, SMT and threads.

    The peak is that of the type in which the optimization computes.
    """
    groups = list(parts(_few(rows), ["optimization", "smt", "threads"]))
    colours = sns.color_palette("colorblind", len(groups)).as_hex()
    lines = [
        _line(part, f"{config_words(rows, name, smt)}, {_counted(threads)}", colour)
        for ((name, smt, threads), part), colour in zip(groups, colours, strict=True)
    ]
    title = f"{model_title(rows['model'].iloc[0])}: share of this machine's peak in its own type"
    words = Words(title, "batch size", "share of peak (%)", source or "")
    return draw(lines, words, "linear")


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"


def _few(rows: pd.DataFrame) -> pd.DataFrame:
    if len(rows[["optimization", "smt", "threads"]].drop_duplicates()) <= _MOST_LINES:
        return rows
    extremes = rows.groupby(["optimization", "smt"])["threads"].transform
    return rows[(rows["threads"] == extremes("min")) | (rows["threads"] == extremes("max"))]


def _line(part: pd.DataFrame, label: str, colour: str) -> Line:
    part = part.sort_values("batch_size")
    share = 100 * part["peak_fraction"].to_numpy(float)
    latency = part["latency_ms"].to_numpy(float)
    return Line(
        label=label,
        colour=colour,
        marker="o",
        dashed=bool(part["smt"].iloc[0]),
        x=part["batch_size"].to_numpy(float),
        y=share,
        low=share * latency / part["latency_ms_high"].to_numpy(float),
        high=share * latency / part["latency_ms_low"].to_numpy(float),
        coarse=np.asarray(part["coarse"], dtype=bool),
    )
