"""The page of a sweep: results.csv, figures, index.md and a self-contained index.html.

Order and names of the figures are those of the published scalebench pages. index.html holds the
charts of every view and choice, and draws them with Observable Plot and d3, vendored in
``vendor/``: 0.5 MB, SVG with colours from CSS, bands, cells, log axes and tips. Vega-Lite is 0.8 MB
and takes four times as long; plotly is 4.8 MB, ECharts 1.1 MB; uPlot and Chart.js draw on a canvas.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scalebench_lib import record, stats
from scalebench_lib.analysis import figures, tables
from scalebench_lib.analysis.draw import draw
from scalebench_lib.analysis.figures import STACKED_BARS, VIEWS, Choices, View
from scalebench_lib.analysis.findings import (
    column_words,
    observations,
    recommendations,
    table_notes,
)
from scalebench_lib.charts import (
    Axis,
    BarSegments,
    Cells,
    Chart,
    DataPoints,
    Line,
    SampleDots,
)
from scalebench_lib.config import AXES, DEFAULTS
from scalebench_lib.errors import RequestError
from scalebench_lib.files import write_atomically
from scalebench_lib.model_names import model_title, slug
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.results import CSV, EAGER, Results, Row
from scalebench_lib.text import format_error_db

MAX_SAMPLES = 100_000
"""More samples, of all points, would make the page large, and are thinned evenly."""

_PICTURE = re.compile(r'"figures/([^"/]+\.png)"')
"""A figure's file in a page."""

_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "web/draw.js", "web/page.js")
_FILTERS = ("optimization", "batch_size", "threads", "status")
_COLUMNS = {
    "optimization": "Optimization",
    "smt": "SMT",
    "batch_size": "Batch size",
    "threads": "Threads",
    "status": "Status",
    "latency_ms": "Latency, ms",
    "speedup": "× best eager",
    "speedup_paired": "Ratio",
    "throughput": "Throughput, 1/s",
    "error_db": "Error, dB",
    "cpus_utilized": "CPU/wall time",
    "samples": "Samples",
    "outliers": "Outliers",
    "turns": "Turns",
    "shared": "Shared turns",
    "throttled": "Throttled periods",
    "stolen": "Stolen share",
}
"""Columns of the table of every point; constant ones are left out."""
_FEW = 3
"""Figures of at most so many thread counts are small, side by side."""


@dataclass(frozen=True)
class FigureSpec:
    """A place on the page: the figure `name`.png of the chart `key`, or why it is `missing`.

    `short` is its name within its `group`; a `small` one has too few points for a wide figure.
    """

    name: str
    key: str
    view: str
    heading: str
    group: str
    short: str
    alt: str
    small: bool
    missing: str | None


def figure_specs(table: pd.DataFrame) -> list[FigureSpec]:
    """Return all specs of `table` in the order of the page: metric, batches, optimizations."""
    return [
        _spec(table, context, *place)
        for placement in sorted(table["placement"].unique(), reverse=True)
        for metric in tables.METRICS
        for places in (_batches, _optimizations)
        for context, rows in tables.by_context(table[table["placement"] == placement])
        for place in places(rows, metric)
    ]


_Place = tuple[pd.DataFrame, tuple[str, ...], str, str, Choices]
"""What `_spec` makes a spec of: rows, words, name, view, choices."""


def _batches(rows: pd.DataFrame, metric: tables.MetricName) -> Iterator[_Place]:
    for size, part in tables.by_values(rows, "batch_size"):
        words = metric.title(), f"BS={size}"
        yield part, words, f"{metric}-{size}", "batch", Choices(metric, size)


def _optimizations(rows: pd.DataFrame, metric: tables.MetricName) -> Iterator[_Place]:
    shown = tables.optimizations_but_eager(rows)
    for optimization, smt in product(shown, (False, True)):
        part = rows[(rows["optimization"] == optimization) & (rows["smt"] == smt)]
        if len(part):
            several = [f"Opt={optimization}"] if len(shown) > 1 else []
            words, name = (metric.title(), *several, f"HT={smt}"), f"{metric}-{optimization}-{smt}"
            choices = Choices(metric, optimization=optimization, smt=smt)
            yield part, words, name, "optimization", choices


def overview_specs(table: pd.DataFrame) -> list[FigureSpec]:
    """Return the specs of speed-ups over eager, shares of the peak, and stacks, of all configs."""
    table = tables.merge_axis(table)
    every = tables.by_context(table)
    return [_spec(table, context, *place) for context, rows in every for place in _overview(rows)]


