"""Draw a `Chart` with matplotlib; `canvas` and `title_and_notes` also serve other drawings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from scalebench_lib.charts import (
    HALF_WIDTH,
    MIN_LABEL,
    Axis,
    Cells,
    Chart,
    Line,
    SampleDots,
    tick_label,
)
from scalebench_lib.picture import Picture

DPI = 144
WIDTH = 8.4
"""Inches."""

STYLE = {
    **sns.axes_style("whitegrid"),
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": "0.6",
    "grid.color": "0.9",
    "text.parse_math": False,  # a reason may hold a dollar sign
    "xtick.bottom": True,
    "ytick.left": True,
}
_HEIGHT = 3.7
_LEFT, _TOP, _BELOW_AXES, _NOTE_LINE = 0.95, 0.5, 0.62, 0.165
_MARGIN = 0.2
_NOTE_CHARACTERS = 118
_GREY = "0.35"
_OUTLIER = "#d03a4a"
_ROW = 0.34
_MAX_LABELLED_COLUMNS = 20
"""With more columns of cells, numbers would overlap."""

_POINTS_PER_INCH = 72
_FONT_POINTS = 9.0
_PITCH_POINTS = 13.0
"""From one label to the next: a line of text and some space."""

_GAP_POINTS = 16.0
"""From the axes to the labels: space for the leaders."""


def draw(chart: Chart) -> Picture:
    """Return `chart` as a picture, labelled, with its caption."""
    notes = _notes(chart.caption)
    room = len(notes) + (2 if chart.dots else 0)  # names of columns are long
    height = max(_HEIGHT, (len(chart.lines) + 1) * _PITCH_POINTS / _POINTS_PER_INCH)
    if chart.cells:
        height = max(1.2, _ROW * len(chart.cells.rows))
    if chart.bars:
        height = 0.35 + 0.52 * len(chart.bars)
    with rc_context({**STYLE, "axes.grid": not chart.cells}):
        figure, axes = canvas(chart.title, room, height)
        if chart.cells:
            _draw_cells(axes, chart.cells)
            axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
        elif chart.bars:
            _draw_bars(axes, chart)
        elif chart.dots:
            _draw_dots(axes, chart.dots)
            _scale(axes, "y", chart.y)
        else:
            _draw_lines(axes, chart)
        sns.despine(ax=axes)
        title_and_notes(figure, chart.title, notes)
    return figure


def _notes(lines: Sequence[str]) -> list[str]:
    """Return the lines of a caption: the first wrapped, the others cut."""
    first, *others = lines
    short = [textwrap.shorten(line, _NOTE_CHARACTERS) for line in others]
    return [*textwrap.wrap(first, _NOTE_CHARACTERS), *short]


def canvas(title: str, notes: int, height: float = _HEIGHT, **axes: str) -> tuple[Picture, Axes]:
    """Return an empty picture, with room for a title and `notes` lines, and axes of `height`."""
    below = _BELOW_AXES + notes * _NOTE_LINE
    whole = _TOP + height + below
    figure = Picture(figsize=(WIDTH, whole), dpi=DPI)
    figure.alt = title
    figure.subplots_adjust(
        left=_LEFT / WIDTH, right=1 - _MARGIN / WIDTH, bottom=below / whole, top=1 - _TOP / whole
    )
    return figure, figure.add_subplot(**axes)


def title_and_notes(figure: Picture, title: str, notes: Sequence[str]) -> None:
    """Write `title` over the picture and `notes` under it."""
    height, left = figure.get_figheight(), _MARGIN / WIDTH
    figure.text(left, 1 - 0.15 / height, title, fontsize=12, weight="bold", va="top", gid="title")
    look: dict[str, Any] = {"fontsize": 8, "color": _GREY, "va": "bottom", "linespacing": 1.45}
    figure.text(left, 0.12 / height, "\n".join(notes), gid="notes", **look)


def _scale(axes: Axes, which: str, axis: Axis) -> None:
    one = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log" if axis.log else "linear", f"{which}label": axis.label})
    axes.set(**{f"{which}lim": (axis.low, axis.high)})
    one.set_ticks(axis.ticks, axis.texts)
    one.set_minor_locator(NullLocator())


def _draw_lines(axes: Axes, chart: Chart) -> None:
    _scale(axes, "x", chart.x)
    _scale(axes, "y", chart.y)
    for line in chart.lines:
        if line.marks.x.size:
            _draw_line(axes, line, chart.is_dense)
        floor = np.full(len(line.missing_at), chart.y.low)
        cross: dict[str, Any] = {"color": line.colour, "markersize": 7, "clip_on": False}
        axes.plot(line.missing_at, floor, "x", zorder=5, gid="missing", **cross)
    figure = axes.figure
    labels = _label_ends(axes, chart)
    widest = max(Text.get_window_extent(label).width for label in labels) / figure.dpi
    figure.subplots_adjust(right=1 - (widest + 0.4) / WIDTH)


def _draw_line(axes: Axes, line: Line, many: bool) -> None:
    x, y, low, high = line.marks.x, line.marks.y, line.marks.low, line.marks.high
    colour, size = line.colour, 3.2 if many else 5
    marks: dict[str, Any] = {"marker": line.marker, "markersize": size, "color": colour}
    dashes = (0, (1, 2)) if line.reference else (0, (4, 1.5)) if line.dashed else "-"
    axes.plot(x, y, linewidth=1.5, linestyle=dashes, label=line.label, **marks)
    if line.coarse.any():
        hollow = {**marks, "markerfacecolor": "white", "linestyle": "none"}
        axes.plot(x[line.coarse], y[line.coarse], **hollow)
    axes.fill_between(x, low, high, color=colour, alpha=0.22 if many else 0.12, linewidth=0)
    if not many:
        look: dict[str, Any] = {"ecolor": colour, "elinewidth": 1.2, "capsize": 6}
        axes.errorbar(x, y, np.abs(np.stack([low, high]) - y), fmt="none", **look)


def _draw_cells(axes: Axes, cells: Cells) -> None:
    columns, rows = len(cells.columns), len(cells.rows)
    shades, texts = np.full((rows, columns), np.nan), np.full((rows, columns), "", object)
    column = [cells.columns.index(x) for x in cells.marks.x]
    row = [cells.rows.index(y) for y in cells.row]
    shades[row, column] = cells.shades
    texts[row, column] = cells.marks.values
    sns.heatmap(
        shades,
        vmin=0,
        vmax=1,
        cmap="viridis",
        cbar=False,
        annot=texts if columns <= _MAX_LABELLED_COLUMNS else None,
        fmt="",
        annot_kws={"fontsize": 8 if columns <= 10 else 6},
        linewidths=0.8,
        xticklabels=[tick_label(x) for x in cells.columns],
        yticklabels=list(cells.rows),
        ax=axes,
    )
    axes.tick_params(axis="y", rotation=0)
    for place in (cells.rows.index(row) for row in cells.missing):
        axes.add_patch(Rectangle((0, place), columns, 1, color="0.93", linewidth=0, zorder=0))
        middles = np.arange(columns) + 0.5
        axes.plot(middles, np.full(columns, place + 0.5), "x", color=_GREY, gid="missing")


def _draw_bars(axes: Axes, chart: Chart) -> None:
    _scale(axes, "x", axis := chart.axes["x"])
    look: dict[str, Any] = {"color": "white", "fontsize": 8, "ha": "center", "va": "center"}
    for part in chart.parts:
        left, wide = part.marks.x, part.marks.y
        axes.barh(part.row, wide, 0.5, left, color=part.colour, edgecolor="white", label=part.label)
        every = zip(part.marks.values, left + wide / 2, part.row, wide, strict=True)
        for value, middle, row, width in every:
            axes.text(middle, row, value * bool(width > MIN_LABEL * axis.high), **look)
    for place, name in enumerate(chart.bars):
        axes.text(0, place - 0.28, name, fontsize=_FONT_POINTS, va="bottom")
    axes.set(ylim=(len(chart.bars) - 0.6, -1.4), yticks=())
    axes.legend(loc="upper left", ncols=4, frameon=False, fontsize=8)


def _draw_dots(axes: Axes, columns: Sequence[SampleDots]) -> None:
    for place, dots in enumerate(columns):
        x = place + np.linspace(-HALF_WIDTH, HALF_WIDTH, len(dots.passes))
        odd, y = dots.outlier, dots.passes
        axes.plot(x[~odd], y[~odd], ".", color=dots.colour, markersize=4, alpha=0.55)
        axes.plot(x[odd], y[odd], "x", color=_OUTLIER, markersize=5, gid="outlier")
        axes.hlines(dots.median, place - 0.4, place + 0.4, color="0.2", linewidth=1.2)
    names = [dots.label for dots in columns]
    axes.set_xticks(range(len(names)), names, rotation=50, ha="right", fontsize=8)
    axes.grid(visible=False, axis="x")


def spread_apart(wanted: ArrayLike, pitch: float, low: float, high: float) -> list[float]:
    """Return the nearest positions in `low` … `high` that are `pitch` apart, in the same order.

    Where they do not fit into the range, they go on beyond `high`.
    """
    places = np.asarray(wanted, dtype=float)
    order = np.argsort(places, kind="stable")
    steps = pitch * np.arange(len(order))
    fitted = isotonic_regression(places[order] - steps).x
    placed = np.empty(len(order))
    placed[order] = np.clip(fitted, low, max(low, high - steps[-1])) + steps
    return [float(position) for position in placed]


def _label_ends(axes: Axes, chart: Chart) -> list[Annotation]:
    """Write the labels of lines right of `axes`, whose limits and size must be final."""
    none = chart.x.high, chart.y.low
    ends = [
        (line.marks.x[-1], line.marks.y[-1]) if line.marks.x.size else none for line in chart.lines
    ]
    height_points = axes.get_window_extent().height / axes.figure.dpi * _POINTS_PER_INCH
    pitch = _PITCH_POINTS / height_points
    wanted = axes.transAxes.inverted().transform(axes.transData.transform(ends))[:, 1]
    placed = spread_apart(wanted, pitch, pitch / 2, 1 - pitch / 2)
    every = zip(chart.lines, ends, placed, strict=True)
    return [_label(axes, line, end, position) for line, end, position in every]


def _label(axes: Axes, line: Line, end: tuple[float, float], position: float) -> Annotation:
    """Write a label at `position`, in fractions of the axes, with a leader from the line's end."""
    colour, figure = darkened(line.colour), axes.get_figure(root=True)
    leader = {"arrowstyle": "-", "linewidth": 0.7, "color": colour, "alpha": 0.6}
    leader |= {"shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
    return axes.annotate(
        line.label,
        xy=end,
        xytext=(1, position),
        textcoords=offset_copy(axes.transAxes, figure, x=_GAP_POINTS, units="points"),
        arrowprops=leader if line.marks.x.size else None,
        annotation_clip=False,
        color=colour,
        fontsize=_FONT_POINTS,
        verticalalignment="center",
        gid="end-label",
    )


def darkened(colour: str) -> str:
    """Return `colour`, dark enough for text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.75 * red, 0.75 * green, 0.75 * blue))
