"""The page of a sweep: results.csv, figures, index.md and a self-contained index.html.

Order and names of the figures are those of the published scalebench pages, so that one can stand
for the other. The browser draws index.html's pictures from the results, with Observable Plot (and
d3, on which it stands), vendored in ``vendor/``. Of the plotting libraries that are well kept it is
the one that gives SVG (sharp in print, colours from CSS, so light and dark), has bands, cells, log
axes, tips and alternative texts of its own, and weighs 0.5 MB: plotly is 4.8 MB, ECharts 1.1 MB;
uPlot (50 KB) and Chart.js draw on a canvas, without text, and leave cells and labels to us.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scalebench_lib.analysis.draw import Picture, batch_colour, style_of
from scalebench_lib.analysis.figures import (
    peak_share,
    per_batch,
    per_optimization,
    speedup_over_eager,
)
from scalebench_lib.analysis.findings import best_points, findings
from scalebench_lib.analysis.tables import (
    CONTEXT,
    EAGER,
    METRICS,
    RATIO_COLUMNS,
    Measured,
    MetricName,
    allocators_as_optimizations,
    by_context,
    context_label,
    errors_db,
    missing_lines,
    model_title,
    over_eager,
    varying_context,
)
from scalebench_lib.config import OPTIMIZATIONS, Config, slug
from scalebench_lib.disturbances import disturbances
from scalebench_lib.record import Record, write_atomically
from scalebench_lib.text import format_number

By = Literal["batch", "optimization", "eager", "peak"]

_SUFFIXES = {
    "seq_len": "seq",
    "image_size": "px",
    "placement": "",
    "allocator": "",
    "device": "",
    "machine": "",
}
"""What tells figures of one page apart, and how it begins in their names."""


@dataclass(frozen=True)
class FigureSpec:
    """A place on the page: the figure `name`.png, or why there is none.

    `alt` is its alternative text, `short` its name within its group, `rows` all that it shows,
    `choices` what a reader of the live page would choose to see it.
    """

    name: str
    alt: str
    short: str
    metric: MetricName
    by: By
    placement: str
    rows: pd.DataFrame
    drawing: partial[Picture]
    choices: dict[str, Any]

    @property
    def missing(self) -> str | None:
        """Why there is no picture, where nothing of it was measured."""
        if (self.rows["status"] == "ok").any():
            return None
        return f"{self.alt}: not measured. {'; '.join(missing_lines(self.rows))}."

    def draw(self, source: str | None = None) -> Picture:
        """The figure, with its alternative text; `RequestError` where nothing was measured."""
        picture = self.drawing(source=source)
        picture.alt = self.alt
        return picture


def figure_specs(table: pd.DataFrame) -> list[FigureSpec]:
    """All specs of `table` in the order of the page: metric, batches, then optimizations."""
    return [
        spec
        for placement in sorted(table["placement"].unique(), reverse=True)
        for metric in METRICS
        for by in (_batch_specs, _optimization_specs)
        for setting, rows in by_context(table[table["placement"] == placement])
        for spec in by(rows, metric, setting, _suffixes(table, setting))
    ]


def overviews(table: pd.DataFrame) -> Iterator[FigureSpec]:
    """Plates of all configs at once, where there is something to show.

    Speed-ups over eager, and shares of the machine's peak; allocators beside each other.
    """
    table = allocators_as_optimizations(table)
    for setting, rows in by_context(table):
        model, suffixes = setting["model"], _suffixes(table, setting)
        compared = over_eager(rows).dropna(subset="speedup")
        if compared["optimization"].ne(EAGER).any():
            drawing = partial(speedup_over_eager, rows, model)
            yield _overview("eager", "speedup", "Speed-up", rows, drawing, setting, suffixes)
        if rows["peak_fraction"].notna().any():
            drawing = partial(peak_share, rows, model)
            yield _overview("peak", "peak", "Peak", rows, drawing, setting, suffixes)


def _overview(
    by: By,
    name: str,
    title: str,
    rows: pd.DataFrame,
    drawing: partial[Picture],
    setting: dict[str, Any],
    suffixes: list[str],
) -> FigureSpec:
    return FigureSpec(
        name=_name(setting["model"], name, *suffixes),
        alt=" ".join([model_title(setting["model"]), title, *suffixes]),
        short=" ".join([title, *suffixes]),
        metric="latency",
        by=by,
        placement=setting["placement"],
        rows=rows,
        drawing=drawing,
        choices={**setting, "threads": "best"},
    )


def ordered_optimizations(table: pd.DataFrame) -> list[str]:
    """The table's optimizations: those that we know in our order, then the others by name."""
    ranks = {name: rank for rank, name in enumerate(OPTIMIZATIONS)}
    names = set(table["optimization"])
    return sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name))


