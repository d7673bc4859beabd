"""Every pass of a visit, one dot each: whether its numbers can be believed."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes

from scalebench_lib.analysis.labels import EndLabel, label_ends
from scalebench_lib.analysis.picture import STYLE, Picture
from scalebench_lib.record import Point, Record


def samples(record: Record) -> Picture:
    """The passes of `record` over time, in ms and s: dots, their median and its 95 % interval."""
    figure = Picture(figsize=(8.4, 4.0))
    figure.alt = f"Every pass of {record.config}"
    with rc_context(STYLE):
        axes = figure.add_subplot(
            xlabel="seconds since the first pass", ylabel="latency of a pass, ms"
        )
        colours = sns.color_palette("colorblind", len(record.points))
        ends = [
            _draw(axes, point, colour)
            for point, colour in zip(record.points, colours.as_hex(), strict=True)
        ]
        axes.set_title(figure.alt, loc="left", fontsize=11, weight="bold")
        axes.set_ylim(bottom=0)
        sns.despine(ax=axes)
        figure.subplots_adjust(right=0.86, bottom=0.14)
        label_ends(axes, ends)
    return figure


def _draw(axes: Axes, point: Point, colour: str) -> EndLabel:
    found, seconds = point.statistics, np.asarray(point.started_ns) / 1e9
    axes.plot(seconds, np.asarray(point.samples_ns) / 1e6, ".", color=colour, alpha=0.6)
    axes.axhline(found.median / 1e6, color=colour, linewidth=1)
    if found.low is not None and found.high is not None:
        axes.axhspan(found.low / 1e6, found.high / 1e6, color=colour, alpha=0.2, linewidth=0)
    label = f"{point.threads} thread{'s' * (point.threads != 1)}"
    return EndLabel(label, axes.get_xlim()[1], found.median / 1e6, colour)
