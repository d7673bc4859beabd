"""Two sweeps of different machines side by side: shapes are compared, never milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import seaborn as sns

from scalebench_lib.analysis.picture import Line, Picture, Words, draw
from scalebench_lib.analysis.selection import Measured, measured_only, model_title, parts
from scalebench_lib.errors import RequestError
from scalebench_lib.numerals import number

_MOST_BATCHES = 3

Pair = dict[str, pd.DataFrame]
"""Speed-ups of two sweeps by the sweep's label."""


def speedups(measured: Measured, model: str) -> pd.DataFrame:
    """How many times as fast as one thread `model` runs, SMT off: by batch size and threads.

    Of several optimizations and settings the fastest counts, at one thread too. Columns
    `batch_size`, `threads` and `speedup`.
    """
    rows = measured_only(measured.table)
    rows = rows[(rows["model"] == model) & ~rows["smt"].astype(bool)]
    best = rows.loc[rows.groupby(["batch_size", "threads"])["latency_ms"].idxmin()]
    single = {row["batch_size"]: row for row in best[best["threads"] == 1].to_dict("records")}
    found = [
        (row["batch_size"], row["threads"], measured.ratio(single[row["batch_size"]], row).value)
        for row in best.to_dict("records")
        if row["batch_size"] in single
    ]
    return pd.DataFrame(found, columns=["batch_size", "threads", "speedup"])


def side_by_side(own: Measured, other: Measured) -> tuple[Picture, list[str]]:
    """A picture of both sweeps' speed-ups over one thread, and sentences on what it shows.

    Raises `RequestError` where they have no model or batch size in common.
    """
    model, pair = _comparable(own, other)
    sizes = _few(sorted(set.intersection(*(set(t["batch_size"]) for t in pair.values()))))
    colours = sns.color_palette("colorblind", len(sizes)).as_hex()
    lines = [
        _line(part, f"{label}, batch {size}", colour, dashed=label == "other")
        for size, colour in zip(sizes, colours, strict=True)
        for label, table in pair.items()
        for _, part in parts(table[table["batch_size"] == size], "batch_size")
    ]
    title = f"{model_title(model)}: speed-up over one thread"
    source = f"own (solid): {own.source} · other (dashed): {other.source} · SMT off"
    picture = draw(lines, Words(title, "threads", "times as fast as one thread", source), "linear")
    return picture, list(_sentences(pair, sizes))


def _comparable(own: Measured, other: Measured) -> tuple[str, Pair]:
    """The first model that both have at a common batch size, one thread included."""
    models = sorted(set(own.table["model"]) & set(other.table["model"]))
    for model in models:
        pair = {"own": speedups(own, model), "other": speedups(other, model)}
        if set(pair["own"]["batch_size"]) & set(pair["other"]["batch_size"]):
            return model, pair
    raise RequestError(
        "the two sweeps have no batch size of one model in common, measured at one thread with "
        "SMT off: choose another sweep to lay beside"
    )


def _few(sizes: list[int]) -> list[int]:
    """The smallest, the largest, and one between."""
    places = np.linspace(0, len(sizes) - 1, min(len(sizes), _MOST_BATCHES)).round().astype(int)
    return [sizes[place] for place in places]


def _line(part: pd.DataFrame, label: str, colour: str, dashed: bool) -> Line:
    unknown = np.full(len(part), np.nan)
    return Line(
        label=label,
        colour=colour,
        marker="s" if dashed else "o",
        dashed=dashed,
        x=part["threads"].to_numpy(float),
        y=part["speedup"].to_numpy(float),
        low=unknown,
        high=unknown,
        coarse=np.zeros(len(part), dtype=bool),
    )


def _sentences(pair: Pair, sizes: list[int]) -> Iterator[str]:
    for size in sizes:
        both = [t[t["batch_size"] == size].set_index("threads")["speedup"] for t in pair.values()]
        threads = max(set(both[0].index) & set(both[1].index))
        own, other = (float(found[threads]) for found in both)
        if threads > 1:
            yield (
                f"Batch {size}, {threads} threads: {number(own)}× as fast as one thread here, "
                f"{number(other)}× in the other sweep."
            )
