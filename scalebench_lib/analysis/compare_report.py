"""Report a comparison: lines and tables for a terminal, Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from scalebench_lib.analysis.compare import (
    WARN_HALF_WIDTH,
    CommonChange,
    Comparison,
    half_widths,
)
from scalebench_lib.analysis.draw import STYLE, WIDTH, canvas, title_and_notes
from scalebench_lib.analysis.tables import CONTEXT, varying
from scalebench_lib.config import AXES, axis_value_label
from scalebench_lib.files import write_atomically
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.picture import Picture
from scalebench_lib.text import format_number, pluralize

_STYLES = {
    "slower": ("#c0392b", ">"),
    "faster": ("#1f6fb2", "<"),
    "same": ("0.35", "o"),
    "unclear": ("0.6", "x"),
}
_THAN = " than the rest"
"""Where all points moved together, they are called slower or faster than that."""

_ONE_SIDED = {"lost": "lost in B", "only A": "only in A", "only B": "only in B"}

_CONTEXT = [name for name in CONTEXT if name != "machine"]
"""Each of their values has a table of its own, so that tables are narrow."""

_LEGEND = 0.3
"""Inches above the points."""

_MAX_NAMED = 60
"""More points are sorted by their ratio, without names."""

_MAX_NOTE = 200
"""Characters of a note; the points that it has no room for are counted."""


def summary(found: Comparison) -> list[str]:
    """Return the number of points by verdict, and the change common to all of them, in lines."""
    a, b = found.names
    begin = f"{b} (B) against {a} (A), {pluralize(len(found.table), 'point')}"
    counts = found.table["verdict"].value_counts()
    parts = [f"{counts.get(verdict, 0)} {verdict}" for verdict in _STYLES]
    parts += [
        f"{counts[verdict]} {label}" for verdict, label in _ONE_SIDED.items() if verdict in counts
    ]
    lines = [f"{begin}: {', '.join(parts)}."]
    if found.common:
        lines.append(f"Common to all points: {'; '.join(map(_common_change, found.common))}.")
    if found.moved_together:
        lower, higher = (found.table["ratio"] < 1).sum(), (found.table["ratio"] > 1).sum()
        lines[0] = f"{begin}: {lower} have a lower latency in B, {higher} a higher one."
        lines.append(f"Against the rest: {', '.join(parts)}.")
    if any(each.verdict != "same" for each in found.common):
        lines.append("Machine or software: 'scalebench sweep OUT --against PYTHON' tells which.")
    return lines


def _common_change(common: CommonChange) -> str:
    """``8.0 % slower (3.1–13 %) on 1 thread``."""
    ratio, where = common.ratio, _on(common.where)
    if not ratio.differs:
        return f"no measurable change ({_change(ratio.low)} to {_change(ratio.high)}) on {where}"
    ends = sorted(100 * abs(end - 1) for end in (ratio.low, ratio.high))
    least, most = (format_number(each, 2) for each in ends)
    return f"{_change(ratio.value)} ({least}–{most} %) on {where}"


def _change(ratio: float) -> str:
    return f"{format_number(100 * abs(ratio - 1), 2)} % {'slower' if ratio > 1 else 'faster'}"


def _on(where: Sequence[tuple[int, bool]]) -> str:
    """``1, 2 threads and 4 threads with SMT``."""
    counts = [(smt, [str(count) for count, on in where if on == smt]) for smt in (False, True)]
    return " and ".join(_threads(", ".join(n)) + " with SMT" * smt for smt, n in counts if n)


def _threads(counts: object) -> str:
    return f"{counts} thread{'s' * (str(counts) != '1')}"


def notes(found: Comparison) -> list[str]:
    """Return how points were judged, and why some could not be, in lines."""
    judged = found.table[found.table["verdict"].isin(("slower", "faster", "same"))]
    beyond = " beyond what is common" * bool(found.common)
    lines = [
        f"Slower or faster{_THAN * found.moved_together}: by more than "
        f"{100 * found.threshold:g} %{beyond}, and clear of noise. Of the points called slower or "
        "faster, about 1 in 20 may be chance."
    ]
    if len(judged):
        lines.append(f"95 % intervals are ±{half_widths(judged).median():.1%} in the median.")
    if any(each.ratio.half_width > WARN_HALF_WIDTH for each in found.common):
        lines.append("What is common is not well known: more rounds, or --against, would tell it.")
    lines += [f"Note: {note}." for note in (*_reasons(found.table), *found.notes)]
    return lines + [f"NOT ALIKE: {'; '.join(found.differences)}."] * bool(found.differences)


def _reasons(table: pd.DataFrame) -> Iterator[str]:
    """Yield reasons with points: ``lost in B (failed: no memory): script, batch 1, 4 on …``."""
    rows = table[(table["why"] != "") | table["verdict"].isin(list(_ONE_SIDED))]
    point = [*varying(rows, [*_CONTEXT, "smt"]), "optimization", "batch_size"]
    alike = ["verdict", "why", *point]
    rows = _joined(_joined(rows, alike, "threads"), [*alike[:-1], "threads"], "batch_size")
    for (verdict, why), points in rows.groupby(["verdict", "why"], sort=False):
        every = points.to_dict("records")
        labels = [f"{_label(row, point)} on {_threads(row['threads'])}" for row in every]
        begin = f"{_ONE_SIDED.get(str(verdict), verdict)}{f' ({why})' if why else ''}: "
        yield begin + _as_many_as_fit(labels, _MAX_NOTE - len(f"Note: {begin}."))


def _as_many_as_fit(labels: Sequence[str], room: int) -> str:
    """Join the first of `labels`, at least one; count the others: ``a; b; … and 3 more``."""
    for count in range(len(labels), 0, -1):
        more = [f"… and {len(labels) - count} more"] * (count < len(labels))
        text = "; ".join([*labels[:count], *more])
        if len(text) <= room:
            break
    return text


def _joined(table: pd.DataFrame, alike: list[str], name: str) -> pd.DataFrame:
    """Merge the rows that are `alike`, with their values of `name` in a list: ``1, 2``."""
    lists = table.groupby(alike, sort=False)[name].agg(lambda values: ", ".join(map(str, values)))
    return lists.reset_index()


def _label(row: Mapping[Any, Any], names: Iterable[str]) -> str:
    """Name a point by some of its columns: ``script, SMT on, batch 4``."""
    return ", ".join(axis_value_label(n, row[n]) if n in AXES else str(row[n]) for n in names)


def tables(found: Comparison) -> list[tuple[str, pd.DataFrame]]:
    """Return a title and a table of texts for each context: the points of both sides, a row each.

    A single context has no title.
    """
    both = found.table.dropna(subset=["latency_ms_a", "latency_ms_b"])
    names = varying(both, _CONTEXT)
    titles = pd.Series([_label(row, names) for row in both.to_dict("records")], both.index, str)
    text = _as_text(both, bool(found.common), found.moved_together)
    return [(str(title), part) for title, part in text.groupby(titles, sort=False)]


def _as_text(rows: pd.DataFrame, common: bool, moved_together: bool) -> pd.DataFrame:
    """Return latencies and ratios as texts; the ratio that is judged has its interval."""
    beyond, verdict = "beyond", "verdict"
    if moved_together:
        beyond, verdict = "B/A ÷\ncommon", "against\nthe rest"
    columns = {
        "optimization": rows["optimization"].map(optimization_title),
        "SMT": rows["smt"].map({True: "on", False: "off"}),
        "batch": rows["batch_size"].astype(str),
        "threads": rows["threads"].astype(str),
        "A, ms": rows["latency_ms_a"].map(format_number),
        "B, ms": rows["latency_ms_b"].map(format_number),
        "B/A": rows["ratio"].map("{:.3f}".format, na_action="ignore").fillna(""),
        beyond: [
            "" if np.isnan(value) else f"{value:.3f} ±{half:.{1 if half < 10 else 0}f}%"
            for value, half in zip(rows["beyond"], 100 * half_widths(rows), strict=True)
        ],
        verdict: rows["verdict"],
    }
    if not common:
        columns["B/A"] = columns.pop(beyond)
    if not varying(rows, ["smt"]):
        del columns["SMT"]
    return pd.DataFrame(columns)


def renderables(found: Comparison) -> list[str | Table]:
    """Return the comparison for a terminal or a pipe: lines, and tables that fit 80 columns."""
    lines: list[str | Table] = [*summary(found), ""]
    for title, table in tables(found):
        lines += [*[f"{title}:"] * bool(title), _rich(table), ""]
    return [*lines, *notes(found)]


def _rich(rows: pd.DataFrame) -> Table:
    """Return a table with a space between columns, never cut, however narrow the terminal."""
    names = list(map(str, rows))
    widths = [max(map(len, [*name.splitlines(), *rows[name]])) for name in names]
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, width=sum(widths) + len(widths) - 1)
    for name in names:
        left = name in ("optimization", "SMT", names[-1])
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in rows.to_numpy():
        table.add_row(*map(Text, row))
    return table


def markdown(found: Comparison, picture: str | None = None) -> str:
    """Return the comparison for a pull request; `picture` is the address of its figure."""
    lines = [f"### {_safe(' → '.join(found.names))}", "", *_paragraphs(summary(found))]
    lines += [f"![{_safe(_title(found))}]({picture})", ""] if picture else []
    for title, table in tables(found):
        bold = table.replace({table.columns[-1]: {"slower": "**slower**", "faster": "**faster**"}})
        rows = bold.assign(optimization=table["optimization"].map(_safe)).to_numpy().tolist()
        lines += [f"**{_safe(title)}**", ""] if title else []
        heading = [[" ".join(str(name).split()) for name in table], ["---"] * len(table.columns)]
        lines += [*(f"| {' | '.join(row)} |" for row in (*heading, *rows)), ""]
    return "\n".join([*lines, *_paragraphs([*notes(found), "; ".join(found.before.machines)])])


def _paragraphs(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in (_safe(sentence), "")]


def _safe(text: str) -> str:
    """Escape HTML, bars and asterisks in other people's text."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("*", "\\*")


