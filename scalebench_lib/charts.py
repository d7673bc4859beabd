"""Figures as data: lines, cells, dots or bars, with their axes, colours and texts.

`analysis.figures` makes charts of a sweep's table. matplotlib (`analysis.draw`) and the page's
script only draw them: every label, number and colour is decided here. An optimization has the same
colour and mark in every chart, visible on white and on black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from scalebench_lib.optimizations import OPTIMIZATIONS
from scalebench_lib.stats import MIN_TURNS
from scalebench_lib.text import format_number, pluralize

Scale = Literal["auto", "linear", "log"]

LOG_FROM = 10
"""A y axis whose values span a larger factor is logarithmic: small values would overlap."""

LOG_DOTS_FROM = 3
"""The same for dots, where a single outlier would flatten all others."""

MANY = 16
"""An x axis of more values is logarithmic."""

MANY_POINTS = MANY // 2
"""Lines of more points have bands for intervals, and small marks."""

HALF_WIDTH = 0.28
"""Half the width of a column of dots, which are drawn in the order made."""

MIN_LABEL = 0.07
"""Smaller parts of bars, as a share of the axis, have no room for their value."""

_MAX_MISSING = 5
_COLOURS = (
    *("#6e7681", "#c05c00", "#b0389b", "#d03a4a", "#1a78c2", "#0f8a8f", "#3c8a2e", "#8a7400"),
    *("#7a5cd6", "#a0603c", "#4f6fb5", "#c2407a", "#5f8a1f", "#2b7a9b"),
)
_MARKERS = "osD^vPp*<>dhH8"  # not x: a cross is a config that failed
_FAINT = "#6e7681"


def style_of(table: pd.DataFrame, optimization: str) -> tuple[str, str]:
    """Return colour and marker of an optimization: the built-in ones have theirs everywhere.

    The others of `table` (of plugins, or with an allocator) get those that it leaves free.
    """
    known, shown = list(OPTIMIZATIONS)[: len(_COLOURS)], set(table["optimization"].unique())
    if optimization in known:
        place, again = known.index(optimization), 0
    else:
        free = [n for n in range(len(_COLOURS)) if known[n] not in shown] or range(len(_COLOURS))
        again, number = divmod(sorted(shown - set(known)).index(optimization), len(free))
        place = free[number]
    return _COLOURS[place], _MARKERS[(place + again) % len(_MARKERS)]


def batch_size_colours(batch_size: int) -> tuple[str, str]:
    """Return the colours of a batch size on white and on black, strongest for 1024."""
    share = min(np.log2(batch_size) / 10, 1)
    light = colormaps["viridis_r"](0.2 + 0.8 * share)
    dark = colormaps["viridis"](0.25 + 0.75 * share)
    return to_hex(light), to_hex(dark)


def tick_label(value: float) -> str:
    """Return a tick's label, without an exponent."""
    return f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, in units of the data, with its `ticks`."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    @property
    def texts(self) -> list[str]:
        return [tick_label(tick) for tick in self.ticks]


def x_axis(label: str, values: np.ndarray, doubling: bool) -> Axis:
    """Return an axis for counts: logarithmic if they are `doubling`, many, or span much."""
    least, most = float(values.min()), float(values.max())
    if doubling or len(np.unique(values)) > MANY or most / least > MANY:
        powers = 2.0 ** np.arange(np.ceil(np.log2(least)), np.floor(np.log2(most)) + 1)
        ends = [most] if not powers.size or most > 1.2 * powers[-1] else []
        return Axis(label, least / 1.12, most * 1.12, (*powers.tolist(), *ends), log=True)
    margin = 0.04 * (most - least) or 0.5
    whole = np.arange(np.ceil(least), most + 1)
    ticks = whole[:: -(-len(whole) // MANY)]
    return Axis(label, least - margin, most + margin, tuple(ticks.tolist()))


def y_axis(label: str, least: float, most: float, log: bool) -> Axis:
    """Return a logarithmic axis around `least` and `most`, or a linear one from 0."""
    low, high = (least / 1.2, most * 1.2) if log else (0.0, 1.1 * most)
    ticks = list(_log_ticks(low, high)) if log else []
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(7).tick_values(low, high) if low <= tick <= high]
    return Axis(f"{label}, log scale" if log else label, low, high, tuple(map(float, ticks)), log)


def _log_ticks(low: float, high: float) -> Iterator[float]:
    decades = np.log10(high / low)
    steps = (1,) if decades > 4 else (1, 2, 5) if decades > 0.85 else range(1, 10)
    for power in np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high))):
        yield from (t for step in steps if low <= (t := step * 10.0**power) <= high)


