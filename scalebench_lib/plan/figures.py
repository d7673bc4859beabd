"""Pictures of plans, each with a sentence that is computed from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from IPython.display import display
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from scalebench_lib.machine import Core
from scalebench_lib.notebook import say
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.picture import Picture
from scalebench_lib.plan.decide import Context, Decision
from scalebench_lib.plan.planner import Plan
from scalebench_lib.text import format_number, pluralize

_IDLE, _INK, _PALE, _MARK = "0.93", "0.25", "0.55", "#0072b2"
_ROW = 16
"""Cores in a row of the picture of cores."""

_RUN = ("a batch, one instance", "s"), ("a batch, several", "o"), ("requests, their tail", "^")

CLOSE = 0.1
"""What a prediction may be off by: the band in the picture of predictions."""


def show(picture: Picture) -> None:
    """Show `picture`, unless it is empty, and its sentence in a notebook."""
    if picture.axes:
        display(picture)
    say(*picture.sentence.splitlines())


def cores(decision: Decision) -> Picture:
    """Draw the machine's cores, coloured by the instance that runs there; idle ones grey."""
    plan, every = decision.best, decision.context.machine.cores
    sockets = [list(some) for _, some in groupby(every, key=lambda core: core.socket)]
    rows = [one[start : start + _ROW] for one in sockets for start in range(0, len(one), _ROW)]
    title = f"{plan} on {plan.cores} of {len(every)} cores"
    figure, axes = canvas(title, height=1.0 + 0.8 * len(rows))
    owner = {cpu: n for n, one in enumerate(decision.placed) for cpu in one.cpus}
    for y, row in enumerate(rows):
        for x, core in enumerate(row):
            _draw_core(axes, core, x, -y, owner)
        axes.text(-0.15, 0.42 - y, f"socket {row[0].socket}", ha="right", va="center", color=_PALE)
    axes.set(xlim=(-1.2, max(_ROW / 2, *map(len, rows))), ylim=(0.9 - len(rows), 1))
    axes.axis("off")
    kinds = ", ".join(sorted(map(optimization_title, plan.optimizations)))
    legend = f"Numbers: CPU, and #instance. Optimization: {kinds}. Grey: idle."
    if not decision.context.record:
        legend += " CPU numbers are made up."
    figure.text(0.02, 0.03, legend, fontsize=8, color=_INK)
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


def frontier(context: Context) -> Picture:
    """Draw throughput over latency, of the plans that none beats and of the measured points."""
    plans, unit = context.frontier(), context.profile.unit
    figure, axes = canvas("What can be had: latency against throughput", height=4.2)
    single = [context.known(Plan.of([one])) for one in context.profile.instances]
    points = [plan for plan in single if plan.cores <= context.cores]
    axes.plot(*_latency_throughput(points), "o", color="0.75", label="one instance")
    axes.step(
        *_latency_throughput(plans), where="post", marker="o", color=_MARK, label="the best plans"
    )
    ends = {"soonest": (plans[0], "<"), "most": (plans[-1], ">")}
    for name, (plan, mark) in ends.items():
        label = f"{name}: batch {plan.batch_size}, {plan}"
        axes.plot(plan.latency_ms, plan.throughput, mark, color=_MARK, markersize=10, label=label)
    logarithmic(axes, "x")
    axes.set(xlabel="latency of one batch (ms)", ylabel=f"throughput ({unit})")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower left", frameon=False, ncols=2, fontsize=9)
    figure.sentence = "\n".join(
        f"{name}: {plan.summary}, {format_number(plan.throughput, 4)} {unit}"
        for name, (plan, _) in ends.items()
    )
    return figure


def _latency_throughput(plans: Sequence[Plan]) -> tuple[list[float], list[float]]:
    return [plan.latency_ms for plan in plans], [plan.throughput for plan in plans]


def predictions(context: Context) -> Picture:
    """Draw what plans and requests took over what had been predicted then."""
    seen = [(plan, plan.interval_ms) for plan in context.runs if np.isfinite(plan.predicted_ms)]
    rows = [(+(len(p.instances) > 1), p.predicted_ms, i.value, i.low, i.high) for p, i in seen]
    loads = [(run, run.percentile) for run in context.loads if run.percentile in run.percentiles]
    rows += [(2, run.predicted_ms[q], *run.percentiles[q]) for run, q in loads]
    if not rows:
        figure = Picture()
        figure.sentence = "nothing was run yet: 'scalebench plan OUT … --verify' does"
        return figure
    figure, axes = canvas("Predicted against measured", height=4.6)
    kinds, predicted, measured, low, high = np.array(rows, dtype=float).T
    ends = np.array([min(*predicted, *measured) / 1.3, max(*predicted, *measured) * 1.3])
    axes.fill_between(ends, ends * (1 - CLOSE), ends * (1 + CLOSE), color=_IDLE)
    axes.plot(ends, ends, color=_PALE, linewidth=1)
    reach = np.where(np.isfinite(high), [measured - low, high - measured], 0)
    for kind in np.unique(kinds):
        label, mark = _RUN[int(kind)]
        points = predicted[kinds == kind], measured[kinds == kind], reach[:, kinds == kind]
        axes.errorbar(*points, fmt=mark, color=_MARK, label=label)
    logarithmic(axes, "x", "y")
    axes.set(xlim=ends, ylim=ends, xlabel="predicted (ms)", ylabel="measured (ms)")
    axes.legend(loc="lower right", frameon=False, title=f"band: ±{CLOSE:.0%}")
    off = measured / predicted - 1
    within, worst = int((abs(off) <= CLOSE).sum()), off[np.argmax(abs(off))]
    figure.sentence = (
        f"within 10 % of the prediction: {within} of {pluralize(len(off), 'run')}; "
        f"at worst {worst:+.1%}"
    )
    return figure


def canvas(title: str, height: float = 3.6) -> tuple[Picture, Axes]:
    """Return a picture with its title, and its axes."""
    figure = Picture(figsize=(8.4, height), dpi=110, layout="constrained")
    figure.alt = title
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def logarithmic(axes: Axes, *names: str) -> None:
    """Make axes logarithmic, with plain numbers at 1, 2, 5 of each power, or more where needed."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis: Axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(_PlainTicks(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:,.6g}")


class _PlainTicks(LogLocator):
    """Ticks of a logarithmic axis; equally far apart where it would have fewer than three."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        ticks = super().tick_values(vmin, vmax)
        enough = sum(vmin <= tick <= vmax for tick in ticks) >= 3
        return ticks if enough else MaxNLocator(5).tick_values(vmin, vmax)
