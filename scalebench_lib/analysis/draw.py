"""How a figure looks: lines with intervals, labelled at their ends, and notes under them.

Knows nothing of configs or tables. Figures are made without pyplot, so that a notebook shows each
just once. A name has the same colour and mark in every figure: people who see few colours tell
lines apart by their marks, and both are seen on white as on nearly black.
"""

from __future__ import annotations

import io
import textwrap
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Transform, offset_copy
from PIL import Image
from scipy.optimize import isotonic_regression

from scalebench_lib.config import OPTIMIZATIONS


@dataclass(frozen=True)
class Span:
    """A y axis, logarithmic or from 0, with room for values from `low` to `high`."""

    log: bool
    low: float
    high: float

    @classmethod
    def around(cls, spans: Sequence[Span]) -> Span:
        """The axis on which all of `spans` find room."""
        return cls(
            any(span.log for span in spans),
            min(span.low for span in spans),
            max(span.high for span in spans),
        )


Scale = Literal["auto", "linear", "log"] | Span

POINTS_PER_INCH = 72
FONT_POINTS = 9.0
PITCH_POINTS = 13.0
"""From one label to the next: a line of text and a little air."""

_GAP_POINTS = 16.0
"""From the axes to the labels: room for the leaders."""


@dataclass(frozen=True)
class EndLabel:
    """What to write beside the last point (`x`, `y`) of a line, in data units.

    A `leader` joins the two; without, there is no line to join.
    """

    text: str
    x: float
    y: float
    colour: str
    leader: bool = True


def height_inches(count: int) -> float:
    """The least height of axes beside which `count` labels find room."""
    return (count + 1) * PITCH_POINTS / POINTS_PER_INCH


def spread(wanted: Sequence[float], pitch: float, low: float, high: float) -> list[float]:
    """Move positions as little as possible until all are `pitch` apart, in `low` … `high`.

    Keeps their order. Where they do not fit into the range, they go on beyond `high`.
    """
    order = np.argsort(wanted, kind="stable")
    steps = pitch * np.arange(len(order))
    fitted = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    placed = np.empty(len(order))
    placed[order] = np.clip(fitted, low, max(low, high - steps[-1])) + steps
    return [float(position) for position in placed]


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> list[Text]:
    """Write `labels` right of `axes`, whose limits and size must be final."""
    if not labels:
        return []
    height_points = axes.get_window_extent().height / axes.figure.dpi * POINTS_PER_INCH
    pitch = PITCH_POINTS / height_points
    wanted = [_height_in_axes(axes, label) for label in labels]
    placed = spread(wanted, pitch, pitch / 2, 1 - pitch / 2)
    for label, position in zip(labels, placed, strict=True):
        if label.leader:
            _leader(axes, label, position)
    return [_write(axes, label, at) for label, at in zip(labels, placed, strict=True)]


def _height_in_axes(axes: Axes, label: EndLabel) -> float:
    pixels = axes.transData.transform((label.x, label.y))
    return float(axes.transAxes.inverted().transform(pixels)[1])


def _write(axes: Axes, label: EndLabel, position: float) -> Text:
    return axes.text(
        1,
        position,
        label.text,
        transform=_beside(axes, _GAP_POINTS),
        color=label.colour,
        fontsize=FONT_POINTS,
        verticalalignment="center",
        gid="end-label",
    )


def _leader(axes: Axes, label: EndLabel, position: float) -> None:
    axes.annotate(
        "",
        xy=(label.x, label.y),
        xytext=(1, position),
        textcoords=_beside(axes, _GAP_POINTS - 2),
        arrowprops={
            "arrowstyle": "-",
            "linewidth": 0.7,
            "color": label.colour,
            "alpha": 0.6,
            "shrinkA": 0,
            "shrinkB": 3,
        },
        annotation_clip=False,
    )


def _beside(axes: Axes, points: float) -> Transform:
    return offset_copy(axes.transAxes, axes.get_figure(root=True), x=points, units="points")


