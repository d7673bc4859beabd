"""A comparison for people: its words, its table, its Markdown for a pull request, its figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.markup import escape as no_markup
from rich.table import Table

from scalebench_lib.analysis.compare import WIDE, Common, Comparison, Verdict
from scalebench_lib.analysis.draw import STYLE, Picture
from scalebench_lib.record import write_atomically
from scalebench_lib.text import format_number

_LOOKS: dict[Verdict, tuple[str, str]] = {
    "slower": ("#c0392b", ">"),
    "faster": ("#1f6fb2", "<"),
    "same": ("0.35", "o"),
    "unclear": ("0.6", "x"),
}
_ONE_SIDED: dict[Verdict, str] = {
    "lost": "lost in B",
    "only A": "only in A",
    "only B": "only in B",
}
_MARKS = {"slower": "**slower**", "faster": "**faster**"}

_SETTING = ["model", "seq_len", "image_size", "placement", "allocator", "device"]
"""Points that differ in one of these stand in tables of their own, so that each stays narrow."""

_MOST_NAMED = 60
"""More points than this are drawn by their ratio, without a name for each."""


def headline(found: Comparison) -> list[str]:
    """How many points got which verdict, and what is common to all of them."""
    counts = [f"{found.count(verdict)} {verdict}" for verdict in _LOOKS]
    counts += [f"{n} {words}" for one, words in _ONE_SIDED.items() if (n := found.count(one))]
    lines = [
        f"{found.b} (B) against {found.a} (A), {len(found.table)} points: {', '.join(counts)}."
    ]
    if found.common:
        lines.append(f"Common to all points: {'; '.join(map(_common, found.common))}.")
    if any(each.verdict != "same" for each in found.common):
        lines.append("Machine or software: 'scalebench sweep OUT --against PYTHON' tells which.")
    return lines


def _common(common: Common) -> str:
    """``8.0 % slower (3.1–13 %) on 1 thread``."""
    ratio, where = common.ratio, _on(common.where)
    if not ratio.differs:
        return f"no measurable change ({_change(ratio.low)} to {_change(ratio.high)}) on {where}"
    least, most = (
        format_number(each, 2) for each in sorted(map(_percent, (ratio.low, ratio.high)))
    )
    return f"{_change(ratio.value)} ({least}–{most} %) on {where}"


def _on(where: Sequence[tuple[int, bool]]) -> str:
    """``1, 2 threads and 4 threads with SMT``."""
    counts = [(smt, [str(count) for count, on in where if on == smt]) for smt in (False, True)]
    return " and ".join(_threads(", ".join(n)) + " with SMT" * smt for smt, n in counts if n)


def _threads(counts: str) -> str:
    return f"{counts} thread{'s' * (counts != '1')}"


def _percent(ratio: float) -> float:
    return 100 * abs(ratio - 1)


def _change(ratio: float) -> str:
    return f"{format_number(_percent(ratio), 2)} % {'slower' if ratio > 1 else 'faster'}"


def notes(found: Comparison) -> list[str]:
    """What a reader of the table has to know: who is meant by a reason, and how it was judged."""
    judged = found.table[found.table["verdict"].isin(("slower", "faster", "same"))]
    of = "what is left of its ratio beyond what is common" if found.common else "its latency"
    lines = [
        f"A point is called slower or faster where {of} changed by more than "
        f"{100 * found.threshold:g} % and is clear of noise, at a false discovery rate of 5 % over "
        "all points."
    ]
    if len(judged):
        lines.append(f"95 % intervals are ±{_half_width(judged).median():.1%} in the median.")
    if any(each.ratio.half_width > WIDE for each in found.common):
        lines.append("What is common is not well known: more rounds, or --against, would tell it.")
    lines += [f"Note: {told}." for told in (*_reasons(found.table), *found.notes)]
    return lines + [f"NOT ALIKE: {'; '.join(found.differences)}."] * bool(found.differences)


def _half_width(table: pd.DataFrame) -> pd.Series[float]:
    return (table["beyond_high"] - table["beyond_low"]) / 2 / table["beyond"]


def _reasons(table: pd.DataFrame) -> Iterator[str]:
    """Each reason with its points: ``lost in B (failed: no memory): script, batch 1, 4 on …``."""
    told = table[(table["why"] != "") | table["verdict"].isin(list(_ONE_SIDED))]
    if told.empty:
        return
    named = [*_varying(table, [*_SETTING, "smt"]), "optimization"]
    alike = ["verdict", "why", *named]
    told = _joined(
        _joined(told, [*alike, "batch_size"], "threads"), [*alike, "threads"], "batch_size"
    )
    told = told.assign(verdict=told["verdict"].replace(_ONE_SIDED))
    for (verdict, why), points in told.groupby(["verdict", "why"], sort=False):
        places = "; ".join(_place(row, named) for row in points.to_dict("records"))
        yield f"{verdict}{f' ({why})' * bool(why)}: {places}"


def _joined(table: pd.DataFrame, alike: list[str], name: str) -> pd.DataFrame:
    """One row for all that are `alike`, with their values of `name` in a list: ``1, 2``."""
    lists = table.groupby(alike, sort=False)[name].agg(lambda values: ", ".join(map(str, values)))
    return lists.reset_index()


def _place(row: dict[Any, Any], named: list[str]) -> str:
    config = ", ".join(_named(row, named))
    return f"{config}, batch {row['batch_size']} on {_threads(row['threads'])}"


def _varying(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    return [name for name in names if len(table[name].unique()) > 1]


def tables(found: Comparison) -> list[tuple[str, list[list[str]]]]:
    """A title and rows of words, heading first, for each setting; of one alone without a title.

    The points that both sides have, a row each.
    """
    both = found.table[found.table[["latency_ms_a", "latency_ms_b"]].notna().all(axis=1)]
    smt, setting = _varying(both, ["smt"]), _varying(both, _SETTING)
    heading = ["optimization", *["SMT"] * len(smt), "batch", "threads", "A, ms", "B, ms", "B/A"]
    heading += [*["beyond"] * bool(found.common), "verdict"]
    parts: dict[str, list[list[str]]] = {}
    for row in both.to_dict("records"):
        rows = parts.setdefault(", ".join(_named(row, setting)), [heading])
        rows.append(_words(row, smt, bool(found.common)))
    return list(parts.items())


def _words(row: dict[Any, Any], smt: list[str], common: bool) -> list[str]:
    words = [_word(name, row[name]) for name in ("optimization", *smt, "batch_size", "threads")]
    words += [format_number(row["latency_ms_a"]), format_number(row["latency_ms_b"])]
    return [*words, *_ratios(row, common), row["verdict"]]


def _ratios(row: dict[Any, Any], common: bool) -> list[str]:
    """The ratio, and what is left of it; the one that is judged with half its interval."""
    if np.isnan(row["ratio"]):
        return [""] * (1 + common)
    half = 100 * (row["beyond_high"] - row["beyond_low"]) / 2 / row["beyond"]
    judged = f"{row['beyond']:.3f} ±{half:.{1 if half < 10 else 0}f}%"
    return [f"{row['ratio']:.3f}", judged] if common else [judged]


def _word(name: str, value: Any) -> str:
    return {True: "on", False: "off"}[bool(value)] if name == "smt" else str(value)


def printed(found: Comparison) -> list[str | Table]:
    """The comparison for a terminal or a pipe: lines, and tables that fit into 80 columns."""
    lines: list[str | Table] = [*headline(found), ""]
    for title, rows in tables(found):
        lines += [*[f"{title}:"] * bool(title), _table(rows), ""]
    return [*lines, *notes(found)]


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """A table with a space between columns, and never cut, however narrow the terminal."""
    widths = [max(map(len, words)) for words in zip(*rows, strict=True)]
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, width=sum(widths) + len(widths) - 1)
    for name in rows[0]:
        left = name in ("optimization", "SMT", "verdict")
        table.add_column(no_markup(name), justify="left" if left else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(no_markup, row))
    return table


def markdown(found: Comparison, picture: str | None = None) -> str:
    """The comparison for a pull request; `picture` is the address of its figure."""
    lines = [f"### {_safe(found.a)} → {_safe(found.b)}", "", *_paragraphs(headline(found))]
    lines += [f"![{_safe(_title(found))}]({picture})", ""] if picture else []
    for title, (heading, *body) in tables(found):
        lines += [f"**{_safe(title)}**", ""] if title else []
        lines += [_line(map(_safe, heading)), _line(["---"] * len(heading))]
        lines += [_line(_MARKS.get(word, _safe(word)) for word in row) for row in body]
        lines.append("")
    return "\n".join([*lines, *_paragraphs(notes(found)), _safe(found.machine), ""])


def _paragraphs(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in (_safe(sentence), "")]


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"


def _safe(text: str) -> str:
    """Reasons and names are other people's text: neither HTML nor a table's bar."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("*", "\\*")


