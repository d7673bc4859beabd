"""The page of a sweep: results.csv, figures, index.md and a self-contained index.html.

The browser draws index.html's pictures from the results, with Observable Plot (and d3, on which
it stands), vendored in ``vendor/``. Of the plotting libraries that are well kept it is the one
that gives SVG (sharp in print, colours from CSS, so light and dark), has bands, cells, log axes,
tips and alternative texts of its own, and weighs 0.5 MB: plotly is 4.8 MB, ECharts 1.1 MB; uPlot
(50 KB) and Chart.js draw on a canvas, without text, and leave cells and labels to us.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scalebench_lib.analysis.findings import best_points, findings
from scalebench_lib.analysis.payload import as_json, payload
from scalebench_lib.analysis.plates import Plate, overviews, plates
from scalebench_lib.analysis.selection import (
    METRICS,
    Measured,
    missing_words,
    model_title,
    setting_words,
    settings,
    varying,
)
from scalebench_lib.disturbances import disturbances
from scalebench_lib.numerals import number
from scalebench_lib.record import Record, write_atomically

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
    """A plate that was drawn, or the words that stand in its place."""

    plate: Plate
    png: bytes | None

    @property
    def file(self) -> str:
        """The picture's name in ``figures/``."""
        return f"{self.plate.name}.png"

    @property
    def source(self) -> str:
        """The picture's path, from the page."""
        return f"figures/{self.file}"

    @property
    def choices(self) -> dict[str, Any]:
        """What the page's script has to choose to draw this picture."""
        return {"view": self.plate.by, "metric": self.plate.metric, **self.plate.choices}


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
    shown, over = (_write_figures(figures, measured, some(table)) for some in (plates, overviews))
    context = {**_context(measured, shown), **_live(measured), "overviews": over}
    page = _TEMPLATES.get_template("index.html.j2").render(context)
    markdown = _without_liquid(_TEMPLATES.get_template("index.md.j2").render(context))
    write_atomically(out / "index.md", markdown)
    write_atomically(out / "index.html", page)
    _remove_stale(figures, {one.file for one in (*shown, *over) if one.png})
    return out / "index.html"


def _write_figures(folder: Path, measured: Measured, chosen: Iterable[Plate]) -> list[_Shown]:
    folder.mkdir(exist_ok=True)
    shown = []
    for plate in chosen:
        png = None if plate.missing else plate.draw(measured.source).png()
        if png:
            _replace(folder / f"{plate.name}.png", png)
        shown.append(_Shown(plate, png))
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
        "missing": missing_words(table),
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
        shown, key=lambda s: (s.plate.placement, s.plate.metric, s.plate.by)
    ):
        title = METRICS[metric].title
        heading = f"{title} ({placement.title()})"
        note = without_smt if by == "optimization" else None
        section = sections.setdefault(heading, _Section(heading))
        section.groups.append(_Group(f"{title} Per {by.title()}", list(group), note))
    return list(sections.values())


def _best_tables(measured: Measured) -> Iterator[tuple[str, list[dict[Any, Any]]]]:
    for setting, part in settings(measured.table):
        if (part["status"] == "ok").any():
            best = best_points(measured, part).astype(object)
            words = setting_words(measured.table, setting)
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
    return {name: _SETTINGS[name] for name in varying(table)} | _COLUMNS | some


def _points(columns: list[list[Any]]) -> Iterator[list[tuple[Any, str]]]:
    """The table of every point: each cell's value to sort by, and its text."""
    for values in zip(*columns, strict=True):
        yield [("" if value is None else value, _cell(value)) for value in values]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return number(value) if isinstance(value, float) else str(value)


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
    environment.filters.update(number=number, slug=_slug)
    return environment


_TEMPLATES = _environment()
