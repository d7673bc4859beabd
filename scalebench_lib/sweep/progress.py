"""Console output of a sweep: summary, progress, time left; and its status line for others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scalebench_lib.config import AXES
from scalebench_lib.disturbances import disturbance_sentences
from scalebench_lib.machine import another_host_warning
from scalebench_lib.optimizations import OPTIMIZATIONS
from scalebench_lib.record import Record
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import write_status
from scalebench_lib.sweep.runner import SweepProgress, run_rounds
from scalebench_lib.sweep.sweep_run import SweepRun
from scalebench_lib.text import format_duration, format_number, pluralize

_SHOW_EVERY_S = 1.0
"""Drawing takes some ms between turns."""


def announce(runs: Sequence[SweepRun], console: Console) -> None:
    """Print what each of `runs` will measure, and how long that takes at most."""
    for machine in dict.fromkeys(str(run.machine) for run in runs):
        _print(console, machine)
    before = (record.machine for run in runs for record in run.records)
    if other_host := another_host_warning(before, (run.machine for run in runs)):
        _print(console, other_host)
    for run in runs:
        schedule, side = run.schedule, f"{run.host or run.out.name}: " * (len(runs) > 1)
        _print(
            console,
            f"{side}{pluralize(len(schedule.left), 'config')} to measure in "
            f"{pluralize(run.sweep.rounds, 'round')}, {len(schedule.done)} done before, "
            f"{len(schedule.failed)} failed before: {'about' if run.records else 'at least'} "
            f"{format_duration(run.seconds_left())}",
        )
    for name in dict.fromkeys(trial.config.optimization for trial in runs[0].schedule.left):
        if (lacking := OPTIMIZATIONS[name].lacking) and runs[0].sweep.hosts == "one":
            _print(console, f"configs of {name} will fail here: {lacking}")


def run_with_progress(
    runs: Sequence[SweepRun], budget_s: float, warm: bool, if_busy: str, console: Console
) -> list[str]:
    """Run the sweeps and show their progress; return warnings, a line each."""
    with ExitStack() as stack:
        for run in runs:
            run.kernels = stack.enter_context(Kernels(warm, run.python))
        display = stack.enter_context(Display(runs, console))
        run_rounds(runs, display.show, budget_s, if_busy)
    warnings = dict.fromkeys(filter(None, (run.kernels.warning for run in runs)))
    return [f"{one}; kernels were started afresh, which takes longer" for one in warnings]


def print_summary(run: SweepRun, console: Console) -> list[str]:
    """Print what is left, and disturbances; return failures, a line each."""
    schedule, complaints = run.schedule, list[str]()
    if schedule.left:
        left = pluralize(len(schedule.left), "config")
        where = f" on {run.host}" if run.host else ""
        _print(console, f"{left} left{where}: the same command goes on from here")
    if failed := sum(record.status == "failed" for _, record in schedule.failed):
        complaints.append(
            f"{pluralize(failed, 'config')} failed: 'scalebench status {run.out}' says why"
        )
    for line in disturbance_sentences(run.records):
        _print(console, line)
    return complaints


class Display(Live):
    """The progress of `runs`: a line for each record, and the present `SweepProgress` below."""

    def __init__(self, runs: Sequence[SweepRun], console: Console) -> None:
        super().__init__(console=console, auto_refresh=False, transient=True)
        self._runs, self._next = runs, 0.0

    def say(self, line: str) -> None:
        _print(self.console, line)

    def show(self, step: SweepProgress) -> None:
        """Draw between turns, at most once a second: no thread may go on afterwards."""
        if step.record is not None:
            side = step.run.out.name if step.run and len(self._runs) > 1 else ""
            where = f"{step.record.host or side}, ".removeprefix(", ")
            self.say(f"round {step.round}, {where}{step.record.config}: {_found(step.record)}")
        if step.doing != "in turn" or time.monotonic() >= self._next:
            self.update(_drawn(step), refresh=self.console.is_terminal)
            for run in self._runs:
                write_status(run.out, _status_line(step))
            self._next = time.monotonic() + _SHOW_EVERY_S


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=not console.is_terminal, markup=False)


def _status_line(step: SweepProgress) -> str:
    return f"round {step.round}, {step.done} of {step.total} trials, {_doing(step)}, {_left(step)}"


def _doing(step: SweepProgress) -> str:
    if step.doing != "in turn":
        return step.doing
    cycles = f", {pluralize(step.block.cycle, 'cycle')}" if step.block.cycle else ""
    return f"{pluralize(len(step.block.members), 'trial')} in turn{cycles}"


def _left(step: SweepProgress) -> str:
    return f"about {format_duration(step.seconds_left)} left"


def _drawn(step: SweepProgress) -> Group:
    """Return a bar, the activity, and the points of the block with their intervals.

    The terminal cuts off the last of many.
    """
    points, bar = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
    done = ProgressBar(total=max(1, step.total), completed=step.done, width=30)
    bar.add_row(done, f"{step.done}/{step.total} trials of round {step.round}", _left(step))
    for member in step.block.members:
        label = member.trial.config.label(AXES, always=("batch_size", "optimization"))
        for threads, point in member.points.items():
            latency = Text(f"{format_number(point.median_ns / 1e6)} ms", justify="right")
            known = "" if point.half_width is None else f"± {100 * point.half_width:.1f} %"
            if point.turns:
                points.add_row(label, pluralize(threads, "thread"), latency, known)
    return Group(bar, Text(_doing(step)), points)


def _found(record: Record) -> str:
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    early = ", interrupted" if record.ended_by == "interrupted" else ""
    points = ", ".join(
        f"{pluralize(point.threads, 'thread')} {format_number(point.median_ns / 1e6)} ms"
        for point in record.points
    )
    return f"{points}{early}"
