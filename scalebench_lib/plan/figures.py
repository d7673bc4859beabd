"""Pictures of plans: which cores serve what, what splitting gains, and what came true."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from scalebench_lib.machine import Core
from scalebench_lib.plan.decide import Decision, Ground
from scalebench_lib.plan.interference import Observation
from scalebench_lib.plan.placement import Placed
from scalebench_lib.plan.planner import Plan

_WIDTH, _DPI = 8.4, 110
_IDLE, _INK, _PALE = "0.93", "0.25", "0.55"
_MARK = "#0072b2"
_ROW = 16
"""Cores in a row of the picture of cores."""

CLOSE = 0.1
"""What a prediction may be off by: the band in the picture of predictions."""


class Drawing(Figure):
    """A figure that shows itself in a notebook, with `alt` in words."""

    alt = ""

    def png(self) -> bytes:
        """The figure as PNG."""
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": b64encode(self.png()).decode("ascii"), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def cores(decision: Decision) -> Drawing:
    """The machine's cores, a box each, coloured by the instance that has them; idle ones grey."""
    plan, machine = decision.best.plan, decision.ground.machine
    rows = [
        (socket, some[start : start + _ROW])
        for socket, of_socket in groupby(machine.cores, key=lambda core: core.socket)
        for some in [list(of_socket)]
        for start in range(0, len(some), _ROW)
    ]
    title = f"{plan}: batch {plan.batch_size} on {plan.cores:g} of {len(machine.cores)} cores"
    figure, axes = _canvas(title, height=1.0 + 0.8 * len(rows))
    owner = {cpu: n for n, one in enumerate(decision.placed) for cpu in one.cpus}
    for row, (socket, some) in enumerate(rows):
        for column, core in enumerate(some):
            _core(axes, core, column, -row, owner)
        axes.text(-0.15, -row + 0.42, f"socket {socket}", ha="right", va="center", color=_PALE)
    axes.set(
        xlim=(-1.2, max(_ROW / 2, *(len(some) for _, some in rows))), ylim=(0.9 - len(rows), 1)
    )
    axes.axis("off")
    figure.text(0.02, 0.03, _legend(decision.placed), fontsize=8, color=_INK)
    return figure


def _core(axes: Axes, core: Core, x: float, y: float, owner: dict[int, int]) -> None:
    """A core: beside each other its hardware threads, each with its CPU number."""
    width = 0.92 / len(core.cpus)
    for place, cpu in enumerate(core.cpus):
        owned = owner.get(cpu)
        colour = _IDLE if owned is None else colormaps["tab20"](owned % 20)
        left = x + place * width
        axes.add_patch(Rectangle((left, y), width, 0.84, facecolor=colour, edgecolor="white"))
        words = f"{cpu}" if owned is None else f"{cpu}\n#{owned + 1}"
        ink = _PALE if owned is None else "black"
        small = 8 if len(core.cpus) == 1 else 6
        axes.text(
            left + width / 2, y + 0.42, words, ha="center", va="center", fontsize=small, color=ink
        )


def _legend(instances: Sequence[Placed]) -> str:
    shapes = dict.fromkeys(f"{one.option} {one.option.optimization}" for one in instances)
    return (
        f"Numbers: CPU, and #instance. Instances ⟨threads, batch⟩: {', '.join(shapes)}. Grey: idle."
    )


def speedups(ground: Ground) -> tuple[Drawing, dict[int, float]]:
    """How many times as fast as fat the best plan is, by profiled batch size; the numbers too."""
    found = {}
    for size in ground.profile.batch_sizes:
        fat = ground.fat(size)
        if fat and ground.planner.reachable(size):
            found[size] = fat.predicted_ms / ground.fastest(size).predicted_ms
    figure, axes = _canvas("The best plan against one instance on all cores, by batch size")
    _logarithmic(axes, "x", list(found) or ground.profile.batch_sizes)
    axes.axhline(1, color=_PALE, linewidth=1)
    axes.plot(list(found), list(found.values()), marker="o", color=_MARK)
    for size, ratio in found.items():
        axes.annotate(
            f"{ratio:.2f}×", (size, ratio), (0, 7), textcoords="offset points", ha="center"
        )
    most = max(found.values(), default=1.0)
    axes.set(xlabel="batch size", ylabel="times as fast as fat", ylim=(0, 1.15 * max(most, 1)))
    return figure, found