def shown_optimizations(table: pd.DataFrame) -> list[str]:
    """Those with figures of their own: `none` only stands to compare with, unless it is alone."""
    ordered = ordered_optimizations(table)
    return [name for name in ordered if name != "none"] or ordered


def _batch_specs(
    rows: pd.DataFrame, metric: MetricName, setting: dict[str, Any], suffixes: list[str]
) -> Iterator[FigureSpec]:
    model = setting["model"]
    for size in sorted(rows["batch_size"].unique()):
        yield FigureSpec(
            name=_name(model, metric, str(size), *suffixes),
            alt=_alt(model, metric, f"BS={size}", *suffixes),
            short=" ".join([str(size), *suffixes]),
            metric=metric,
            by="batch",
            placement=setting["placement"],
            rows=rows[rows["batch_size"] == size],
            drawing=partial(per_batch, rows, model, metric, size),
            choices={**setting, "batch": size},
        )


def _optimization_specs(
    rows: pd.DataFrame, metric: MetricName, setting: dict[str, Any], suffixes: list[str]
) -> Iterator[FigureSpec]:
    model, shown = setting["model"], shown_optimizations(rows)
    for optimization in shown:
        of_several = [f"Opt={optimization}"] if len(shown) > 1 else []
        chosen = rows[rows["optimization"] == optimization]
        for smt in sorted(chosen["smt"].unique()):
            yield FigureSpec(
                name=_name(model, metric, optimization, str(bool(smt)), *suffixes),
                alt=_alt(model, metric, *of_several, f"HT={bool(smt)}", *suffixes),
                short=" ".join([optimization, f"HT={bool(smt)}", *suffixes]),
                metric=metric,
                by="optimization",
                placement=setting["placement"],
                rows=chosen[chosen["smt"] == smt],
                drawing=partial(per_optimization, rows, model, metric, optimization, smt),
                choices={**setting, "optimization": optimization, "smt": str(bool(smt)).lower()},
            )


def _suffixes(table: pd.DataFrame, setting: dict[str, Any]) -> list[str]:
    """What tells `setting` from the page's others; what is the default needs no word."""
    several = [column for column in _SUFFIXES if len(table[column].unique()) > 1]
    return [
        f"{_SUFFIXES[column]}{setting[column]}"
        for column in several
        if column not in Config.model_fields
        or setting[column] != Config.model_fields[column].default
    ]


def _name(*words: str) -> str:
    """A file's name; a model from elsewhere may hold a slash."""
    return re.sub(r"[^\w.-]+", "_", "-".join([slug(words[0]), *words[1:]]))


def _alt(model: str, metric: MetricName, *words: str) -> str:
    return " ".join([model_title(model), METRICS[metric].title, *words])


FIELDS = (
    *("model", *CONTEXT, "optimization", "smt", "batch_size", "threads", "cores", "status"),
    *("reason", "samples", "outliers", "trials", "latency_ms", "latency_ms_low"),
    *("latency_ms_high", "peak_fraction", "sqnr_db", "coarse", "item", "cpus_utilized"),
    *("turns", "shared", "throttled", "stolen"),
    *("is_base", *RATIO_COLUMNS),
)
"""The columns of the table that the page has."""

_NOTES = "bands and bars: 95 % interval, of these rounds; hollow: coarse"

MOST_SAMPLES = 200
"""Of each point; more would make the page large, and are thinned evenly."""


def payload(measured: Measured) -> dict[str, Any]:
    """The sweep for the browser: columns of equal length, samples by row, colours by name."""
    table = measured.table.assign(sqnr_db=errors_db(measured.table))
    named = pd.concat([table, allocators_as_optimizations(table)])
    return {
        "columns": {name: [_plain(value) for value in table[name]] for name in FIELDS},
        "setting": ["model", *CONTEXT],
        "samples": _samples(measured),
        "looks": {name: style_of(named, name) for name in ordered_optimizations(named)},
        "batches": {
            str(size): [batch_colour(size), batch_colour(size, dark=True)]
            for size in sorted({int(size) for size in table["batch_size"]})
        },
        "titles": {name: model_title(name) for name in table["model"].unique()},
        "source": measured.source,
        "notes": "" if measured.imported else _NOTES,
    }


