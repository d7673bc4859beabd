"""The figures of a sweep: functions of rows of its table, and of choices, that return a `Chart`.

The rows are of one context (`tables.CONTEXT`); without a measurement they raise `RequestError`.
Latency is in ms, throughput in inferences/s, or tokens/s. `VIEWS` lists the figures for the
explorer and the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.analysis import findings, tables
from scalebench_lib.charts import (
    BarSegments,
    Cells,
    Chart,
    Dots,
    Line,
    Marks,
    batch_colours,
    style_of,
    title_of,
)
from scalebench_lib.config import AXES, DEFAULTS, Config, axis_label, model_title
from scalebench_lib.errors import RequestError
from scalebench_lib.operators import BETWEEN, SHARES
from scalebench_lib.results import EAGER, Results
from scalebench_lib.text import decibels, format_number, pluralize


@dataclass(frozen=True)
class Choices:
    """What to show in a figure: it reads the fields that its `View` names.

    `threads` is the thread count to compare at, None for each config's best.
    """

    metric: tables.MetricName = "latency"
    batch_size: int = 1
    optimization: str = EAGER
    smt: bool = False
    threads: int | None = None

    @classmethod
    def of(cls, config: Config) -> Choices:
        return cls("latency", config.batch_size, config.optimization, config.smt)

    @property
    def config(self) -> str:
        """``TorchScript, SMT off``."""
        return f"{title_of(self.optimization)}, SMT {'on' if self.smt else 'off'}"

    @property
    def at(self) -> str:
        if self.threads is None:
            return "each at its best thread count"
        return pluralize(self.threads, "thread")


def per_batch(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric of one batch size over cores: a line for each optimization and SMT."""
    chosen = tables.select(rows, batch_size=choices.batch_size)
    found, metric = tables.measured_only(chosen), tables.metric_of(chosen, choices.metric)
    lines = _config_lines(rows, chosen, "cores", metric)
    title = f"{choices.metric}: batch size {choices.batch_size}, by cores"
    return _chart(chosen, found, title, "cores", metric, lines)


