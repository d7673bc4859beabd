"""Labels at the right ends of lines, pushed apart so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Transform, offset_copy
from scipy.optimize import isotonic_regression

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