def save(found: Comparison, folder: Path) -> Path:
    """Write compare.md, compare.png and compare.csv into `folder`; return compare.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.png").write_bytes(figure(found).png())
    write_atomically(folder / "compare.csv", found.table.to_csv(index=False))
    write_atomically(folder / "compare.md", markdown(found, "compare.png"))
    return folder / "compare.md"


def _title(found: Comparison) -> str:
    return f"Latency of {found.b} over that of {found.a}"


def figure(found: Comparison) -> Picture:
    """What each point is judged by, with its 95 % interval; the band is what counts as none."""
    table = found.table[found.table["ratio"].notna()]
    few = len(table) <= _MOST_NAMED
    table = table if few else table.sort_values("beyond")
    height = 1.9 + (0.26 * len(table) if few else 5)
    with rc_context(STYLE):
        picture = Picture(figsize=(8.4, height))
        picture.alt = _title(found)
        axes = picture.add_subplot(xlabel=_axis(found))
        axes.axvspan(1 / (1 + found.threshold), 1 + found.threshold, color="0.92", zorder=0)
        axes.axvline(1, color="0.4", linewidth=1)
        _draw(axes, table.assign(place=np.arange(len(table))), few)
        _name(axes, table, few)
        _around(picture, axes, found, height)
    return picture


def _axis(found: Comparison) -> str:
    beyond = " beyond what is common to all points" * bool(found.common)
    return f"change of latency{beyond}, right: slower"


def _draw(axes: Axes, table: pd.DataFrame, few: bool) -> None:
    for verdict, (colour, marker) in _LOOKS.items():
        part = table[table["verdict"] == verdict]
        if part.empty:
            continue
        middle, low, high = part[["beyond", "beyond_low", "beyond_high"]].to_numpy(float).T
        reach = [middle - low, high - middle]
        marks: dict[str, Any] = {"markersize": 6 if few else 3, "elinewidth": 1.4 if few else 0.5}
        axes.errorbar(middle, part["place"], xerr=reach, fmt=marker, color=colour, **marks)


def _name(axes: Axes, table: pd.DataFrame, few: bool) -> None:
    named = [*_varying(table, [*_SETTING, "smt"]), "optimization", "batch_size", "threads"]
    names = [", ".join(_named(row, named)) for row in table.to_dict("records")] if few else []
    axes.set_yticks(np.arange(len(names)), names, fontsize=9)
    axes.set_ylabel("" if few else f"{len(table)} points, by ratio")
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _named(row: dict[Any, Any], named: list[str]) -> list[str]:
    threads = _threads(str(row["threads"]))
    words = {"batch_size": "batch {}", "threads": threads, "smt": "SMT {}"}
    words |= {"seq_len": "{} tokens", "image_size": "{} pixels"}
    return [words.get(name, "{}").format(_word(name, row[name])) for name in named]


def _around(picture: Picture, axes: Axes, found: Comparison, height: float) -> None:
    axes.xaxis.set_major_formatter(
        lambda ratio, _: f"{100 * (ratio - 1):+.3g} %".replace("+0 %", "0")
    )
    present = [verdict for verdict in _LOOKS if found.count(verdict)]
    looks = [Line2D([], [], color=_LOOKS[v][0], marker=_LOOKS[v][1], ls="") for v in present]
    names = [f"{found.count(verdict)} {verdict}" for verdict in present]
    axes.legend(looks, names, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    picture.suptitle(_title(found), x=0.02, y=1 - 0.1 / height, ha="left", weight="bold")
    note = f"{found.machine} · bars: 95 % interval · grey: less than ±{found.threshold:.0%}"
    picture.text(0.02, 0.1 / height, note, fontsize=8, color="0.35")
    sns.despine(ax=axes, left=True)
    picture.subplots_adjust(left=0.27, right=0.97, top=1 - 0.72 / height, bottom=0.72 / height)