def frontier(ground: Ground, plans: Sequence[Plan]) -> Drawing:
    """Throughput against latency: the plans that none beats, over the points of the profile."""
    figure, axes = _canvas("What can be had: latency against throughput")
    points = [one for one in ground.profile.options if one.cores <= ground.cores]
    alone = [one.latency_ms for one in points]
    axes.plot(
        alone,
        [one.batch_size / one.latency_ms * 1e3 for one in points],
        "o",
        color="0.75",
        label="one instance, as profiled",
    )
    latency, throughput = [p.predicted_ms for p in plans], [p.throughput for p in plans]
    axes.step(latency, throughput, where="post", marker="o", color=_MARK, label="the best plans")
    for plan in (plans[0], plans[-1]) if len(plans) > 1 else plans:
        axes.annotate(
            f"batch {plan.batch_size}: {plan}",
            (plan.predicted_ms, plan.throughput),
            (0, 8),
            textcoords="offset points",
            ha="left" if plan is plans[0] else "right",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    _logarithmic(axes, "x", [*alone, *latency])
    axes.set(xlabel="latency of one batch (ms)", ylabel="throughput (inferences/s)")
    axes.set_ylim(0, 1.2 * max(throughput))
    axes.legend(loc="upper left", frameon=False)
    return figure


def predictions(seen: Iterable[Observation]) -> Drawing:
    """Predicted against measured latency of the plans that were run, as they were predicted."""
    runs = list(seen)
    figure, axes = _canvas("Predicted against measured", height=4.6)
    both = [value for run in runs for value in (run.predicted_ms, run.measured_ms)]
    ends = np.array([min(both) / 1.3, max(both) * 1.3])
    axes.fill_between(ends, ends * (1 - CLOSE), ends * (1 + CLOSE), color=_IDLE)
    axes.plot(ends, ends, color=_PALE, linewidth=1)
    for count, mark in ((1, "o"), (2, "s")):
        some = [run for run in runs if min(len(run.instances), 2) == count]
        middle = np.array([[run.predicted_ms, run.measured_ms] for run in some]).reshape(-1, 2)
        reach = np.array(
            [[run.measured_ms - run.low_ms, run.high_ms - run.measured_ms] for run in some]
        )
        label = "one instance" if count == 1 else "several instances"
        if some:
            axes.errorbar(
                x=middle[:, 0],
                y=middle[:, 1],
                yerr=reach.T,
                fmt=mark,
                color=_MARK,
                mfc="white" if count == 1 else _MARK,
                label=label,
            )
    for which in ("x", "y"):
        _logarithmic(axes, which, both)
    axes.set(xlim=ends, ylim=ends, xlabel="predicted (ms)", ylabel="measured (ms)")
    axes.legend(loc="lower right", frameon=False, title=f"band: ±{CLOSE:.0%}")
    return figure


def _canvas(title: str, height: float = 3.6) -> tuple[Drawing, Axes]:
    figure = Drawing(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.alt = title
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _logarithmic(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5 of each power, or at few values."""
    least, most = min(values), max(values)
    powers = 10.0 ** np.arange(np.floor(np.log10(least)), np.ceil(np.log10(most)) + 1)
    ticks = np.outer(powers, [1, 2, 5]).ravel()
    whole = sorted(set(values))
    if len(whole) <= 12 and all(value == int(value) for value in whole):
        ticks = np.array(whole)
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([tick for tick in ticks if least / 1.3 <= tick <= most * 1.3])
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