def per_optimization(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric of one optimization over threads: a line for each batch size."""
    chosen = tables.select(rows, optimization=choices.optimization, smt=choices.smt)
    found, metric = tables.measured_only(chosen), tables.metric_of(chosen, choices.metric)
    title = f"{choices.metric}: {choices.config}, by threads"
    lines = _batch_lines(chosen, metric)
    return _chart(chosen, found, title, "threads", metric, lines)


def scaling(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the speed-up over one thread by threads: a line for each batch size, and the ideal."""
    chosen = tables.select(rows, optimization=choices.optimization, smt=choices.smt)
    found = tables.over_one_thread(tables.measured_only(chosen)).dropna(subset="speedup")
    if found.empty:
        raise RequestError("one thread was not measured: sweep with '--threads 1,…' first")
    counts = sorted(found["threads"].unique().tolist())
    lines = [Line.reference_of("ideal", counts, counts), *_batch_lines(found, _OVER_ONE_THREAD)]
    title = f"speed-up over 1 thread: {choices.config}"
    return _chart(chosen, found, title, "threads", _OVER_ONE_THREAD, lines)


def by_batch_size(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric by batch size: a line for each optimization and SMT."""
    found = _compared(tables.measured_only(rows), choices)
    metric = tables.metric_of(rows, choices.metric)
    lines = _config_lines(rows, _with_missing(found, rows), "batch_size", metric)
    title = f"{choices.metric} by batch size, {choices.at}"
    return _chart(rows, found, title, "batch size", metric, lines)


def speedup_over_eager(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the speed-up over eager by batch size: a line for each optimization and SMT.

    Labels have the largest error of each line. Both sides are at the same thread count, or each at
    its best.
    """
    _compared(tables.measured_only(rows), choices)
    found = tables.over_eager(rows, choices.threads).dropna(subset="speedup")
    others = found[~found["is_base"]]
    if others.empty:
        raise RequestError(f"nothing can be compared with eager, {choices.at}")
    sizes = found["batch_size"].min(), found["batch_size"].max()
    both = _with_missing(others, rows[~rows["is_base"]])
    lines = [
        Line.reference_of("eager", sizes, (1, 1)),
        *_config_lines(rows, both, "batch_size", _OVER_EAGER, errors=True),
    ]
    title = f"speed-up over eager by batch size, {choices.at}"
    return _chart(rows, others, title, "batch size", _OVER_EAGER, lines)


def peak_share(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the share of the machine's peak by batch size, in percent.

    The peak is that of a large matrix product on as many threads, in the type of the optimization;
    for decoding, the rate at which they read memory.
    """
    share, known = _LIMITS[_limit(rows)], tables.measured_only(rows).dropna(subset=_limit(rows))
    if known.empty:
        raise RequestError("the machine's peak is not known for any of these points")
    found = _compared(known, choices)
    lines = _config_lines(rows, _with_missing(found, rows), "batch_size", share)
    title = f"{share.axis.removesuffix(' (%)')}, {choices.at}"
    chart = _chart(rows, found, title, "batch size", share, lines)
    return replace(chart, scale="linear")


def heat_map(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric of one optimization by batch size and threads, a coloured cell each.

    A cross is a config that failed or was skipped; an empty cell was not asked for.
    """
    chosen = tables.select(rows, optimization=choices.optimization, smt=choices.smt)
    found, metric = tables.measured_only(chosen), tables.metric_of(chosen, choices.metric)
    cells = Cells(
        rows=sorted(chosen["batch_size"].unique().tolist()),
        row=found["batch_size"].to_numpy(int),
        marks=_marks(chosen, found, "threads", metric),
        better_low=choices.metric == "latency",
    )
    crosses = " Crosses: failed or skipped." if cells.missing else ""
    return Chart(
        title=f"{_model(rows)} {choices.metric}: {choices.config}",
        x_label="threads",
        y_label="batch size",
        unit=metric.unit,
        rows=found,
        cells=cells,
        note=f"{metric.axis}; colours on a log scale.{crosses}",
        **_captions(chosen),
    )


def distribution(samples: pd.DataFrame, choices: Choices) -> Chart:
    """Return every pass of one batch size in ms, a column a point; outliers are crosses.

    `samples` is what `samples_table` gives.
    """
    chosen = tables.select(samples, batch_size=choices.batch_size)
    chosen = tables.select(chosen, optimization=choices.optimization, smt=choices.smt)
    colour, _ = style_of(samples, choices.optimization)
    dots = [
        Dots(
            pluralize(threads, "thread"),
            colour,
            part["latency_ms"].to_numpy(float),
            part["outlier"].to_numpy(bool),
        )
        for threads, part in tables.by_values(chosen, "threads")
    ]
    many = f"{len(chosen):,} passes, {int(chosen['outlier'].sum()):,} of them outliers (crosses)"
    return Chart(
        title=f"{_model(chosen)} every pass: batch size {choices.batch_size}, {choices.config}",
        x_label="",
        y_label="latency of a pass (ms)",
        unit="ms",
        rows=chosen,
        dots=dots,
        note=f"{many}; bars: medians of all.",
        **_captions(chosen),
    )


@dataclass(frozen=True)
class Stack:
    """A bar for each config of one batch size, stacked from the columns `parts` (labels, colours).

    `bars` adds the columns ``total``, in `unit`, and ``how`` (a remark) to rows where column
    `needs` is known. Parts are drawn `scale` times as long, in `part_unit`.
    """

    title: str
    needs: str
    bars: Callable[[pd.DataFrame], pd.DataFrame]
    unit: str
    part_unit: str
    scale: float
    parts: dict[str, tuple[str, str]]
    note: str

    def chart(self, rows: pd.DataFrame, choices: Choices) -> Chart:
        """Return the bars, the best first."""
        chosen, title = tables.select(rows, batch_size=choices.batch_size), self.title.lower()
        known = tables.measured_only(chosen).dropna(subset=self.needs)
        found = self.bars(tables.best_threads(known))
        if found.empty:
            raise RequestError(f"{title}: not known at batch size {choices.batch_size}")
        found, captions = found.sort_values("total"), _captions(chosen)
        unknown = tables.best_threads(chosen[~chosen["config_id"].isin(known["config_id"])])
        captions["missing"] += [
            f"{tables.config_label(rows, row['optimization'], row['smt'])}: {title} not known."
            for row in unknown.to_dict("records")
        ]
        bars = [
            f"{tables.config_label(rows, name, smt)}{how}: {format_number(total)} {self.unit}"
            for name, smt, how, total in found[_NAMED].itertuples(index=False)
        ]
        return Chart(
            title=f"{_model(rows)}, {title}: batch size {choices.batch_size}",
            x_label=f"{title} ({self.part_unit})",
            y_label="",
            unit=self.part_unit,
            rows=found,
            bars=bars,
            parts=list(self._parts(bars, self.scale * found[list(self.parts)].to_numpy(float))),
            note=self.note,
            **captions,
        )

    def _parts(self, bars: Sequence[str], lengths: np.ndarray) -> Iterator[BarSegments]:
        ends = np.nan_to_num(lengths).cumsum(axis=1)
        for place, (label, colour) in enumerate(self.parts.values()):
            row = np.flatnonzero(lengths[:, place] > 0)
            y, none = lengths[row, place], np.full(len(row), np.nan)
            names, details = [f"{bars[int(bar)]}: {label}" for bar in row], [""] * len(row)
            if len(row):
                marks = Marks(ends[row, place] - y, y, none, none, names, details)
                yield BarSegments(label, colour, row, marks)

    def sentence(self, _results: Results, chart: Chart, _choices: Choices) -> str:
        """Return the best bar in words; of times, their largest shares."""
        if self.needs in SHARES.values():
            return findings.time_sentence(chart.rows)
        return f"Least {self.title.lower()}: {chart.bars[0]}."


_NAMED = ["optimization", "smt", "how", "total"]


def _latency_bars(rows: pd.DataFrame) -> pd.DataFrame:
    slower = (rows["profiled_ms"] / rows["latency_ms"]).astype(float)
    how = slower.map(
        lambda times: f" ({times:.1f}× under the profiler)" * (times > findings.MUCH_SLOWER)
    )
    return rows.assign(total=rows["latency_ms"], how=how)


def _start_bars(rows: pd.DataFrame) -> pd.DataFrame:
    anew = rows.assign(optimize_s=rows["optimize_anew_s"], how=", made anew")
    both = pd.concat([rows.assign(how=""), anew]).dropna(subset="optimize_s")
    return both.assign(total=both["build_s"] + both["optimize_s"] + both["first_pass_s"])


def _memory_bars(rows: pd.DataFrame) -> pd.DataFrame:
    peak = rows["peak_memory_mb"]
    held = rows["resident_memory_mb"].fillna(0).clip(upper=peak)
    return rows.assign(total=peak / 1e3, how="", held=held, more=peak - held)


_BLUE, _ORANGE, _GREY = "#1a78c2", "#c05c00", "#6e7681"
_KIND_COLOURS = (_BLUE, "#7a5cd6", "#3c8a2e", "#0f8a8f", "#d03a4a", _ORANGE, "#8a7400", _GREY)
STACKS = {
    "time": Stack(
        "Where the time goes",
        SHARES[BETWEEN],
        _latency_bars,
        *("ms", "% of a pass", 100),
        {SHARES[kind]: (kind, colour) for kind, colour in zip(SHARES, _KIND_COLOURS, strict=True)},
        "After the timing, by the profiler of each engine. Fused kernels do several kinds at once.",
    ),
    "start": Stack(
        "Cold start",
        "build_s",
        _start_bars,
        *("s", "s", 1),
        {
            "build_s": ("building the model", _GREY),
            "optimize_s": ("optimizing it", _BLUE),
            "first_pass_s": ("first pass", _ORANGE),
        },
        "For one thread count, without starting Python. Made anew: with exporting and compiling.",
    ),
    "memory": Stack(
        "Memory",
        "peak_memory_mb",
        _memory_bars,
        *("GB", "GB", 1e-3),
        {"held": ("held between turns", _BLUE), "more": ("extra at its peak", _GREY)},
        "Of the whole process; the peak includes setting up and verifying.",
    ),
}
"""The views of bars, by name."""


def samples_table(results: Results) -> pd.DataFrame:
    """Return every sample of `results`, a row each: the config of its point, ``threads``,
    ``trial``, ``latency_ms`` and ``outlier``."""
    parts = list(_samples(results)) or [results.table.head(0)]
    return pd.concat(parts, ignore_index=True)


def _samples(results: Results) -> Iterator[pd.DataFrame]:
    for (_, threads), point in results.points.items():
        record = point.trials[0][0]
        counts = [len(found.samples_ns) for _, found in point.trials]
        yield pd.DataFrame(
            {
                **point.config.model_dump(exclude={"weights", "seed"}),
                "config_id": point.config.id,
                "machine": record.machine_name,
                "item": record.item or point.config.item,
                "status": "ok",
                "threads": threads,
                "trial": np.repeat([record.trial for record, _ in point.trials], counts),
                "latency_ms": point.samples_ns / 1e6,
                "outlier": point.outlier,
            }
        )


def _limit(rows: pd.DataFrame) -> str:
    """Return the column of the limit of `rows`: decoding is limited by memory."""
    return "bandwidth_fraction" if (rows["phase"] == "decode").all() else "peak_fraction"


def _shares(rows: pd.DataFrame) -> tables.Values:
    share = 100 * rows[_limit(rows)].to_numpy(float)
    middle, low, high = tables.METRICS["latency"].of(rows)
    return share, share * middle / high, share * middle / low


_speedups = partial(tables.with_bounds, name="speedup")
_OVER_EAGER = tables.Metric("speed-up over eager (×)", "× eager", _speedups, ratio=True)
_OVER_ONE_THREAD = tables.Metric("speed-up over 1 thread (×)", "× 1 thread", _speedups, ratio=True)
_LIMITS = {
    "peak_fraction": tables.Metric("share of peak in its own type (%)", "% of peak", _shares),
    "bandwidth_fraction": tables.Metric(
        "share of read bandwidth (%)", "% of read bandwidth", _shares
    ),
}


def _compared(rows: pd.DataFrame, choices: Choices) -> pd.DataFrame:
    found = tables.best_threads(rows, choices.threads)
    if found.empty:
        raise RequestError(f"nothing was measured at {choices.threads} threads")
    return found


def _with_missing(found: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    missing = rows[rows["status"] != "ok"]
    return pd.concat([found, missing]) if len(missing) else found


def _batch_lines(rows: pd.DataFrame, metric: tables.Metric) -> Iterator[Line]:
    for batch_size, part in tables.by_values(rows, "batch_size"):
        light, dark = batch_colours(batch_size)
        line = _line(rows, part, "threads", metric, f"batch {batch_size}", (light, "o"))
        yield replace(line, dark=dark)


def _config_lines(
    table: pd.DataFrame, rows: pd.DataFrame, x: str, metric: tables.Metric, errors: bool = False
) -> Iterator[Line]:
    """Yield a line for each config of `rows`, in the styles of `table`."""
    for (name, smt), part in tables.by_values(rows, ["optimization", "smt"]):
        least_db = part["sqnr_db"].astype(float).min()
        error = f"error {decibels(least_db)} dB" if errors and least_db < findings.EXACT_DB else ""
        label = ", ".join(filter(None, [tables.config_label(rows, name, smt), error]))
        yield _line(rows, part, x, metric, label, style_of(table, name))


def _line(
    rows: pd.DataFrame,
    part: pd.DataFrame,
    x: str,
    metric: tables.Metric,
    label: str,
    style: tuple[str, str],
) -> Line:
    colour, marker = style
    missing_at = part.loc[part["status"] != "ok", x].dropna().astype(float).tolist()
    found = part[part["status"] == "ok"].sort_values(x)
    if found.empty:
        return Line(f"{label}: not measured", colour, missing_at=missing_at)
    if found[x].duplicated().any():
        raise ValueError(f"{label}: several rows for one point: give the rows of one sweep")
    return Line(
        label=label,
        colour=colour,
        marker=marker,
        dashed=bool(found["smt"].iloc[0]),
        marks=_marks(rows, found, x, metric),
        coarse=found["coarse"].to_numpy(bool),
        missing_at=missing_at,
    )


def _marks(rows: pd.DataFrame, found: pd.DataFrame, x: str, metric: tables.Metric) -> Marks:
    """Return the points of `found` at their `x`."""
    points: list[Any] = list(found.itertuples())
    names = [findings.point_label(rows, point) for point in points]
    details = [", ".join(_details(point, metric.ratio)) for point in points]
    return Marks(found[x].to_numpy(float), *metric.of(found), names, details)


def _details(point: Any, ratio: bool) -> Iterator[str]:
    if ratio:
        yield point.speedup_paired
    if pd.notna(point.samples):  # a published mean has none
        yield pluralize(point.samples, "sample")
        if point.outliers:
            yield pluralize(point.outliers, "outlier")
    if point.coarse:
        yield "coarse"
    if pd.notna(point.sqnr_db):
        yield f"error {decibels(point.sqnr_db)} dB"


def _chart(
    chosen: pd.DataFrame,
    found: pd.DataFrame,
    title: str,
    x_label: str,
    metric: tables.Metric,
    lines: Iterable[Line],
) -> Chart:
    """Return a chart of `lines`, which show what was `found` among the `chosen` rows."""
    how = tables.pairing_label(found["speedup_paired"].dropna()) if metric.ratio else ""
    return Chart(
        title=f"{_model(chosen)} {title}",
        x_label=x_label,
        y_label=metric.axis,
        unit=metric.unit,
        rows=found,
        lines=list(lines),
        doubling=x_label == "batch size",
        **_captions(chosen, f"ratios: {how}" if how else ""),
    )


def _model(rows: pd.DataFrame) -> str:
    return model_title(tables.only_value(rows, "model"), tables.only_value(rows, "task"))


def _captions(rows: pd.DataFrame, *more: str) -> dict[str, Any]:
    """Return the fields of a chart's caption: its source, setting, and missing configs."""
    config = {name: tables.only_value(rows, name) for name, axis in AXES.items() if axis.splits}
    others = [n for n, axis in AXES.items() if n in config and axis.kind is None and n != "task"]
    pinned = "pinned" not in rows or rows["pinned"].fillna(True).all()
    setting = [
        rows["item"].iloc[0],  # empty for some imports
        *(axis_label(n, config[n]) for n in others if n == "placement" or config[n] != DEFAULTS[n]),
        "" if pinned else "NOT PINNED: threads could move between CPUs",
        *more,
    ]
    return {
        "source": tables.only_value(rows, "machine"),
        "setting": " · ".join(filter(None, setting)),
        "missing": tables.missing_lines(rows),
    }


@dataclass(frozen=True)
class View:
    """A figure with the fields of `Choices` that apply, and a `sentence` on its chart.

    `needs` returns whether rows hold what it shows.
    """

    title: str
    controls: tuple[str, ...]
    chart: Callable[[pd.DataFrame, Choices], Chart]
    sentence: Callable[[Results, Chart, Choices], str]
    needs: Callable[[pd.DataFrame], bool] = lambda rows: True

    @property
    def of_samples(self) -> bool:
        """True if its rows are samples (`samples_table`), not points."""
        return self.chart is distribution


def _extreme(results: Results, chart: Chart, choices: Choices) -> str:
    return str(findings.extreme(results, chart.rows, choices.metric))


def _speedup(_results: Results, chart: Chart, _choices: Choices, over: str = "eager") -> str:
    return str(findings.largest_speedup(chart.rows, chart.rows, over))


def _largest_share(_results: Results, chart: Chart, _choices: Choices) -> str:
    top = chart.rows.sort_values(_limit(chart.rows)).iloc[-1]
    share = f"{format_number(100 * top[_limit(chart.rows)])} {chart.unit}"
    return f"Largest share: {share}, with {findings.point_label(chart.rows, top)}."


def _passes(_results: Results, chart: Chart, _choices: Choices) -> str:
    outliers = int(chart.rows["outlier"].sum())
    return f"{len(chart.rows):,} passes, {outliers:,} of them outliers."


_CONFIG = ("optimization", "smt")
VIEWS: dict[str, View] = {
    "eager": View(
        "Speed-up over eager",
        ("threads",),
        speedup_over_eager,
        _speedup,
        lambda rows: {EAGER} < set(rows["optimization"]),
    ),
    "sizes": View("By batch size", ("metric", "threads"), by_batch_size, _extreme),
    "batch": View("One batch size, by cores", ("metric", "batch_size"), per_batch, _extreme),
    "optimization": View(
        "One optimization, by threads", ("metric", *_CONFIG), per_optimization, _extreme
    ),
    "scaling": View(
        "Speed-up over one thread",
        _CONFIG,
        scaling,
        partial(_speedup, over="1 thread"),
        lambda rows: bool((rows["threads"] == 1).any()),
    ),
    "heat": View("Heat map: batch size × threads", ("metric", *_CONFIG), heat_map, _extreme),
    "peak": View(
        "Share of the machine's peak",
        ("threads",),
        peak_share,
        _largest_share,
        lambda rows: bool(rows[_limit(rows)].notna().any()),
    ),
    **{
        name: View(
            stack.title,
            ("batch_size",),
            stack.chart,
            stack.sentence,
            lambda rows, needs=stack.needs: bool(rows[needs].notna().any()),  # type: ignore[misc]
        )
        for name, stack in STACKS.items()
    },
    "samples": View(
        "Every sample of a batch size",
        ("batch_size", *_CONFIG),
        distribution,
        _passes,
        lambda rows: bool((rows["samples"] > 0).any()),
    ),
}
"""In the order of the menu: the first that a sweep has is shown first."""


def views_of(rows: pd.DataFrame) -> dict[str, View]:
    """Return the views that `rows` (points) can have."""
    return {name: view for name, view in VIEWS.items() if view.needs(rows)}


CONTROLS = {
    "metric": "Metric",
    **{name: AXES[name].title for name in ("batch_size", "optimization", "smt")},
    "threads": "Threads",
}
"""The fields of `Choices`, and their titles."""


def options(rows: pd.DataFrame) -> dict[str, list[tuple[str, Any]]]:
    """Return the choices that `rows` have, by field of `Choices`: names and values."""
    smt = {False: "off", True: "on"}
    return {
        "metric": [(name, name) for name in tables.METRICS],
        "batch_size": [(str(size), size) for size in tables.values_of(rows, "batch_size")],
        "optimization": [(title_of(n), n) for n in tables.values_of(rows, "optimization")],
        "smt": [(smt[value], value) for value in tables.values_of(rows, "smt")],
        "threads": [
            ("each at its best thread count", None),
            *((str(count), count) for count in tables.values_of(rows, "threads")),
        ],
    }
