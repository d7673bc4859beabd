"""Pictures of plans, each with a sentence that is computed from the same numbers."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from IPython.display import display
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from scalebench_lib.machine import Core
from scalebench_lib.picture import Picture
from scalebench_lib.plan.decide import Context, Decision
from scalebench_lib.plan.report import sentences
from scalebench_lib.text import format_number

_IDLE, _INK, _PALE, _MARK = "0.93", "0.25", "0.55", "#0072b2"
_ROW = 16
"""Cores in a row of the picture of cores."""

CLOSE = 0.1
"""What a prediction may be off by: the band in the picture of predictions."""


def show(picture: Picture) -> None:
    """Show `picture`, unless it is empty, and its sentence in a notebook."""
    if picture.axes:
        display(picture)
    print(picture.sentence)


def cores(decision: Decision) -> Picture:
    """Draw the machine's cores, coloured by the instance that runs there; idle ones grey."""
    plan, every = decision.best, decision.context.machine.cores
    sockets = [list(some) for _, some in groupby(every, key=lambda core: core.socket)]
    rows = [one[start : start + _ROW] for one in sockets for start in range(0, len(one), _ROW)]
    title = f"{plan}: batch {plan.batch_size} on {plan.cores} of {len(every)} cores"
    figure, axes = _canvas(title, height=1.0 + 0.8 * len(rows))
    owner = {cpu: n for n, one in enumerate(decision.placed) for cpu in one.cpus}
    for y, row in enumerate(rows):
        for x, core in enumerate(row):
            _draw_core(axes, core, x, -y, owner)
        axes.text(-0.15, 0.42 - y, f"socket {row[0].socket}", ha="right", va="center", color=_PALE)
    axes.set(xlim=(-1.2, max(_ROW / 2, *map(len, rows))), ylim=(0.9 - len(rows), 1))
    axes.axis("off")
    kinds = ", ".join(dict.fromkeys(f"{one} {one.optimization}" for one in plan.instances))
    legend = f"Numbers: CPU, and #instance. Instances ⟨threads, batch⟩: {kinds}. Grey: idle."
    figure.text(0.02, 0.03, legend, fontsize=8, color=_INK)
    figure.sentence = "\n".join(sentences(decision))
    return figure


def _draw_core(axes: Axes, core: Core, x: float, y: float, owner: dict[int, int]) -> None:
    """Draw the hardware threads of a core in a row, each with its CPU number and instance."""
    width = 0.92 / len(core.cpus)
    for left, cpu in zip(np.arange(len(core.cpus)) * width + x, core.cpus, strict=True):
        instance = owner.get(cpu)
        colour = _IDLE if instance is None else colormaps["tab20"](instance % 20)
        axes.add_patch(Rectangle((left, y), width, 0.84, facecolor=colour, edgecolor="white"))
        text = f"{cpu}" if instance is None else f"{cpu}\n#{instance + 1}"
        look: dict[str, Any] = {
            "color": _PALE if instance is None else "black",
            "fontsize": 5 + 4 * width,
        }
        axes.text(left + width / 2, y + 0.42, text, ha="center", va="center", **look)


def gains(context: Context) -> Picture:
    """Draw how many times as fast as fat the best plan is, by profiled batch size."""
    found = {
        size: fat.latency_ms / context.fastest(size).latency_ms
        for size in context.profile.batch_sizes
        if (fat := context.fat(size))
    }
    figure, axes = _canvas("The best plan against one instance on all cores, by batch size")
    _logarithmic(axes, "x")
    axes.set_xticks(context.profile.batch_sizes)
    axes.axhline(1, color=_PALE, linewidth=1)
    axes.plot(list(found), list(found.values()), marker="o", color=_MARK)
    for point in found.items():
        _annotate(axes, f"{point[1]:.2f}×", point, "center")
    most = max(found.values(), default=1.0)
    axes.set(xlabel="batch size", ylabel="times as fast as fat", ylim=(0, 1.15 * max(most, 1)))
    figure.sentence = _gains_sentence(found)
    return figure