def save(found: Comparison, folder: Path) -> Path:
    """Write ``compare.md``, its figure and its table (CSV) into `folder`; return the first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.png", figure(found).png())
    write_atomically(folder / "compare.csv", found.table.to_csv(index=False))
    write_atomically(folder / "compare.md", markdown(found, "compare.png"))
    return folder / "compare.md"


def _title(found: Comparison) -> str:
    common = ", beyond the common change" * found.moved_together
    return "Latency of {1} over that of {0}".format(*found.names) + common


def figure(found: Comparison) -> Picture:
    """Draw the ratio that each point is judged by, with its interval, and a band of `threshold`."""
    table = found.table.dropna(subset="ratio")
    named = len(table) <= _MAX_NAMED
    rows = (table if named else table.sort_values("beyond")).reset_index(drop=True)
    beyond = " beyond what is common to all points" * bool(found.common)
    than = _THAN * found.moved_together
    with rc_context(STYLE):
        height = 1 + 0.26 * len(rows) if named else 5
        picture, axes = canvas(_title(found), 1, height)
        axes.axvspan(1 / (1 + found.threshold), 1 + found.threshold, color="0.92", zorder=0)
        axes.axvline(1, color="0.4", linewidth=1)
        for verdict, part in rows.groupby("verdict", sort=False):
            label = f"{len(part)} {verdict}{than * (verdict in ('slower', 'faster'))}"
            _draw(axes, part, str(verdict), label, named)
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * (x - 1):+.3g} %".replace("+0 %", "0"))
        axes.set_xlabel(f"change{beyond}, right: slower{than}")
        axes.set_ylim(len(rows) - 0.4, -0.6 - _LEGEND * len(rows) / (height - _LEGEND))
        _label_rows(axes, rows, named)
        bars = f"bars: 95 % interval · grey: less than ±{found.threshold:.0%}"
        title_and_notes(picture, _title(found), [f"{'; '.join(found.before.machines)} · {bars}"])
        texts = [label.get_window_extent().width for label in axes.get_yticklabels()]
    picture.subplots_adjust(left=(max(texts, default=0) / picture.dpi + 0.4) / WIDTH)
    return picture


def _draw(axes: Axes, part: pd.DataFrame, verdict: str, label: str, named: bool) -> None:
    colour, marker = _STYLES[verdict]
    middle, low, high = part[["beyond", "beyond_low", "beyond_high"]].to_numpy(float).T
    axes.errorbar(
        middle,
        part.index,
        xerr=[middle - low, high - middle],
        fmt=marker,
        color=colour,
        markersize=6 if named else 3,
        elinewidth=1.4 if named else 0.5,
        label=label,
    )


def _label_rows(axes: Axes, rows: pd.DataFrame, named: bool) -> None:
    columns = [*varying(rows, [*_CONTEXT, "smt"]), "optimization", "batch_size"]
    points = rows.to_dict("records") if named else []
    labels = [f"{_label(row, columns)}, {_threads(row['threads'])}" for row in points]
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylabel("" if named else f"{len(rows)} points, by ratio")
    axes.grid(visible=False, axis="y")
    if len(rows):
        look = {"edgecolor": "none", "framealpha": 1, "fontsize": 8}
        axes.legend(ncols=4, loc="upper left", **look)
