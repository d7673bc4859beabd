"""The figures of a sweep, each a small function of the results table or of the samples.

Latency is in ms, throughput in inferences/s. `source` says where and when it was measured, under
every picture (default: the table's machine). All raise `RequestError` where nothing of it was
measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from scalebench_lib.analysis.draw import (
    STYLE,
    WIDTH,
    ChartText,
    EndLabel,
    Line,
    Picture,
    Scale,
    batch_colour,
    canvas,
    caption,
    draw,
    label_ends,
    missing_notes,
    style_of,
)
from scalebench_lib.analysis.tables import (
    METRICS,
    Measured,
    MetricName,
    Values,
    best_threads,
    choose,
    config_label,
    error_label,
    measured_only,
    missing_lines,
    model_title,
    only_value,
    over_eager,
    over_one_thread,
    pairing_label,
    parts,
)
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Point, Record
from scalebench_lib.results import Results
from scalebench_lib.stats import turns_interval
from scalebench_lib.text import format_number, pluralize


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
        _line(
            part, "cores", METRICS[metric].of, config_label(rows, name, smt), *style_of(table, name)
        )
        for (name, smt), part in parts(rows, ["optimization", "smt"])
    ]
    words = _words(rows, f"{metric}: batch size {batch_size}, by cores", "cores", source)
    return draw(lines, ChartText(**words, y_axis=METRICS[metric].axis), scale)


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
    return draw(lines, ChartText(**words, y_axis=METRICS[metric].axis), scale)


def speedup_over_one_thread(
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
    return draw(lines, ChartText(**words, y_axis="speed-up over 1 thread (×)"), scale)


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
    return draw(lines, ChartText(**words, y_axis=METRICS[metric].axis), scale)


def speedup_over_eager(
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
    return draw(lines, ChartText(**words, y_axis="speed-up over eager (×)"), scale)


def peak_share(
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
    return draw(lines, ChartText(**words, y_axis="share of peak (%)"), scale)


def _at(rows: pd.DataFrame, threads: int | None) -> pd.DataFrame:
    found = best_threads(rows, threads)
    if found.empty:
        raise RequestError(f"nothing was measured at {threads} threads")
    return found


def _counted(threads: int | None) -> str:
    if threads is None:
        return "each at its best thread count"
    return pluralize(threads, "thread")


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
        label = config_label(rows, name, smt) + (error_label(part) if errors else "")
        both = pd.concat([part, gone]) if len(gone) else part
        if len(both):
            yield _line(both, "batch_size", of, label, *style_of(rows, name))


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
    how = "" if ratios is None else pairing_label(ratios["speedup_paired"].dropna())
    return {
        "title": f"{model_title(only_value(rows, 'model'))} {title}",
        "x_axis": by,
        "source": source_label(rows, source) + (f" · ratios: {how}" if how else ""),
        "missing": missing_lines(rows),
        "doubling": doubling,
    }


def source_label(rows: pd.DataFrame, source: str | None) -> str:
    """Where it was measured, with what: ``Machine · 2025-03-01 · 16 tokens · …``."""
    where = [source or only_value(rows, "machine")]
    where += [item for item in rows["item"].iloc[:1] if item]  # an imported file may not tell
    where.append(f"{only_value(rows, 'placement')} placement")
    allocator = only_value(rows, "allocator")
    where += [f"allocator {allocator}"] if allocator != "default" else []
    if not rows["pinned"].fillna(True).all():
        where.append("NOT PINNED: threads could move between CPUs")
    return " · ".join(where)


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
    notes = [source_label(rows, source), f"{METRICS[metric].axis}; colours on a log scale."]
    gone = missing_lines(rows)
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
    labels = cells.map(lambda value: format_number(value) if np.isfinite(value) else "").to_numpy()
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
            _jitter(axes, place, part, style_of(samples, name)[0])
        names = [f"{config_label(rows, o, s)}, {t}" for (o, s, t), _ in groups]
        axes.set_xticks(range(len(names)), names, rotation=50, ha="right", fontsize=8)
        axes.set_ylim(0, 1.05 * rows["latency_ms"].max())
        axes.grid(visible=False, axis="x")
        sns.despine(ax=axes)
        figure.subplots_adjust(right=1 - 0.2 / WIDTH)
        caption(figure, title, notes)
    return figure


def _jitter(axes: Axes, place: int, part: pd.DataFrame, colour: str) -> None:
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
    return EndLabel(pluralize(point.threads, "thread"), axes.get_xlim()[1], middle, colour)


def _seconds(point: Point, began_ns: int) -> np.ndarray:
    """When each sample began, counted from `began_ns`: those of a turn follow one another."""
    each = [
        turn.start_ns + point.passes_per_sample * np.cumsum((0, *turn.samples_ns[:-1]))
        for turn in point.turns
    ]
    return (np.concatenate(each) - began_ns) / 1e9


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
        _pair_line(part, f"{label}, batch {size}", colour, dashed=label == "other")
        for size, colour in zip(sizes, colours, strict=True)
        for label, table in pair.items()
        for _, part in parts(table[table["batch_size"] == size], "batch_size")
    ]
    title = f"{model_title(model)}: speed-up over one thread"
    source = f"own (solid): {own.source} · other (dashed): {other.source} · SMT off"
    picture = draw(
        lines, ChartText(title, "threads", "times as fast as one thread", source), "linear"
    )
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


def _pair_line(part: pd.DataFrame, label: str, colour: str, dashed: bool) -> Line:
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
                f"Batch {size}, {threads} threads: {format_number(own)}× as fast as one thread "
                f"here, {format_number(other)}× in the other sweep."
            )