def _gains_sentence(gains: dict[int, float]) -> str:
    if not gains:
        return "no batch size was profiled on all cores, so there is no fat to compare with"
    most = max(gains, key=gains.__getitem__)
    none = [str(size) for size, ratio in gains.items() if ratio <= 1]
    at = f"most at batch {most}, {gains[most]:.2f}×" if gains[most] > 1 else "nothing anywhere"
    return f"splitting gains {at}" + (f"; nothing at batch {', '.join(none)}" if none else "")


def frontier(context: Context) -> Picture:
    """Draw throughput over latency, of the plans that none beats and of the profiled points."""
    plans, unit = context.frontier(), context.profile.unit
    figure, axes = _canvas("What can be had: latency against throughput")
    points = [one for one in context.profile.instances if one.cores <= context.cores]
    alone = [one.latency_ms for one in points]
    served = [one.batch_size / one.latency_ms * 1e3 for one in points]
    axes.plot(alone, served, "o", color="0.75", label="one instance, as profiled")
    latency, throughput = [p.latency_ms for p in plans], [p.throughput for p in plans]
    axes.step(latency, throughput, where="post", marker="o", color=_MARK, label="the best plans")
    ends = {"soonest": plans[0], "most": plans[-1]}
    for name, plan in ends.items():
        point, side = (plan.latency_ms, plan.throughput), "left" if name == "soonest" else "right"
        _annotate(axes, f"batch {plan.batch_size}: {plan}", point, side)
    _logarithmic(axes, "x")
    axes.set(xlabel="latency of one batch (ms)", ylabel=f"throughput ({unit})")
    axes.set_ylim(0, 1.2 * max(throughput))
    axes.legend(loc="upper left", frameon=False)
    figure.sentence = "\n".join(
        f"{name}: {plan.summary}, {format_number(plan.throughput, 4)} {unit}"
        for name, plan in ends.items()
    )
    return figure


def predictions(context: Context) -> Picture:
    """Draw the measured latency of the plans that were run over what was predicted then."""
    runs = [plan for plan in context.runs if np.isfinite(plan.predicted_ms)]
    if not runs:
        figure = Picture()
        figure.sentence = "no plan was run yet: 'scalebench plan OUT --batch-size … --verify' does"
        return figure
    figure, axes = _canvas("Predicted against measured", height=4.6)
    found = [(plan.predicted_ms, plan.interval_ms) for plan in runs]
    predicted, measured, low, high = np.array([(x, y.value, y.low, y.high) for x, y in found]).T
    ends = np.array([min(*predicted, *measured) / 1.3, max(*predicted, *measured) * 1.3])
    axes.fill_between(ends, ends * (1 - CLOSE), ends * (1 + CLOSE), color=_IDLE)
    axes.plot(ends, ends, color=_PALE, linewidth=1)
    several = np.array([len(plan.instances) > 1 for plan in runs])
    reach = np.array([measured - low, high - measured])
    for label, mark, which in (("one instance", "s", ~several), ("several", "o", several)):
        points = predicted[which], measured[which], reach[:, which]
        axes.errorbar(*points, fmt=mark, color=_MARK, label=label)
    _logarithmic(axes, "x", "y")
    axes.set(xlim=ends, ylim=ends, xlabel="predicted (ms)", ylabel="measured (ms)")
    axes.legend(loc="lower right", frameon=False, title=f"band: ±{CLOSE:.0%}")
    off = measured / predicted - 1
    within, worst = int((abs(off) <= CLOSE).sum()), off[np.argmax(abs(off))]
    figure.sentence = (
        f"{within} of {len(off)} plans were within 10 % of their prediction; at worst {worst:+.1%}"
    )
    return figure


def _canvas(title: str, height: float = 3.6) -> tuple[Picture, Axes]:
    figure = Picture(figsize=(8.4, height), dpi=110, layout="constrained")
    figure.alt = title
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _annotate(axes: Axes, text: str, point: tuple[float, float], side: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    above: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points"}
    axes.annotate(text, point, ha=side, fontsize=8, bbox=box, **above)


def _logarithmic(axes: Axes, *names: str) -> None:
    """Make axes logarithmic, with plain numbers at 1, 2, 5 of each power."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis: Axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:,.6g}")
