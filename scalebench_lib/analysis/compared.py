"""A comparison for people: its words, its Markdown for a pull request, and its figure."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scalebench_lib.analysis.compare import WIDE, Comparison, Verdict
from scalebench_lib.analysis.picture import STYLE, Picture
from scalebench_lib.numerals import number
from scalebench_lib.record import write_atomically

_LOOKS = {
    "slower": ("#c0392b", ">"),
    "faster": ("#1f6fb2", "<"),
    "same": ("0.35", "o"),
    "not comparable": ("0.6", "x"),
}
_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_MARKS = {"slower": "**slower**", "faster": "**faster**"}

_MOST_NAMED = 60
"""More points than this are drawn by their ratio, without a name for each."""


def summary(found: Comparison) -> list[str]:
    """The comparison in a few sentences, all computed."""
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in _VERDICTS)
    lines = [f"{found.b} against {found.a}, {len(found.table)} points: {counts}."]
    compared = found.table[found.table["verdict"] != "not comparable"]
    if len(compared):
        half = (compared["ratio_high"] - compared["ratio_low"]) / 2 / compared["ratio"]
        lines.append(
            f"Latency ratio {compared['ratio'].median():.3f} in the median, "
            f"{compared['ratio'].min():.3f} to {compared['ratio'].max():.3f}; "
            f"95 % intervals of ±{half.median():.1%} in the median."
        )
        if (half > WIDE).any():
            lines.append(
                f"{(half > WIDE).sum()} of the intervals are wider than ±{WIDE:.0%}: "
                "smaller changes would not show there; measure for longer to see them."
            )
    if not found.lost.empty:
        lines.append(f"{len(found.lost)} points that {found.a} has could not be measured.")
    lines.append(
        "A point is called slower or faster when it changed by more than "
        f"{found.threshold:.0%} and is clear of noise, at a false discovery rate of 5 % over all "
        "points."
    )
    if found.differences:
        lines.append(f"NOT ALIKE: {'; '.join(found.differences)}.")
    return lines


def rows(found: Comparison) -> list[list[str]]:
    """The table's heading and a row of words a point; what all points share is left out."""
    table, named = found.table, _telling(found.table)
    heading = [name.replace("_", " ") for name in named]
    heading += [f"{found.a}, ms", f"{found.b}, ms", "ratio", "95 % interval", "verdict", ""]
    return [heading, *(_words(row, named) for row in table.to_dict("records"))]


def _telling(table: pd.DataFrame) -> list[str]:
    always, rest = ["optimization", "batch_size", "threads"], ["model", "seq_len", "image_size"]
    rest += ["smt", "placement", "allocator", "device"]
    return [name for name in rest if len(table[name].unique()) > 1] + always


def _words(row: dict[Any, Any], named: list[str]) -> list[str]:
    words = [_word(name, row[name]) for name in named]
    words += [_number(row["latency_ms_a"]), _number(row["latency_ms_b"])]
    if np.isnan(row["ratio"]):
        return [*words, "", "", row["verdict"], row["why"]]
    interval = f"{row['ratio_low']:.3f} – {row['ratio_high']:.3f}"
    return [*words, f"{row['ratio']:.3f}", interval, row["verdict"], row["why"]]


def _word(name: str, value: Any) -> str:
    return {True: "on", False: "off"}[bool(value)] if name == "smt" else str(value)


def _number(value: float) -> str:
    return "" if np.isnan(value) else number(value)


def markdown(found: Comparison, picture: str | None = None) -> str:
    """The comparison for a pull request; `picture` is the address of its figure."""
    heading, *body = [[_safe(word) for word in row] for row in rows(found)]
    lines = [f"### {_safe(found.a)} → {_safe(found.b)}", ""]
    lines += [line for sentence in summary(found) for line in (_safe(sentence), "")]
    lines += [f"![{_safe(_title(found))}]({picture})", ""] if picture else []
    lines += [_line(heading), _line(["---"] * len(heading))]
    lines += [_line([_MARKS.get(word, word) for word in row]) for row in body]
    return "\n".join([*lines, "", _safe(found.machine), ""])


def _line(words: list[str]) -> str:
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
    """The ratio of each point with its 95 % interval; the band is what counts as no change."""
    table = found.table[found.table["ratio"].notna()]
    few = len(table) <= _MOST_NAMED
    table = table if few else table.sort_values("ratio")
    height = 1.9 + (0.26 * len(table) if few else 5)
    with rc_context(STYLE):
        picture = Picture(figsize=(8.4, height))
        picture.alt = _title(found)
        axes = picture.add_subplot(xlabel="change of latency, right: slower")
        axes.axvspan(1 / (1 + found.threshold), 1 + found.threshold, color="0.92", zorder=0)
        axes.axvline(1, color="0.4", linewidth=1)
        _draw(axes, table.assign(place=np.arange(len(table))), few)
        _name(axes, table, few)
        _around(picture, axes, found, height)
    return picture


def _draw(axes: Axes, table: pd.DataFrame, few: bool) -> None:
    for verdict, (colour, marker) in _LOOKS.items():
        part = table[table["verdict"] == verdict]
        if part.empty:
            continue
        middle, low, high = part[["ratio", "ratio_low", "ratio_high"]].to_numpy(float).T
        reach = [middle - low, high - middle]
        marks: dict[str, Any] = {"markersize": 6 if few else 3, "elinewidth": 1.4 if few else 0.5}
        axes.errorbar(middle, part["place"], xerr=reach, fmt=marker, color=colour, **marks)


def _name(axes: Axes, table: pd.DataFrame, few: bool) -> None:
    named = _telling(table)
    names = [", ".join(_named(row, named)) for row in table.to_dict("records")] if few else []
    axes.set_yticks(np.arange(len(names)), names, fontsize=9)
    axes.set_ylabel("" if few else f"{len(table)} points, by ratio")
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _named(row: dict[Any, Any], named: list[str]) -> list[str]:
    threads = f"{{}} thread{'s' * (row['threads'] != 1)}"
    words = {"batch_size": "batch {}", "threads": threads, "smt": "SMT {}"}
    words |= {"seq_len": "{} tokens", "image_size": "{} pixels"}
    return [words.get(name, "{}").format(_word(name, row[name])) for name in named]


def _around(picture: Picture, axes: Axes, found: Comparison, height: float) -> None:
    axes.xaxis.set_major_formatter(
        lambda ratio, _: f"{100 * (ratio - 1):+.3g} %".replace("+0 %", "0")
    )
    present = [verdict for verdict in _VERDICTS if found.count(verdict)]
    looks = [Line2D([], [], color=_LOOKS[v][0], marker=_LOOKS[v][1], ls="") for v in present]
    names = [f"{found.count(verdict)} {verdict}" for verdict in present]
    axes.legend(looks, names, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    picture.suptitle(_title(found), x=0.02, y=1 - 0.1 / height, ha="left", weight="bold")
    note = f"{found.machine} · bars: 95 % interval · grey: less than ±{found.threshold:.0%}"
    picture.text(0.02, 0.1 / height, note, fontsize=8, color="0.35")
    sns.despine(ax=axes, left=True)
    picture.subplots_adjust(left=0.27, right=0.97, top=1 - 0.72 / height, bottom=0.72 / height)