def as_json(value: Any) -> Markup:
    """`value` as JSON that is inert in HTML, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped just above


def _samples(measured: Measured) -> dict[str, list[Any]]:
    """By row of the table: latencies in ms, and which of them are outliers."""
    named = measured.table[["machine", "config_id", "threads"]].itertuples(index=False, name=None)
    rows = {key: row for row, key in enumerate(named)}
    found: dict[str, list[Any]] = {}
    for point in measured.results.points.values():
        key = (point.trials[0][0].machine_name, point.config.id, point.threads)
        thin = slice(None, None, -(-len(point.samples_ns) // MOST_SAMPLES))
        values = [_short(ns / 1e6) for ns in point.samples_ns[thin]]
        found[str(rows[key])] = [values, np.flatnonzero(point.outlier[thin]).tolist()]
    return found


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return _short(value) if isinstance(value, float | np.floating) else str(value)


def _short(value: Any) -> float:
    return float(f"{value:.5g}")


_OURS = re.compile(r".+-((latency|throughput)-.+|(peak|speedup)(-.+)?)\.png")
"""Figures that a report wrote; other pictures in the folder are somebody's own."""


_SCRIPTS = (
    *("vendor/d3.min.js", "vendor/plot.umd.min.js"),
    *("web/draw.js", "web/views.js", "web/page.js"),
)
_SETTINGS = {
    "model": "Model",
    "machine": "Machine",
    "seq_len": "Tokens",
    "image_size": "Image size",
    "placement": "Placement",
    "allocator": "Allocator",
    "device": "Device",
}
_FILTERS = {
    "optimization": "Optimization",
    "batch": "Batch size",
    "threads": "Threads",
    "status": "Status",
}
_COLUMNS = {
    "optimization": "Optimization",
    "smt": "SMT",
    "batch_size": "Batch size",
    "threads": "Threads",
    "status": "Status",
    "latency_ms": "Latency, ms",
    "latency_ms_low": "Low",
    "latency_ms_high": "High",
    "speedup": "× eager",
    "speedup_low": "× low",
    "speedup_high": "× high",
    "speedup_paired": "Ratio",
    "sqnr_db": "SQNR, dB",
    "cpus_utilized": "CPU / wall time",
    "samples": "Samples",
    "outliers": "Outliers",
    "turns": "Turns",
}
_DISTURBED = {
    "shared": "Shared turns",
    "throttled": "Throttled periods",
    "stolen": "Stolen share",
}
"""Columns that are shown where any point has some."""


@dataclass(frozen=True)
class _Shown:
    """A spec that was drawn, or the words that stand in its place."""

    spec: FigureSpec
    png: bytes | None

    @property
    def file(self) -> str:
        """The picture's name in ``figures/``."""
        return f"{self.spec.name}.png"

    @property
    def source(self) -> str:
        """The picture's path, from the page."""
        return f"figures/{self.file}"

    @property
    def choices(self) -> dict[str, Any]:
        """What the page's script has to choose to draw this picture."""
        return {"view": self.spec.by, "metric": self.spec.metric, **self.spec.choices}


@dataclass(frozen=True)
class _Group:
    heading: str
    shown: list[_Shown]
    note: str | None


@dataclass(frozen=True)
class _Section:
    heading: str
    groups: list[_Group] = field(default_factory=list)


def write_page(out: Path, any_machine: bool = False) -> Path:
    """Rebuild the page of the sweep in folder `out` from its records; return index.html.

    Figures of an earlier page that no longer belong are removed. Raises `RequestError` where
    the folder has no records, or, but for `any_machine`, those of several machines.
    """
    measured = Measured.load(out, any_machine)
    write_atomically(out / "results.csv", measured.results.table.to_csv(index=False))
    figures, table = out / "figures", measured.table
    shown, over = (
        _write_figures(figures, measured, some(table)) for some in (figure_specs, overviews)
    )
    context = {**_context(measured, shown), **_live(measured), "overviews": over}
    page = _TEMPLATES.get_template("index.html.j2").render(context)
    markdown = _without_liquid(_TEMPLATES.get_template("index.md.j2").render(context))
    write_atomically(out / "index.md", markdown)
    write_atomically(out / "index.html", page)
    _remove_stale(figures, {one.file for one in (*shown, *over) if one.png})
    return out / "index.html"


def _write_figures(folder: Path, measured: Measured, chosen: Iterable[FigureSpec]) -> list[_Shown]:
    folder.mkdir(exist_ok=True)
    shown = []
    for spec in chosen:
        png = None if spec.missing else spec.draw(measured.source).png()
        if png:
            _replace(folder / f"{spec.name}.png", png)
        shown.append(_Shown(spec, png))
    return shown


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def _remove_stale(folder: Path, current: set[str]) -> None:
    for path in folder.glob("*.png"):
        if path.name not in current and _OURS.fullmatch(path.name):
            path.unlink()