def _overview(rows: pd.DataFrame) -> Iterator[_Place]:
    if rows.loc[rows["speedup"].notna(), "optimization"].ne(EAGER).any():
        yield rows, ("Speed-up",), "speedup", "eager", Choices()
    if VIEWS["peak"].needs(rows):
        yield rows, ("Peak",), "peak", "peak", Choices()
    sizes = rows.loc[rows["status"] == "ok", "batch_size"]
    for view, size in product(STACKED_BARS, dict.fromkeys((sizes.min(), sizes.max()))):
        if VIEWS[view].needs(rows[rows["batch_size"] == size]):
            words, choices = (VIEWS[view].title, f"BS={size}"), Choices(batch_size=int(size))
            yield rows, words, f"{view}-{size}", view, choices


def _spec(
    table: pd.DataFrame,
    context: dict[str, Any],
    rows: pd.DataFrame,
    words: tuple[str, ...],
    name: str,
    view: str,
    choices: Choices,
) -> FigureSpec:
    """Return a spec; suffixes of its name tell its context from the others of `table`."""
    begins = {column: axis.suffix for column, axis in AXES.items() if axis.splits} | {"machine": ""}
    suffixes = [
        f"{begins[column]}{context[column]}"
        for column in tables.varying(table)
        if column in begins and context[column] != DEFAULTS.get(column)
    ]
    metric, title = choices.metric.title(), model_title(context["model"], context["task"])
    config = [optimization_title(choices.optimization), *["SMT"] * choices.smt]
    same = [f"batch {choices.batch_size}"] if view == "batch" else config
    alt = " ".join([title, *words, *suffixes])
    failed = f"{alt}: not measured. {'; '.join(tables.failure_lines(rows))}."
    file = "-".join([slug(context["model"]), name, *suffixes])
    return FigureSpec(
        name=re.sub(r"[^\w.-]+", "_", file),  # a model from elsewhere may hold a slash
        key=chart_key(context, view, choices),
        view=view,
        heading=f"{metric} ({context['placement'].title()})",
        group=f"{metric} Per {view.title()}",
        short=" ".join([*same, *suffixes]),
        alt=alt,
        small=rows["threads"].nunique() <= _FEW,
        missing=None if (rows["status"] == "ok").any() else failed,
    )


def chart_key(context: dict[str, Any], view: str, choices: Choices) -> str:
    """Return the name of a chart, by context, view and choices; the page's script has the same."""
    chosen = (getattr(choices, name) for name in VIEWS[view].controls)
    return "/".join(map(str, [*context.values(), view, *chosen]))


def every_chart(results: Results) -> tuple[list[dict[str, Any]], dict[str, Chart | str]]:
    """Return the choices of each context, and the chart of each choice by `chart_key`.

    Where a chart cannot be made, its place holds the reason.
    """
    contexts, charts = [], dict[str, Chart | str]()
    points, passes = results.table, figures.samples_table(results)
    pairs = [[points, passes]]
    for column in tables.varying(points, tables.MERGED):
        pairs += [[tables.merge_axis(each, column) for each in pair] for pair in pairs]
    for table, samples in pairs:
        samples_of = {str(context): rows for context, rows in tables.by_context(samples)}
        for context, rows in tables.by_context(table):
            contexts.append(_context_data(context, rows))
            for name, view in figures.views_of(rows).items():
                shown = samples_of[str(context)] if view.of_samples else rows
                for choices in _every_choice(rows, view):
                    key = chart_key(context, name, choices)
                    charts[key] = _chart_or_reason(view, shown, choices, results.source)
    return contexts, charts


