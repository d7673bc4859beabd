"""Axes hold all values with ticks that can be read; charts beside each other share one."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.analysis.draw import draw
from scalebench_lib.charts import (
    Chart,
    DataPoints,
    Line,
    share_y_axis,
    style_of,
    tick_label,
    x_axis,
    y_axis,
)
from scalebench_lib.optimizations import OPTIMIZATIONS


def chart(*values: float) -> Chart:
    """A chart of one line through `values`, without intervals."""
    x, unknown = np.arange(1.0, len(values) + 1), np.full(len(values), np.nan)
    marks = DataPoints(x, np.array(values), unknown, unknown)
    return Chart(
        "title", "x", "y", "ms", pd.DataFrame(), lines=[Line("line", "#000000", marks=marks)]
    )


def test_counts_have_whole_ticks_and_powers_of_two_where_they_span_much() -> None:
    """16 cores are the most on a linear axis; the last count is there as well."""
    assert x_axis("cores", np.array([1.0, 2, 3, 4]), doubling=False).ticks == (1, 2, 3, 4)
    assert x_axis("cores", np.array([0.5, 12.0]), doubling=False).ticks == (0.5, 1, 2, 4, 8, 12)
    assert not x_axis("cores", np.array([1.0, 16.0]), doubling=False).log
    assert x_axis("batch size", np.array([3.0]), doubling=True).ticks == (3,)


@pytest.mark.parametrize("span", [(1.5, 1.6), (3, 20), (0.002, 0.9), (1, 90), (1, 1e6)])
def test_a_logarithmic_axis_has_ticks_within_it(span: tuple[float, float]) -> None:
    """At least two, whatever it spans."""
    axis = y_axis("latency (ms)", *span, log=True)
    assert axis.low < span[0] < span[1] < axis.high
    assert len(axis.ticks) >= 2
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert axis.label == "latency (ms), log scale"


def test_a_linear_axis_begins_at_zero() -> None:
    """So that lengths can be compared."""
    axis = y_axis("latency (ms)", 90, 100, log=False)
    assert (axis.low, axis.ticks[0]) == (0, 0)
    assert axis.high > 100


def test_charts_beside_each_other_have_one_axis() -> None:
    """Logarithmic if one of them is."""
    small, large = share_y_axis([chart(1, 2), chart(5, 500)])
    assert small.y == large.y
    assert small.y.log
    assert (small.extent, small.span) == ((1, 2), (1, 500))


def test_a_scale_that_is_asked_for_overrules_the_automatic_choice() -> None:
    """Either way."""
    assert not replace(chart(1, 500), scale="linear").y.log
    assert replace(chart(1, 2), scale="log").y.log


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_an_interval_without_end_does_not_stretch_the_axis(scale: str) -> None:
    """Two noisy turns say nothing: a speed-up from 0 to infinity."""
    endless = replace(chart(3).lines[0].marks, low=np.zeros(1), high=np.full(1, np.inf))
    drawn = replace(chart(3), scale=scale, lines=[replace(chart(3).lines[0], marks=endless)])
    assert drawn.extent == (3, 3)
    assert draw(drawn).png()


def test_the_alternative_text_holds_the_ends_of_each_line() -> None:
    """What a reader would take from the picture."""
    assert chart(20, 15, 10).alt == "title. line: 20.0 at 1, 10.0 at 3."
    assert chart(20).alt == "title. line: 20.0 at 1."


def test_numbers_at_ticks_have_no_exponent() -> None:
    """Nor digits that say nothing."""
    assert [tick_label(value) for value in (0.0001, 2.5, 1e4, 12345678)] == [
        *("0.0001", "2.5", "10,000", "12,345,678")
    ]


def test_optimizations_of_others_take_the_colours_that_are_free() -> None:
    """Ours have theirs everywhere; an allocator's line is not that of another optimization."""
    ours, others = list(OPTIMIZATIONS)[:8], [f"none, {name}" for name in ("thp", "tcmalloc")]
    table = pd.DataFrame({"optimization": [*ours, *others]})
    styles = [style_of(table, name) for name in table["optimization"]]
    assert len({colour for colour, _ in styles}) == len(styles)
    assert [style_of(table[:1], name) for name in ours] == styles[:8]


def test_more_optimizations_than_colours_differ_in_their_marks() -> None:
    table = pd.DataFrame({"optimization": ["none", *(f"plugin{n:02}" for n in range(20))]})
    styles = [style_of(table, name) for name in table["optimization"]]
    assert len(set(styles)) == len(styles)
