"""The figures of a sweep, each a small function of the results table alone.

`heat.heat_map` and `samples.distribution` are the others. Latency is in ms,
throughput in inferences/s. `source` says where and when it was measured, under every picture
(default: the table's machine). All raise `RequestError` where nothing of it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from scalebench_lib.analysis.axis import Scale
from scalebench_lib.analysis.looks import batch_colour, look
from scalebench_lib.analysis.picture import Line, Picture, Words, draw
from scalebench_lib.analysis.ratios import best_threads, how_words, over_eager, over_one_thread
from scalebench_lib.analysis.selection import (
    METRICS,
    MetricName,
    Values,
    choose,
    config_words,
    error_words,
    measured_only,
    missing_words,
    model_title,
    only_value,
    parts,
)
from scalebench_lib.errors import RequestError
from scalebench_lib.numerals import counted


def per_batch(
    table: pd.DataFrame,
    model: str,
    metric: MetricName,
    batch_size: int,
    *,
    scale: Scale = "auto",
    source: str | None = None,
) -> Picture:
    """`metric` of one batch size over cores: a line for each optimization, SMT off and on."""
    rows = choose(table, model=model, batch_size=batch_size)
    measured_only(rows)
    lines = [
        _line(part, "cores", METRICS[metric].of, config_words(rows, name, smt), *look(table, name))
        for (name, smt), part in parts(rows, ["optimization", "smt"])
    ]
    words = _words(rows, f"{metric}: batch size {batch_size}, by cores", "cores", source)
    return draw(lines, Words(**words, y_axis=METRICS[metric].axis), scale)


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
    """`metric` of one optimization over threads, SMT off or on: a line for each batch size."""
    rows = choose(table, model=model, optimization=optimization, smt=smt)
    measured_only(rows)
    lines = list(_batch_lines(rows, METRICS[metric].of))
    title = f"{metric}: {_config(optimization, smt)}, by threads"
    words = _words(rows, title, "threads", source)
    return draw(lines, Words(**words, y_axis=METRICS[metric].axis), scale)


def over_threads(
    table: pd.DataFrame,
    model: str,
    optimization: str,
    smt: bool,
    *,
    scale: Scale = "auto",
    source: str | None = None,
) -> Picture:
    """Speed-up over one thread by threads, a line for each batch size, and the ideal line."""
    rows = choose(table, model=model, optimization=optimization, smt=smt)
    found = over_one_thread(measured_only(rows)).dropna(subset="speedup")
    if found.empty:
        raise RequestError("one thread was not measured: sweep with '--threads 1,…' first")
    counts = sorted(found["threads"].unique().astype(int))
    lines = [Line.ideal_of("ideal", counts, counts), *_batch_lines(found, _speedups)]
    title = f"speed-up over 1 thread: {_config(optimization, smt)}"
    words = _words(rows, title, "threads", source, ratios=found)
    return draw(lines, Words(**words, y_axis="speed-up over 1 thread (×)"), scale)


def by_batch_size(
    table: pd.DataFrame,
    model: str,
    metric: MetricName = "throughput",
    *,
    threads: int | None = None,
    scale: Scale = "auto",
    source: str | None = None,
) -> Picture:
    """`metric` by batch size, a line for each optimization and SMT.

    At `threads` threads, by default each point at its best thread count.
    """
    rows = choose(table, model=model)
    found = _at(measured_only(rows), threads)
    lines = list(_config_lines(rows, found, METRICS[metric].of))
    title = f"{metric} by batch size, {_counted(threads)}"
    words = _words(rows, title, "batch size", source, doubling=True)
    return draw(lines, Words(**words, y_axis=METRICS[metric].axis), scale)


def over_none(
    table: pd.DataFrame,
    model: str,
    *,
    threads: int | None = None,
    scale: Scale = "auto",
    source: str | None = None,
) -> Picture:
    """Speed-up over eager by batch size: a line for each optimization and SMT, with its error.

    The error is the least SQNR of its configs, in dB. Both sides at `threads` threads, by
    default each at its best thread count.
    """
    rows = choose(table, model=model)
    _at(measured_only(rows), threads)
    found = over_eager(rows, threads).dropna(subset="speedup")
    others, compared = (frame[~frame["is_base"]] for frame in (rows, found))
    if compared.empty:
        raise RequestError("there is no optimization to compare with eager ('none')")
    sizes = sorted(found["batch_size"].unique().astype(int))
    lines = [
        Line.ideal_of("eager", [sizes[0], sizes[-1]], [1, 1]),
        *_config_lines(others, compared, _speedups, errors=True),
    ]
    title = f"speed-up over eager by batch size, {_counted(threads)}"
    words = _words(rows, title, "batch size", source, doubling=True, ratios=compared)
    return draw(lines, Words(**words, y_axis="speed-up over eager (×)"), scale)


def of_peak(
    table: pd.DataFrame,
    model: str,
    *,
    threads: int | None = None,
    scale: Scale = "linear",
    source: str | None = None,
) -> Picture:
    """Share of the machine's peak, in percent, by batch size: a line as in `by_batch_size`.

    The peak is that of a large matrix product on as many threads, in the type that the
    optimization computes in.
    """
    rows = choose(table, model=model)
    found = measured_only(rows)
    found = found[found["peak_fraction"].notna()]
    if found.empty:
        raise RequestError("the machine's peak is not known for any of these points")
    lines = list(_config_lines(rows, _at(found, threads), _shares))
    title = f"share of this machine's peak in its own type, {_counted(threads)}"
    words = _words(rows, title, "batch size", source, doubling=True)
    return draw(lines, Words(**words, y_axis="share of peak (%)"), scale)


def _at(rows: pd.DataFrame, threads: int | None) -> pd.DataFrame:
    found = best_threads(rows, threads)
    if found.empty:
        raise RequestError(f"nothing was measured at {threads} threads")
    return found


def _counted(threads: int | None) -> str:
    if threads is None:
        return "each at its best thread count"
    return counted(threads, "thread")


def _config(optimization: str, smt: bool) -> str:
    return f"{optimization}, SMT {'on' if smt else 'off'}"


def _speedups(rows: pd.DataFrame) -> Values:
    names = ("speedup", "speedup_low", "speedup_high")
    middle, low, high = (rows[name].to_numpy(float) for name in names)
    return middle, low, high


def _shares(rows: pd.DataFrame) -> Values:
    share = 100 * rows["peak_fraction"].to_numpy(float)
    middle, low, high = METRICS["latency"].of(rows)
    return share, share * middle / high, share * middle / low


def _batch_lines(rows: pd.DataFrame, of: Any) -> Iterator[Line]:
    for batch_size, part in parts(rows, "batch_size"):
        yield _line(part, "threads", of, f"batch {batch_size}", batch_colour(batch_size), "o")


def _config_lines(
    rows: pd.DataFrame, found: pd.DataFrame, of: Any, errors: bool = False
) -> Iterator[Line]:
    """A line by batch size for each config of `rows`: the points of `found`, and what failed."""
    for (name, smt), every in parts(rows, ["optimization", "smt"]):
        part = found[(found["optimization"] == name) & (found["smt"] == smt)]
        gone = every[every["status"] != "ok"]
        label = config_words(rows, name, smt) + (error_words(part) if errors else "")
        both = pd.concat([part, gone]) if len(gone) else part
        if len(both):
            yield _line(both, "batch_size", of, label, *look(rows, name))


def _line(rows: pd.DataFrame, x: str, of: Any, label: str, colour: str, marker: str) -> Line:
    gone = rows.loc[rows["status"] != "ok", x].dropna().to_numpy(float)
    rows = rows[rows["status"] == "ok"].sort_values(x)
    if rows.empty:
        return Line.without_points(f"{label}: not measured", colour, gone.tolist())
    if rows[x].duplicated().any():
        raise ValueError(f"{label}: several rows for one point: give the rows of one sweep")
    values, low, high = of(rows)
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
        gone=gone,
    )


def _words(
    rows: pd.DataFrame,
    title: str,
    by: str,
    source: str | None,
    doubling: bool = False,
    ratios: pd.DataFrame | None = None,
) -> dict[str, Any]:
    how = "" if ratios is None else how_words(ratios["speedup_paired"].dropna())
    return {
        "title": f"{model_title(only_value(rows, 'model'))} {title}",
        "x_axis": by,
        "source": source_words(rows, source) + (f" · ratios: {how}" if how else ""),
        "missing": missing_words(rows),
        "doubling": doubling,
    }


def source_words(rows: pd.DataFrame, source: str | None) -> str:
    """Where it was measured, with what: ``Machine · 2025-03-01 · 16 tokens · …``."""
    where = [source or only_value(rows, "machine")]
    where += [item for item in rows["item"].iloc[:1] if item]  # an imported file may not tell
    where.append(f"{only_value(rows, 'placement')} placement")
    allocator = only_value(rows, "allocator")
    where += [f"allocator {allocator}"] if allocator != "default" else []
    if not rows["pinned"].fillna(True).all():
        where.append("NOT PINNED: threads could move between CPUs")
    return " · ".join(where)