def _context_data(context: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Return the options of the page's controls in a context: names, and values as in the keys."""
    offered = {
        name: [(text, str(v)) for text, v in each] for name, each in figures.options(rows).items()
    }
    return {
        "values": {name: str(value) for name, value in context.items()},
        "options": offered
        | {"view": [(v.title, name) for name, v in figures.views_of(rows).items()]},
        "shown": tables.default_optimization(rows),
    }


def _every_choice(rows: pd.DataFrame, view: View) -> Iterator[Choices]:
    offered = figures.options(rows)
    for chosen in product(*(offered[name] for name in view.controls)):
        values = (value for _, value in chosen)
        yield Choices(**dict(zip(view.controls, values, strict=True)))


def _chart_or_reason(view: View, rows: pd.DataFrame, choices: Choices, source: str) -> Chart | str:
    try:
        return replace(view.chart(rows, choices), source=source)
    except RequestError as error:
        return f"{str(error)[0].upper()}{str(error)[1:]}."


def write_page(out: Path, results: Results | None = None, price: float | None = None) -> Path:
    """Rebuild the page of the sweep in folder `out` from its `results`; return index.html.

    Without `results` they are loaded. Outdated figures are removed. With a `price` per hour the
    page gives the cost of a million requests.
    """
    results = results or Results.load(out)
    write_atomically(out / CSV, results.csv.to_csv(index=False))
    contexts, charts = every_chart(results)
    specs, over = figure_specs(results.table), overview_specs(results.table)
    drawn = {f"{spec.name}.png": charts[spec.key] for spec in (*specs, *over) if not spec.missing}
    pictures, old = out / "figures", out / "index.html"
    shown_before = set(_PICTURE.findall(old.read_text("utf-8"))) if old.exists() else set()
    pictures.mkdir(exist_ok=True)
    for name, chart in drawn.items():
        if isinstance(chart, Chart):
            write_atomically(pictures / name, draw(chart).png())
    context = _context(results, specs, over) | _live(results.table, contexts, charts)
    answers = recommendations(results, price)
    context |= {"answers": answers, "notes": [*table_notes(results, answers, price)]}
    context["column_words"] = column_words(results, answers)
    configs = {r.name: f"{r.config}, trial {r.trial}" for r in results.records}
    context["files"] = {
        folder: {path.name: configs.get(path.stem, path.name) for path in sorted(found)}
        for folder in ("records", "notebooks")
        if (found := list((out / folder).glob("*.*")))
    }
    page = _TEMPLATES.get_template("index.html.j2").render(context)
    markdown = _without_liquid(_TEMPLATES.get_template("index.md.j2").render(context))
    write_atomically(out / "index.md", markdown)
    write_atomically(out / "index.html", page)
    for name in shown_before - drawn.keys():
        (pictures / name).unlink(missing_ok=True)
    return out / "index.html"


def _context(results: Results, specs: list[FigureSpec], over: list[FigureSpec]) -> dict[str, Any]:
    """Return the variables of the templates: the sweep and its figures."""
    table = results.table
    return {
        "title": ", ".join(
            model_title(*names) for names, _ in tables.by_values(table, ["model", "task"])
        ),
        "about": _about(results),
        "results": results,
        "observations": observations(results),
        "missing": tables.failure_lines(table),
        "coarse": bool((table["coarse"] == 1).any()),
        "samples": int(table["samples"].sum()),
        "outliers": int(table["outliers"].sum()),
        "ratios": set(table["speedup_paired"].dropna()),
        "stats": stats,
        "record": record,
        "unpinned": not table["pinned"].fillna(True).all(),
        "sections": {
            heading: {group: list(some) for group, some in groupby(part, attrgetter("group"))}
            for heading, part in groupby(specs, attrgetter("heading"))
        },
        "overview": {
            view: [spec for spec in over if spec.view == view]
            for view in VIEWS
            if any(spec.view == view for spec in over)
        },
        "views": VIEWS,
        "provenance": _provenance(results),
    }


def _about(results: Results) -> str:
    """Describe the models, their inputs and weights."""
    table = results.table.sort_values(["model", "seq_len", "image_size"])
    weights = sorted({f"{record.config.weights} weights" for record in results.records})
    models = (tables.model_line(*names) for names, _ in tables.by_values(table, ["model", "task"]))
    return ", ".join([*models, *filter(None, table["item"].unique()), *weights])


def _provenance(results: Results) -> dict[str, list[str]]:
    """Return the sources of the numbers by label: the different values in the records."""
    if imported := results.imported:
        return {
            "Imported from": [imported.file],
            "SHA-256": [imported.sha256],
            "Machine": [imported.machine or "not known"],
            "To know": list(imported.notes),
        }
    every = [_facts(record) for record in results.records]
    return {label: list(dict.fromkeys(facts[label] for facts in every)) for label in every[0]}


def _facts(r: record.Record) -> dict[str, str]:
    engine = {r.engine["name"]: r.engine["version"]} if r.engine else {}
    return {
        "Machine": str(r.machine),
        "System": f"{r.machine.system} {r.machine.kernel}, {r.machine.architecture}",
        "Governor": r.machine.governor or "not known",
        "Weights": f"{r.config.weights}, seed {r.config.seed}",
        "Python": r.software.python,
        "scalebench": r.software.scalebench,
        "Packages": _pairs(r.software.versions),
        "Engine": _pairs(engine),
        "Libraries": _pairs(r.software.libraries),
        "Thread environment": _pairs(r.software.environment),
    }


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _live(
    table: pd.DataFrame, contexts: list[dict[str, Any]], charts: dict[str, Chart | str]
) -> dict[str, Any]:
    """Return the variables of the live page: data, controls, script, and its hash."""
    script = "\n".join(_read(name) for name in _SCRIPTS)
    table = table.assign(error_db=-table["sqnr_db"])
    columns = {name: tables.CONTEXT[name] for name in tables.varying(table)}
    always = ("optimization", "latency_ms")
    columns |= {
        n: t for n, t in _COLUMNS.items() if n in always or len(table[n].dropna().unique()) > 1
    }
    rows = tables.row_dicts(table)
    return {
        "css": _trusted(_read("web/page.css")),
        "script": _trusted(script),
        "script_hash": b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "data": as_json(payload(contexts, charts)),
        "settings": {
            name: (title, tables.values_of(table, name)) for name, title in tables.CONTEXT.items()
        },
        "controls": figures.CONTROLS,
        "columns": columns,
        "filters": {
            name: [_text({name: value}, name) for value in tables.values_of(table, name)]
            for name in _FILTERS
            if name in columns
        },
        "words": [name for name in columns if table[name].dtype == object],
        "points": [[(_plain(row[name]), _text(row, name)) for name in columns] for row in rows],
    }


def _text(row: Row, name: str) -> str:
    value = row[name]
    if pd.isna(value):
        return "–"
    if name == "optimization":
        return optimization_title(value)
    if name == "speedup_paired":
        return tables.pairing_label([value])
    if name == "error_db":
        return format_error_db(-value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return tables.value_text(row, name) if isinstance(value, float) else str(value)


def payload(contexts: list[dict[str, Any]], charts: dict[str, Chart | str]) -> dict[str, Any]:
    """Return all charts for the browser; texts that many points share are listed once."""
    drawn = [chart for chart in charts.values() if isinstance(chart, Chart)]
    passes = sum(len(dots.passes) for chart in drawn for dots in chart.dots)
    texts, thin = dict[str, int](), -(-passes // MAX_SAMPLES)
    data = {key: _data(chart, texts, thin) for key, chart in charts.items()}
    for key, chart in charts.items():
        if thin > 1 and isinstance(chart, Chart) and chart.dots:
            data[key]["caption"].append(f"One pass of {thin} is drawn.")
    controls = {name: view.controls for name, view in VIEWS.items()}
    return {"contexts": contexts, "controls": controls, "charts": data, "texts": list(texts)}


_PARTS: dict[type, tuple[str, ...]] = {
    Chart: (
        *("title", "alt", "caption", "unit", "is_dense", "log", "x_label", "y_label"),
        *("axes", "lines", "cells", "dots", "bars", "parts"),
    ),
    Axis: ("label", "low", "high", "log", "ticks", "texts"),
    Line: (
        *("label", "colour", "dark", "marker", "dashed", "reference"),
        *("coarse", "missing_at", "marks"),
    ),
    DataPoints: ("x", "y", "low", "high", "values", "intervals", "names", "details"),
    BarSegments: ("label", "colour", "row", "marks"),
    Cells: ("columns", "rows", "row", "missing", "colours", "shades", "marks"),
    SampleDots: ("label", "colour", "passes", "outlier", "median", "value", "detail"),
}
"""The fields of each that the browser gets."""


def _data(value: Any, texts: dict[str, int], thin: int) -> Any:
    """Return a part of a chart for JSON; names and details are indices of `texts`."""
    if isinstance(value, list | tuple):
        return [_data(part, texts, thin) for part in value]
    if type(value) in _PARTS:
        value = {name: getattr(value, name) for name in _PARTS[type(value)]}
    if isinstance(value, dict):
        for name in value.keys() & {"names", "details"}:
            value[name] = [texts.setdefault(text, len(texts)) for text in value[name]]
        for name in value.keys() & {"passes", "outlier"}:
            value[name] = value[name][::thin]
        parts = {name: _data(part, texts, thin) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part not in (None, False, "", [], {})}
    return _plain(value)


def _plain(value: Any) -> Any:
    """Round to 5 digits; turn a mask into the indices of True, and only NaN into an empty list."""
    if isinstance(value, np.ndarray):
        if value.dtype == bool:
            return np.flatnonzero(value).tolist()
        return [_plain(one) for one in value.tolist()] if np.isfinite(value).any() else []
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def as_json(value: Any) -> Markup:
    """Return `value` as JSON that is inert in HTML, whatever strings it has."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped just above


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _trusted(text: str) -> Markup:
    if "</s" in text.lower():
        raise ValueError("a script or style would end itself")
    return Markup(text)  # noqa: S704 - our own file


def _without_liquid(text: str) -> str:
    """Escape the syntax of the site's templates in other people's text."""
    return text.replace("{{", "&#123;&#123;").replace("{%", "&#123;%")


_TEMPLATES = Environment(
    loader=PackageLoader("scalebench_lib.analysis", ""),
    autoescape=True,  # reasons and paths are other people's text; Markdown may hold HTML, too
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["slug"] = lambda text: "-".join(re.findall(r"[a-z0-9]+", text.lower()))