_COLOURS = (
    *("#6e7681", "#c05c00", "#b0389b", "#d03a4a", "#1a78c2", "#0f8a8f", "#3c8a2e", "#8a7400"),
    *("#7a5cd6", "#a0603c", "#4f6fb5", "#c2407a"),
)
_MARKERS = "osD^vPX*<>dp"


def style_of(table: pd.DataFrame, optimization: str) -> tuple[str, str]:
    """Colour and marker of an optimization: for those that we know, the same everywhere."""
    unknown = sorted(set(table["optimization"]) - set(OPTIMIZATIONS))
    place = [*OPTIMIZATIONS, *unknown].index(optimization) % len(_COLOURS)
    return _COLOURS[place], _MARKERS[place]


def batch_colour(batch_size: int, dark: bool = False) -> str:
    """Away from the background with the logarithm of the batch size; 1024 is the furthest."""
    palette = sns.color_palette("viridis" if dark else "viridis_r", as_cmap=True)
    share = min(np.log2(batch_size) / 10, 1)
    return to_hex(palette(0.25 + 0.75 * share if dark else 0.2 + 0.8 * share))


DPI = 144
WIDTH = 8.4
"""Inches."""

LOG_FROM = 10
"""An axis whose values span more than this factor is logarithmic: on a linear one the small
values would lie on one another."""

_MANY = 16
"""More thread counts than this get a logarithmic axis, bands for intervals, and small marks."""

_HEIGHT = 3.7
_LEFT, _TOP, _BELOW_AXES, _NOTE_LINE = 0.95, 0.5, 0.62, 0.165
_MARGIN = 0.2
_NOTE_CHARACTERS = 118
_MAX_MISSING = 5
_GREY = "0.35"
_FAINT = "#6e7681"
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