def _context(measured: Measured, shown: list[_Shown]) -> dict[str, Any]:
    table = measured.table
    return {
        "title": ", ".join(model_title(model) for model in sorted(table["model"].unique())),
        "measured": measured,
        "findings": findings(measured),
        "disturbances": disturbances(measured.records),
        "best": list(_best_tables(measured)),
        "missing": missing_lines(table),
        "coarse": bool(table["coarse"].fillna(False).any()),
        "samples": int(table["samples"].sum()),
        "outliers": int(table["outliers"].sum()),
        "unpinned": not table["pinned"].fillna(True).all(),
        "sections": _sections(shown, measured.without_smt),
        "provenance": _provenance(measured),
    }


def _sections(shown: list[_Shown], without_smt: str | None) -> list[_Section]:
    sections: dict[str, _Section] = {}
    for (placement, metric, by), group in groupby(
        shown, key=lambda s: (s.spec.placement, s.spec.metric, s.spec.by)
    ):
        title = METRICS[metric].title
        heading = f"{title} ({placement.title()})"
        note = without_smt if by == "optimization" else None
        section = sections.setdefault(heading, _Section(heading))
        section.groups.append(_Group(f"{title} Per {by.title()}", list(group), note))
    return list(sections.values())


def _best_tables(measured: Measured) -> Iterator[tuple[str, list[dict[Any, Any]]]]:
    for setting, part in by_context(measured.table):
        if (part["status"] == "ok").any():
            best = best_points(measured, part).astype(object)
            words = context_label(measured.table, setting)
            yield words, best.where(best.notna(), None).to_dict("records")


def _provenance(measured: Measured) -> list[tuple[str, list[str]]]:
    """Where the numbers come from: a label, and each different value that the records hold."""
    imported = measured.imported
    if imported:
        return [
            ("Imported from", [imported.file]),
            ("SHA-256", [imported.sha256]),
            ("Machine", [imported.machine or "not known"]),
            ("To know", list(imported.notes)),
        ]
    facts: list[tuple[str, Callable[[Record], str]]] = [
        ("Machine", lambda r: str(r.machine)),
        ("System", lambda r: f"{r.machine.system} {r.machine.kernel}, {r.machine.architecture}"),
        ("Governor", lambda r: r.machine.governor or "not known"),
        ("Weights", lambda r: f"{r.config.weights}, seed {r.config.seed}"),
        ("Python", lambda r: r.software.python),
        ("scalebench", lambda r: r.software.scalebench),
        ("Packages", lambda r: _pairs(r.software.versions)),
        ("Libraries", lambda r: _pairs(r.software.libraries)),
        ("Thread environment", lambda r: _pairs(r.software.environment)),
    ]
    told = [(label, list(dict.fromkeys(map(tell, measured.records)))) for label, tell in facts]
    return [(label, values) for label, values in told if any(values)]


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _live(measured: Measured) -> dict[str, Any]:
    """What makes the page live: data, script and its hash, which alone may run."""
    script = "\n".join(_read(name) for name in _SCRIPTS)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    found, columns = payload(measured), _columns(measured.table)
    return {
        "css": _trusted(_read("web/page.css")),
        "script": _trusted(script),
        "script_hash": digest,
        "data": as_json(found),
        "batches": found["batches"],
        "settings": _SETTINGS,
        "filters": _FILTERS,
        "columns": columns,
        "words": [name for name in columns if isinstance(found["columns"][name][0], str)],
        "points": list(_points([found["columns"][name] for name in columns])),
    }


def _columns(table: pd.DataFrame) -> dict[str, str]:
    """The headings of the table of every point: settings that tell points apart, and so on."""
    some = {name: title for name, title in _DISTURBED.items() if (table[name] > 0).any()}
    return {name: _SETTINGS[name] for name in varying_context(table)} | _COLUMNS | some


def _points(columns: list[list[Any]]) -> Iterator[list[tuple[Any, str]]]:
    """The table of every point: each cell's value to sort by, and its text."""
    for values in zip(*columns, strict=True):
        yield [("" if value is None else value, _cell(value)) for value in values]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_number(value) if isinstance(value, float) else str(value)


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _trusted(text: str) -> Markup:
    if "</s" in text.lower():
        raise ValueError("a script or style would end itself")
    return Markup(text)  # noqa: S704 - our own file


def _without_liquid(text: str) -> str:
    """Other people's text must not be taken for the site's own templates."""
    return text.replace("{{", "&#123;&#123;").replace("{%", "&#123;%")


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def _environment() -> Environment:
    # Reasons and paths are other people's text: everything is escaped, in Markdown too, which
    # may hold HTML.
    environment = Environment(
        loader=PackageLoader("scalebench_lib.analysis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, slug=_slug)
    return environment


_TEMPLATES = _environment()
