"""The page of a sweep: results.csv, figures, index.md and a self-contained index.html."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from scalebench_lib.analysis.findings import best_points, findings, number
from scalebench_lib.analysis.plates import Plate, plates
from scalebench_lib.analysis.roof import roofs as draw_roofs
from scalebench_lib.analysis.selection import (
    METRICS,
    Measured,
    missing_words,
    model_title,
    setting_words,
    settings,
)
from scalebench_lib.record import Record, write_atomically

_OURS = re.compile(r".+-((latency|throughput)-.+|peak(-.+)?)\.png")
"""Figures that a report wrote; other pictures in the folder are somebody's own."""


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
    def data(self) -> str:
        """The picture itself, as an address."""
        return _data_url(self.png or b"")


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
    write_atomically(out / "results.csv", measured.table.to_csv(index=False))
    shown = _write_figures(out / "figures", measured)
    roofs = _write_roofs(out / "figures", measured)
    context = {**_context(measured, shown), "roofs": roofs}
    for name in ("index.md", "index.html"):
        write_atomically(out / name, _TEMPLATES.get_template(f"{name}.j2").render(context))
    _remove_stale(
        out / "figures", {s.file for s in shown if s.png} | {roof["file"] for roof in roofs}
    )
    return out / "index.html"


def _write_figures(folder: Path, measured: Measured) -> list[_Shown]:
    folder.mkdir(exist_ok=True)
    shown = []
    for plate in plates(measured.table):
        png = None if plate.missing else plate.draw(measured.source).png()
        if png:
            _replace(folder / f"{plate.name}.png", png)
        shown.append(_Shown(plate, png))
    return shown


def _write_roofs(folder: Path, measured: Measured) -> list[dict[str, str]]:
    """One figure a model and setting whose distance from the machine's peak is known."""
    found = []
    for figure in draw_roofs(measured.table, measured.source):
        png = figure.png()
        _replace(folder / f"{figure.name}.png", png)
        found.append({"file": f"{figure.name}.png", "data": _data_url(png), "alt": figure.alt})
    return found


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
        "findings": findings(table),
        "best": list(_best_tables(table)),
        "missing": missing_words(table),
        "coarse": bool(table["coarse"].fillna(False).any()),
        "samples": int(table["samples"].sum()),
        "disturbed": int(table["disturbed"].sum()),
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


def _best_tables(table: pd.DataFrame) -> Iterator[tuple[str, list[dict[Any, Any]]]]:
    for setting, part in settings(table):
        if (part["status"] == "ok").any():
            best = best_points(part).astype(object)
            yield setting_words(table, setting), best.where(best.notna(), None).to_dict("records")


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


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode("ascii")


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