@dataclass(frozen=True, eq=False)
class DataPoints:
    """Points with their values `y`, bounds (NaN if unknown), and the texts of their tooltips."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    names: Sequence[str] = ()
    details: Sequence[str] = ()

    @classmethod
    def exact(cls, x: ArrayLike, y: ArrayLike, names: Sequence[str] = ()) -> DataPoints:
        """Return points without intervals and details."""
        xs, ys = np.asarray(x, float), np.asarray(y, float)
        unknown = np.full(len(ys), np.nan)
        return cls(xs, ys, unknown, unknown, names)

    @property
    def bounded(self) -> np.ndarray:
        bounded: np.ndarray = np.isfinite(self.high - self.low) & (self.high > self.low)
        return bounded

    @property
    def values(self) -> list[str]:
        """The values as texts."""
        return [format_number(value) for value in self.y]

    @property
    def intervals(self) -> list[str]:
        """Their intervals as texts, empty where they are unknown."""
        bounds = zip(self.low, self.high, self.bounded, strict=True)
        return [
            f"{format_number(a)} – {format_number(b)}" if known else "" for a, b, known in bounds
        ]


@dataclass(frozen=True, eq=False)
class Line:
    """A line through `marks`, ordered by x; `coarse` ones are hollow.

    Crosses at `missing_at` on the x axis are points that failed or were skipped. A line without
    marks is a label that says so. A `reference` is a line to compare others with.
    """

    label: str
    colour: str
    marker: str = ""
    dashed: bool = False
    marks: DataPoints = field(default_factory=lambda: DataPoints.exact([], []))
    coarse: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    missing_at: Sequence[float] = ()
    reference: bool = False
    dark: str | None = None

    @classmethod
    def reference_of(cls, label: str, x: Sequence[float], y: Sequence[float]) -> Line:
        return cls(label, _FAINT, marks=DataPoints.exact(x, y), reference=True)


@dataclass(frozen=True, eq=False)
class Cells:
    """A cell for each of `marks`, in the column of its x and the row of its `row`.

    Rows without a cell failed or were skipped. Colours are on a log scale; the best value is the
    brightest.
    """

    rows: Sequence[int]
    row: np.ndarray
    marks: DataPoints
    better_low: bool = False

    @property
    def columns(self) -> list[float]:
        return sorted(set(self.marks.x.tolist()))

    @property
    def shades(self) -> np.ndarray:
        """The logs of the values scaled to 0 … 1, the best at 1."""
        logs = np.log(self.marks.y)
        span = logs.max() - logs.min()
        shades = (logs - logs.min()) / span if span else np.full(len(logs), 0.5)
        return 1 - shades if self.better_low else shades

    @property
    def colours(self) -> list[str]:
        return [to_hex(colormaps["viridis"](shade)) for shade in self.shades]

    @property
    def missing(self) -> list[int]:
        return [row for row in self.rows if row not in self.row]


@dataclass(frozen=True, eq=False)
class SampleDots:
    """A column of dots: `passes` in the order made; each `outlier` is a cross."""

    label: str
    colour: str
    passes: np.ndarray
    outlier: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.passes))

    @property
    def value(self) -> str:
        return format_number(self.median)

    @property
    def detail(self) -> str:
        return f"{len(self.passes):,} passes, {int(self.outlier.sum()):,} of them outliers"


@dataclass(frozen=True, eq=False)
class BarSegments:
    """A part of the bars of a chart: in bar `row` it begins at x of `marks`, and is y long."""

    label: str
    colour: str
    row: np.ndarray
    marks: DataPoints


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure as data: `lines`, `cells`, `dots`, or `bars` (their names) made of `parts`.

    It shows `rows` of the table. `scale` is that of the y axis, `span` its range if other than that
    of the values; x is in powers of two if `doubling`. The caption has the `source` (machine and
    date), the `setting`, the `missing` configs, and a `note` on how to read it.
    """

    title: str
    x_label: str
    y_label: str
    unit: str
    rows: pd.DataFrame
    source: str = ""
    setting: str = ""
    missing: Sequence[str] = ()
    note: str = ""
    lines: Sequence[Line] = ()
    cells: Cells | None = None
    dots: Sequence[SampleDots] = ()
    bars: Sequence[str] = ()
    parts: Sequence[BarSegments] = ()
    doubling: bool = False
    scale: Scale = "auto"
    span: tuple[float, float] | None = None

    @property
    def caption(self) -> list[str]:
        """The lines of the caption: source and setting, how to read it, missing configs."""
        source = " · ".join(filter(None, [self.source, self.setting]))
        left = len(self.missing) - _MAX_MISSING
        more = [f"… and {left} more that failed or were skipped."] if left > 0 else []
        how = self.note or " ".join(self._how_to_read())
        return [source, *filter(None, [how]), *self.missing[:_MAX_MISSING], *more]

    def _how_to_read(self) -> Iterator[str]:
        if any(line.marks.bounded.any() for line in self.lines):
            intervals = "Bands" if self.is_dense else "Bars"
            yield f"{intervals}: 95 % intervals, where wider than the mark."
        if any(line.coarse.any() for line in self.lines):
            yield f"Hollow marks: coarse, fewer than {MIN_TURNS} turns."
        if any(line.missing_at for line in self.lines):
            yield "Crosses: failed or skipped."

    @property
    def is_dense(self) -> bool:
        """True if intervals are bands, and marks small."""
        return max((line.marks.x.size for line in self.lines), default=0) > MANY_POINTS

    @property
    def x(self) -> Axis:
        every = [np.asarray(v) for line in self.lines for v in (line.marks.x, line.missing_at)]
        return x_axis(self.x_label, np.concatenate(every), self.doubling)

    @property
    def y(self) -> Axis:
        return y_axis(self.y_label, *(self.span or self.extent), self.log)

    @property
    def axes(self) -> dict[str, Axis]:
        """The x axis of `lines`, and the y axis on each scale; `cells` have none."""
        if self.bars:
            longest = max((part.marks.x + part.marks.y).max() for part in self.parts)
            return {"x": y_axis(self.x_label, 0, longest / 1.1, log=False)}
        x = {"x": self.x} if self.lines else {}
        scales: list[Scale] = [] if self.cells else ["linear", "log"]
        return x | {scale: replace(self, scale=scale).y for scale in scales}

    @property
    def log(self) -> bool:
        """True if the y axis is logarithmic: with ``auto``, if the values span much."""
        if self.scale == "auto":
            lines = [line.marks.y for line in self.lines] or [np.ones(1)]
            values = np.concatenate([dots.passes for dots in self.dots] or lines)
            return bool(values.max() / values.min() > (LOG_DOTS_FROM if self.dots else LOG_FROM))
        return self.scale == "log"

    @property
    def extent(self) -> tuple[float, float]:
        """The least and the largest of its values, intervals included that have an end."""
        marks = [line.marks for line in self.lines]
        bounds = np.concatenate([[], *(bound for one in marks for bound in (one.low, one.high))])
        ends = bounds[(bounds > 0) & (bounds < np.inf)]  # of two noisy turns: 0 to infinity
        every = np.concatenate(
            [*(one.y for one in marks), *(dots.passes for dots in self.dots), ends]
        )
        return float(np.nanmin(every)), float(np.nanmax(every))

    @property
    def alt(self) -> str:
        """The alternative text: title and values in words."""
        return f"{self.title}. {'; '.join(self._in_words())}."

    def _in_words(self) -> Iterator[str]:
        for line in self.lines:
            if line.marks.x.size and not line.reference:
                ends = zip(line.marks.y[[0, -1]], line.marks.x[[0, -1]], strict=True)
                said = [f"{format_number(y)} at {tick_label(x)}" for y, x in ends]
                yield f"{line.label}: {', '.join(dict.fromkeys(said))}"
        if self.cells:
            least, most = (format_number(f(self.cells.marks.y)) for f in (np.min, np.max))
            yield f"From {least} to {most} over {pluralize(self.cells.marks.y.size, 'point')}"
        yield from self.bars
        for part in self.parts:
            span = dict.fromkeys(format_number(f(part.marks.y)) for f in (np.min, np.max))
            yield f"{part.label}: {'–'.join(span)} {self.unit}"
        for dots in self.dots:
            yield f"{dots.label}: median {dots.value} of {dots.detail}"


def share_y_axis(charts: Sequence[Chart]) -> list[Chart]:
    """Return `charts` with one y axis, to compare heights; cells and bars have none."""
    if len(charts) < 2 or any(chart.cells or chart.bars for chart in charts):
        return list(charts)
    lows, highs = zip(*(chart.extent for chart in charts), strict=True)
    scale: Scale = "log" if any(chart.log for chart in charts) else "linear"
    return [replace(chart, scale=scale, span=(min(lows), max(highs))) for chart in charts]
