"""The figures of a sweep: functions of rows of its table, and of choices, that return a `Chart`.

The rows are of one context (`tables.CONTEXT`); without a measurement they raise `RequestError`.
Latency is in ms, throughput in inferences/s, or tokens/s. `VIEWS` lists the figures for the
explorer and the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    DataPoints,
    Line,
    SampleDots,
    batch_size_colours,
    style_of,
)
from scalebench_lib.config import AXES, DEFAULTS, Config, axis_value_label
from scalebench_lib.errors import RequestError
from scalebench_lib.model_names import model_title
from scalebench_lib.operators import BETWEEN, SHARES
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.record import EXACT_DB
from scalebench_lib.results import EAGER, Results, Row
from scalebench_lib.text import format_error_db, format_number, pluralize


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
        return f"{optimization_title(self.optimization)}, SMT {'on' if self.smt else 'off'}"

    @property
    def at(self) -> str:
        if self.threads is None:
            return "each at its best thread count"
        return pluralize(self.threads, "thread")


def by_cores(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric of one batch size over cores: a line for each optimization and SMT."""
    chosen = tables.select(rows, batch_size=choices.batch_size)
    title = f"{choices.metric}: batch size {choices.batch_size}, by cores"
    metric = tables.metric_named(rows, choices.metric)
    return _line_chart(chosen, chosen, title, "cores", metric, styles=rows)


