"""The picture of an experiment: by point, measured over expected values with their intervals."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib import rc_context

from scalebench_lib.analysis.draw import STYLE, WIDTH, canvas, title_and_notes
from scalebench_lib.picture import Picture
from scalebench_lib.validation.verdicts import Found

BAND = 0.05
"""Grey: how far from 1 a value may lie."""

_ROW, _CHARACTER = 0.3, 0.068
"""Inches."""


def ratios(title: str, found: Found) -> Picture:
    """Draw values that should be 1, a row a point; bars are 95 % intervals."""
    rows = range(len(found))
    values, low, high = np.array([(one.value, one.low, one.high) for one in found.values()]).T
    with rc_context(STYLE):
        figure, axes = canvas(title, 0, _ROW * (len(found) + 1), xlabel="ratio")
        figure.subplots_adjust(left=(0.4 + _CHARACTER * max(map(len, found))) / WIDTH)
        axes.axvspan(1 - BAND, 1 + BAND, color="0.93", zorder=0)
        axes.axvline(1, color="0.4", linewidth=1)
        axes.errorbar(values, rows, xerr=[values - low, high - values], fmt="o", markersize=4)
        axes.set_yticks(rows, list(found), fontsize=9)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        sns.despine(ax=axes)
        title_and_notes(figure, title, [])
    return figure