class Picture(Figure):
    """A matplotlib figure that shows itself in a notebook, whatever the backend."""

    alt = ""
    name = ""
    span: Span | None = None
    """Its y axis, where it can be shared."""

    def png(self, dpi: float = DPI) -> bytes:
        """The picture as PNG of 256 colours: a quarter of the size, and the eye sees no less."""
        self.set_dpi(dpi)
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
        few = image.convert("RGB").quantize(
            256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        # Quantizing darkens white by one, which would show as a box on a white page.
        few.putpalette([255 if part >= 254 else part for part in few.getpalette() or ()])
        buffer = io.BytesIO()
        few.save(buffer, "png")
        return buffer.getvalue()

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": b64encode(self.png()).decode("ascii"), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


@dataclass(frozen=True)
class Line:
    """One line: its look, and its points ordered by `x`; NaN where an interval has no bound.

    `gone` are places on the x axis where a measurement failed or was skipped: crosses there. A
    line without points is a label that says so. An `ideal` line is one to measure others by.
    """

    label: str
    colour: str
    marker: str
    dashed: bool
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    coarse: np.ndarray
    gone: np.ndarray = field(default_factory=lambda: np.empty(0))
    ideal: bool = False

    @classmethod
    def without_points(cls, label: str, colour: str, gone: Sequence[float] = ()) -> Line:
        """A line of which nothing was measured."""
        none = np.empty(0)
        return cls(label, colour, "", False, none, none, none, none, none, np.asarray(gone, float))

    @classmethod
    def ideal_of(cls, label: str, x: Sequence[float], y: Sequence[float]) -> Line:
        """A line to measure others by."""
        xs, ys = np.asarray(x, float), np.asarray(y, float)
        return cls(label, _FAINT, "", False, xs, ys, ys, ys, np.zeros(len(xs), bool), ideal=True)


@dataclass(frozen=True)
class ChartText:
    """What is written around the lines: `source` says where and when they were measured,
    `missing` what could not be, `doubling` that x is read in powers of two."""

    title: str
    x_axis: str
    y_axis: str
    source: str
    missing: Sequence[str] = ()
    doubling: bool = False


def draw(lines: Sequence[Line], words: ChartText, scale: Scale = "auto") -> Picture:
    """Draw `lines` (at least one with points); `scale` is that of the y axis."""
    drawn = [line for line in lines if line.x.size]
    many = max(line.x.size for line in drawn) > _MANY // 2
    notes = _notes(lines, words, "Bands" if many else "Bars")
    with rc_context(STYLE):
        figure, axes = _canvas(words, len(lines), len(notes))
        for line in drawn:
            _draw_line(axes, line, many)
            _draw_interval(axes, line, many)
        _scale_x(axes, np.concatenate([*(e.x for e in drawn), *(e.gone for e in lines)]), words)
        figure.span = _scale_y(axes, drawn, scale)
        for line in lines:
            _draw_gone(axes, line)
        sns.despine(ax=axes)
        _label(figure, axes, lines)
        caption(figure, words.title, notes)
    return figure


def _notes(lines: Sequence[Line], words: ChartText, intervals: str) -> list[str]:
    """The lines under a picture: where from, how to read it, and what is missing."""
    how = []
    if any(np.isfinite(line.low).any() for line in lines):
        how.append(f"{intervals}: 95 % interval, of these rounds, where wider than the mark.")
    if any(line.coarse.any() for line in lines):
        how.append("Hollow marks: coarse, fewer than 6 turns.")
    if any(line.gone.size for line in lines):
        how.append("Crosses: failed or skipped.")
    told = filter(None, [" ".join(how)])
    return [*textwrap.wrap(words.source, _NOTE_CHARACTERS), *told, *missing_notes(words.missing)]


def missing_notes(missing: Sequence[str]) -> list[str]:
    """A line each for the first of `missing`, and one for how many there are beside."""
    shown = [textwrap.shorten(text, _NOTE_CHARACTERS) for text in missing[:_MAX_MISSING]]
    left = len(missing) - len(shown)
    return [*shown, *([f"… and {left} more that failed or were skipped."] if left else [])]


def _canvas(words: ChartText, lines: int, notes: int) -> tuple[Picture, Axes]:
    height = max(_HEIGHT, height_inches(lines))
    return canvas(words.title, notes, height, xlabel=words.x_axis, ylabel=words.y_axis)


def canvas(title: str, notes: int, height: float = _HEIGHT, **axes: str) -> tuple[Picture, Axes]:
    """An empty picture with room for its title and `notes` lines; `height` inches of axes."""
    below = _BELOW_AXES + notes * _NOTE_LINE
    whole = _TOP + height + below
    figure = Picture(figsize=(WIDTH, whole), dpi=DPI)
    figure.alt = title
    figure.subplots_adjust(left=_LEFT / WIDTH, bottom=below / whole, top=1 - _TOP / whole)
    return figure, figure.add_subplot(**axes)


def _draw_line(axes: Axes, line: Line, many: bool) -> None:
    marks: dict[str, Any] = {
        "marker": line.marker,
        "markersize": 3.2 if many else 5,
        "color": line.colour,
    }
    dashes = (0, (1, 2)) if line.ideal else (0, (4, 1.5)) if line.dashed else "-"
    axes.plot(line.x, line.y, linewidth=1.5, linestyle=dashes, label=line.label, **marks)
    if line.coarse.any():
        hollow = {**marks, "markerfacecolor": "white", "linestyle": "none"}
        axes.plot(line.x[line.coarse], line.y[line.coarse], **hollow)


def _draw_interval(axes: Axes, line: Line, many: bool) -> None:
    if line.ideal:
        return
    band: dict[str, Any] = {"color": line.colour, "alpha": 0.22 if many else 0.12, "linewidth": 0}
    axes.fill_between(line.x, line.low, line.high, **band)
    if not many:
        reach = np.abs(np.stack([line.low, line.high]) - line.y)
        look: dict[str, Any] = {"ecolor": line.colour, "elinewidth": 1.2, "capsize": 6}
        axes.errorbar(line.x, line.y, reach, fmt="none", **look)


def _draw_gone(axes: Axes, line: Line) -> None:
    floor = np.full(line.gone.size, axes.get_ylim()[0])
    axes.plot(
        *(line.gone, floor, "x"),
        color=line.colour,
        markersize=7,
        clip_on=False,
        zorder=5,
        gid="gone",
    )


def _scale_x(axes: Axes, values: np.ndarray, words: ChartText) -> None:
    least, most = values.min(), values.max()
    if words.doubling or len(np.unique(values)) > _MANY or most / least > _MANY:
        axes.set_xscale("log", base=2)
        axes.set_xlim(least / 1.12, most * 1.12)
        powers = 2.0 ** np.arange(np.ceil(np.log2(least)), np.floor(np.log2(most)) + 1)
        axes.set_xticks([*powers, *([most] if most > 1.2 * powers[-1] else [])])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.04 * (most - least) or 0.5
        axes.set_xlim(least - margin, most + margin)
        whole = np.arange(np.ceil(least), most + 1)
        axes.set_xticks(whole[:: -(-len(whole) // _MANY)])
    axes.xaxis.set_major_formatter(FuncFormatter(plain))


def _scale_y(axes: Axes, lines: Sequence[Line], scale: Scale) -> Span:
    span = scale if isinstance(scale, Span) else _span(lines, scale)
    if span.log:
        log_y(axes, span.low, span.high)
    else:
        axes.set_ylim(0, 1.1 * span.high)
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
    return span


def _span(lines: Sequence[Line], scale: str) -> Span:
    values = np.concatenate([line.y for line in lines])
    reach = np.concatenate([values, *(bound for line in lines for bound in (line.low, line.high))])
    reach = reach[np.isfinite(reach)]
    wide = scale == "auto" and values.max() / values.min() > LOG_FROM
    return Span(scale == "log" or wide, float(reach.min()), float(reach.max()))


def log_y(axes: Axes, least: float, most: float) -> None:
    """A logarithmic axis around `least` and `most`, with plain numbers at its ticks."""
    decades = np.log10(most / least)
    steps = (1,) if decades > 4 else (1, 2, 5) if decades > 0.7 else range(1, 10)
    axes.set_yscale("log")
    axes.set_ylim(least / 1.2, most * 1.2)
    axes.set_ylabel(f"{axes.get_ylabel()}, log scale")
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain))


def plain(value: float, _position: int | None = None) -> str:
    """A tick's label: no exponent."""
    return f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"


def _label(figure: Picture, axes: Axes, lines: Sequence[Line]) -> None:
    labels = label_ends(axes, [_end(axes, line) for line in lines])
    widest = max(text.get_window_extent().width for text in labels) / figure.dpi
    figure.subplots_adjust(right=1 - (widest + 0.4) / WIDTH)


def _end(axes: Axes, line: Line) -> EndLabel:
    if line.x.size:
        return EndLabel(line.label, line.x[-1], line.y[-1], ink(line.colour))
    x, y = axes.get_xlim()[1], axes.get_ylim()[0]
    return EndLabel(line.label, x, y, ink(line.colour), leader=False)


def caption(figure: Picture, title: str, notes: Sequence[str]) -> None:
    """Write `title` over the picture and `notes` under it."""
    height = figure.get_figheight()
    figure.text(
        _MARGIN / WIDTH, 1 - 0.15 / height, title, fontsize=12, weight="bold", va="top", gid="title"
    )
    figure.text(
        _MARGIN / WIDTH,
        0.12 / height,
        "\n".join(notes),
        fontsize=8,
        color=_GREY,
        va="bottom",
        linespacing=1.45,
        gid="notes",
    )


def ink(colour: str) -> str:
    """`colour`, dark enough for text on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.75 * red, 0.75 * green, 0.75 * blue))