def by_threads(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric of one optimization over threads: a line for each batch size."""
    chosen = _of_config(rows, choices)
    title = f"{choices.metric}: {choices.config}, by threads"
    metric = tables.metric_named(rows, choices.metric)
    return _line_chart(chosen, chosen, title, "threads", metric)


def scaling(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the speed-up over one thread by threads: a line for each batch size, and the ideal."""
    chosen = _of_config(rows, choices)
    found = tables.with_ratio_as_speedup(tables.succeeded_rows(chosen), "scaling").dropna(
        subset="speedup"
    )
    if found.empty:
        raise RequestError("one thread was not measured: sweep with '--threads 1,…' first")
    counts = sorted(found["threads"].unique().tolist())
    title = f"speed-up over 1 thread: {choices.config}"
    ideal = Line.reference_of("ideal", counts, counts)
    return _line_chart(chosen, found, title, "threads", _over("1 thread"), ideal)


def by_batch_size(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric by batch size: a line for each optimization and SMT."""
    title = f"{choices.metric} by batch size, {choices.at}"
    metric = tables.metric_named(rows, choices.metric)
    return _line_chart(rows, _compared(rows, choices), title, "batch_size", metric)


def speedup_over_eager(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the speed-up over eager by batch size: a line for each optimization and SMT.

    Labels have the largest error of each line. Both sides are at the same thread count, or each at
    its best.
    """
    name = "speedup" if choices.threads is None else "same_threads"
    compared = tables.with_ratio_as_speedup(_compared(rows, choices), name)
    found = compared[compared["speedup"].notna()]
    if found["is_base"].all():
        raise RequestError(f"nothing can be compared with eager, {choices.at}")
    sizes = found["batch_size"].min(), found["batch_size"].max()
    eager = Line.reference_of("eager", sizes, (1, 1))
    shown = compared[compared["speedup"].notna() | (compared["status"] != "ok")]
    title = f"speed-up over eager by batch size, {choices.at}"
    others = shown[~shown["is_base"]]
    return _line_chart(rows, others, title, "batch_size", _over("eager"), eager)


def peak_share(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the speed by batch size, in percent of that of PyTorch's own large matrix product.

    That is on as many threads, in the type of the optimization; for decoding, the rate at which
    they read memory.
    """
    limit, name = _limit(rows), _LIMITS[_limit(rows)]
    known = rows[rows[limit].notna() | (rows["status"] != "ok")]
    if known[limit].isna().all():
        raise RequestError(f"share of {name}: not known for any of these points")
    metric = tables.Metric(f"share of {name} (%)", f"% of {name}", _shares)
    title = f"share of {name}, {choices.at}"
    chart = _line_chart(rows, _compared(known, choices), title, "batch_size", metric)
    return replace(chart, scale="linear")


def heat_map(rows: pd.DataFrame, choices: Choices) -> Chart:
    """Return the metric of one optimization by batch size and threads, a coloured cell each.

    A cross is a config that failed or was skipped; an empty cell was not asked for.
    """
    chosen = _of_config(rows, choices)
    found, metric = tables.succeeded_rows(chosen), tables.metric_named(rows, choices.metric)
    cells = Cells(
        rows=sorted(chosen["batch_size"].unique().tolist()),
        row=found["batch_size"].to_numpy(int),
        marks=_marks(chosen, found, "threads", metric),
        better_low=choices.metric == "latency",
    )
    crosses = " Crosses: failed or skipped." if cells.missing else ""
    note = f"{metric.axis}; colours on a log scale.{crosses}"
    title, labels = f" {choices.metric}: {choices.config}", ("threads", "batch size")
    return _chart(chosen, found, title, labels, metric.unit, note=note, cells=cells)


def distribution(samples: pd.DataFrame, choices: Choices) -> Chart:
    """Return every pass of one batch size in ms, a column a point; outliers are crosses.

    `samples` is what `samples_table` gives.
    """
    chosen = _of_config(tables.select(samples, batch_size=choices.batch_size), choices)
    colour, _ = style_of(samples, choices.optimization)
    dots = [
        SampleDots(
            pluralize(threads, "thread"),
            colour,
            part["latency_ms"].to_numpy(float),
            part["outlier"].to_numpy(bool),
        )
        for threads, part in tables.by_values(chosen, "threads")
    ]
    many = f"{len(chosen):,} passes, {int(chosen['outlier'].sum()):,} of them outliers (crosses)"
    title = f" every pass: batch size {choices.batch_size}, {choices.config}"
    labels, note = ("", "latency of a pass (ms)"), f"{many}; bars: medians of all."
    return _chart(chosen, chosen, title, labels, "ms", note=note, dots=dots)


def _of_config(rows: pd.DataFrame, choices: Choices) -> pd.DataFrame:
    return tables.select(rows, optimization=choices.optimization, smt=choices.smt)


@dataclass(frozen=True)
class StackedBars:
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
        known = tables.succeeded_rows(chosen).dropna(subset=self.needs)
        found = self.bars(tables.best_threads(known)).sort_values("total")
        if found.empty:
            raise RequestError(f"{title}: not known at batch size {choices.batch_size}")
        bars = [
            f"{tables.config_label(rows, row)}{row['how']}: "
            f"{format_number(row['total'])} {self.unit}"
            for row in found.to_dict("records")
        ]
        lengths = self.scale * found[list(self.parts)].to_numpy(float)
        heading = f", {title}: batch size {choices.batch_size}"
        labels, parts = (f"{title} ({self.part_unit})", ""), list(self._parts(bars, lengths))
        shown: dict[str, Any] = {"note": self.note, "bars": bars, "parts": parts}
        chart = _chart(chosen, found, heading, labels, self.part_unit, **shown)
        unknown = tables.best_threads(chosen[~chosen["config_id"].isin(known["config_id"])])
        more = [
            f"{tables.config_label(rows, row)}: {title} not known."
            for row in unknown.to_dict("records")
        ]
        return replace(chart, missing=[*chart.missing, *more])

    def _parts(self, bars: Sequence[str], lengths: np.ndarray) -> Iterator[BarSegments]:
        ends = np.nan_to_num(lengths).cumsum(axis=1)
        for place, (label, colour) in enumerate(self.parts.values()):
            row = np.flatnonzero(lengths[:, place] > 0)
            y, names = lengths[row, place], [f"{bars[int(bar)]}: {label}" for bar in row]
            if len(row):
                yield BarSegments(
                    label, colour, row, DataPoints.exact(ends[row, place] - y, y, names)
                )

    def sentence(self, _results: Results, chart: Chart, _choices: Choices) -> str:
        """Return the best bar in words; of times, their largest shares."""
        if self.needs in SHARES.values():
            return findings.operator_sentence(chart.rows)
        return f"Least {self.title.lower()}: {chart.bars[0]}."


def _latency_bars(rows: pd.DataFrame) -> pd.DataFrame:
    slower = (rows["profiled_ms"] / rows["latency_ms"]).astype(float)
    how = slower.map(
        lambda times: f" ({times:.1f}× under the profiler)" * (times > findings.MUCH_SLOWER)
    )
    return rows.assign(total=rows["latency_ms"], how=how)


def _start_bars(rows: pd.DataFrame) -> pd.DataFrame:
    anew = rows.assign(optimize_s=rows["optimize_anew_s"], how=", with exporting")
    both = pd.concat([rows.assign(how=""), anew]).dropna(subset="optimize_s")
    return both.assign(total=both["build_s"] + both["optimize_s"] + both["first_pass_s"])


def _memory_bars(rows: pd.DataFrame) -> pd.DataFrame:
    peak = rows["peak_memory_mb"]
    held = rows["resident_memory_mb"].fillna(0).clip(upper=peak)
    return rows.assign(total=peak / 1e3, how="", held=held, more=peak - held)


_BLUE, _ORANGE, _GREY = "#1a78c2", "#c05c00", "#6e7681"
_KIND_COLOURS = (_BLUE, "#7a5cd6", "#3c8a2e", "#0f8a8f", "#d03a4a", _ORANGE, "#8a7400", _GREY)
STACKED_BARS = {
    "time": StackedBars(
        "Where the time goes",
        SHARES[BETWEEN],
        _latency_bars,
        *("ms", "% of a pass", 100),
        {SHARES[kind]: (kind, colour) for kind, colour in zip(SHARES, _KIND_COLOURS, strict=True)},
        "After the timing, by the profiler of each engine. Fused kernels do several kinds at once.",
    ),
    "start": StackedBars(
        "Cold start",
        "build_s",
        _start_bars,
        *("s", "s", 1),
        {
            "build_s": ("building the model", _GREY),
            "optimize_s": ("optimizing it", _BLUE),
            "first_pass_s": ("first pass", _ORANGE),
        },
        "For one thread count, without starting Python. Exports and compiled code are read from "
        "disk; with exporting: they were made in this trial.",
    ),
    "memory": StackedBars(
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
    middle, low, high = tables.latencies(rows)
    return share, share * middle / high, share * middle / low


_LIMITS = {"peak_fraction": findings.PRODUCT, "bandwidth_fraction": "read bandwidth"}


def _over(other: str) -> tables.Metric:
    speedups = partial(tables.value_and_bounds, name="speedup")
    return tables.Metric(f"speed-up over {other} (×)", f"× {other}", speedups, ratio=True)


def _compared(rows: pd.DataFrame, choices: Choices) -> pd.DataFrame:
    """Return the points at the chosen thread count, or at each config's best, and what failed."""
    found = tables.best_threads(tables.succeeded_rows(rows), choices.threads)
    if found.empty:
        raise RequestError(f"nothing was measured at {choices.threads} threads")
    return rows[rows.index.isin(found.index) | (rows["status"] != "ok")]


def _line_chart(
    rows: pd.DataFrame,
    shown: pd.DataFrame,
    title: str,
    x: str,
    metric: tables.Metric,
    *references: Line,
    styles: pd.DataFrame | None = None,
) -> Chart:
    """Return a chart of the `shown` rows over column `x`; its caption is on `rows`.

    Over threads it has a line for each batch size, else one for each config, in the styles of
    `styles`, by default of `rows`. Labels of ratios have the config's error.
    """
    found = tables.succeeded_rows(shown)
    lines = [*references, *_lines(rows if styles is None else styles, shown, x, metric)]
    setting = []
    if metric.ratio:
        setting.append(f"ratios: {tables.pairing_label(found['speedup_paired'])}")
    if any(", error " in line.label for line in lines):
        setting.append("error: the worst of the batch sizes shown")
    return _chart(
        rows,
        found,
        f" {title}",
        (x.replace("_", " "), metric.axis),
        metric.unit,
        setting,
        lines=lines,
        doubling=x == "batch_size",
    )


def _lines(
    table: pd.DataFrame, rows: pd.DataFrame, x: str, metric: tables.Metric
) -> Iterator[Line]:
    """Yield the lines of a chart of `rows`, labelled and in styles as those of `table`."""
    alike = ["batch_size"] if x == "threads" else ["optimization", "smt"]
    for _, part in tables.by_values(rows, alike):
        first, found = part.iloc[0], part[part["status"] == "ok"].sort_values(x)
        label, marker, dark = f"batch {first['batch_size']}", "o", None
        if x == "threads":
            colour, dark = batch_size_colours(first["batch_size"])
        else:
            label, least_db = tables.config_label(table, first), part["sqnr_db"].astype(float).min()
            if metric.ratio and least_db < EXACT_DB:
                label += f", error {format_error_db(least_db)} dB"
            colour, marker = style_of(table, first["optimization"])
        yield Line(
            label=f"{label}{': not measured' * found.empty}",
            colour=colour,
            dark=dark,
            marker=marker,
            dashed=bool(first["smt"]),
            marks=_marks(rows, found, x, metric),
            coarse=found["coarse"].to_numpy(bool),
            missing_at=part.loc[part["status"] != "ok", x].dropna().astype(float).tolist(),
        )


def _marks(rows: pd.DataFrame, found: pd.DataFrame, x: str, metric: tables.Metric) -> DataPoints:
    """Return the points of `found` at their `x`."""
    points = found.to_dict("records")
    names = [tables.point_label(rows, point) for point in points]
    details = [", ".join(_details(point, metric.ratio)) for point in points]
    return DataPoints(found[x].to_numpy(float), *metric.of(found), names, details)


def _details(point: Row, ratio: bool) -> Iterator[str]:
    if ratio:
        yield point["speedup_paired"]
    if pd.notna(point["samples"]):  # a published mean has none
        yield pluralize(point["samples"], "sample")
        if point["outliers"]:
            yield pluralize(point["outliers"], "outlier")
    if point["coarse"]:
        yield "coarse"
    if pd.notna(point["sqnr_db"]):
        yield f"error {format_error_db(point['sqnr_db'])} dB"


def _chart(
    rows: pd.DataFrame,
    found: pd.DataFrame,
    title: str,
    labels: tuple[str, str],
    unit: str,
    setting: Sequence[str] = (),
    **shown: Any,
) -> Chart:
    """Return a chart of `found`, with the model in its title; its caption is on all `rows`.

    `labels` are those of x and y; `setting` is more of it; `shown` are other fields.
    """
    config = {name: tables.only_value(rows, name) for name, axis in AXES.items() if axis.splits}
    others = [n for n in config if AXES[n].kind is None and n != "task"]
    pinned = "pinned" not in rows or rows["pinned"].fillna(True).all()
    every = [
        rows["item"].iloc[0],  # empty for some imports
        *(
            axis_value_label(n, config[n])
            for n in others
            if n == "placement" or config[n] != DEFAULTS[n]
        ),
        "" if pinned else "NOT PINNED: threads could move between CPUs",
        *setting,
    ]
    return Chart(
        f"{model_title(tables.only_value(rows, 'model'), config['task'])}{title}",
        *labels,
        unit,
        found,
        source=tables.only_value(rows, "machine"),
        setting=" · ".join(filter(None, every)),
        missing=tables.failure_lines(rows),
        **shown,
    )


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
    return str(findings.best_fact(results, chart.rows, choices.metric))


def _speedup(_results: Results, chart: Chart, _choices: Choices, over: str = "eager") -> str:
    return str(findings.largest_speedup_fact(chart.rows, chart.rows, over))


def _largest_share(_results: Results, chart: Chart, _choices: Choices) -> str:
    limit = _limit(chart.rows)
    top = chart.rows.sort_values(limit).iloc[-1]
    share = f"{format_number(100 * top[limit])} {chart.unit}"
    more = f" {findings.BEYOND_PRODUCT}" * bool(limit == "peak_fraction" and top[limit] > 1)
    return f"Largest share: {share}, with {tables.point_label(chart.rows, top)}.{more}"


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
    "batch": View("One batch size, by cores", ("metric", "batch_size"), by_cores, _extreme),
    "optimization": View(
        "One optimization, by threads", ("metric", *_CONFIG), by_threads, _extreme
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
        f"Share of {findings.PRODUCT}",
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
        for name, stack in STACKED_BARS.items()
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
    named = {**VIEWS, "peak": replace(VIEWS["peak"], title=f"Share of {_LIMITS[_limit(rows)]}")}
    return {name: view for name, view in named.items() if view.needs(rows)}


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
        "optimization": [
            (optimization_title(n), n) for n in tables.values_of(rows, "optimization")
        ],
        "smt": [(smt[value], value) for value in tables.values_of(rows, "smt")],
        "threads": [
            ("each at its best thread count", None),
            *((str(count), count) for count in tables.values_of(rows, "threads")),
        ],
    }
