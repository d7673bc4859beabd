"""What a sweep tells the person before it: its plan, its progress, its durations."""

from __future__ import annotations

import re

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.runner import Job, Step


def announce(job: Job, console: Console) -> None:
    """Say what the sweep will measure, and how long that takes at most."""
    state = job.state
    console.print(f"{job.machine}", soft_wrap=True)
    console.print(
        f"{len(state.left)} configs to measure in up to {job.sweep.rounds} rounds, "
        f"{len(state.done)} done before, {len(state.failed)} failed before: "
        f"up to {duration(job.forecast())}"
    )


def run_shown(job: Job, kernels: Kernels, budget_s: float, console: Console) -> list[Record]:
    """Run the sweep under a bar that shows where it is; returns the new records."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("[dim]{task.fields[so_far]}, {task.fields[left]} left"),
    )
    with Progress(*columns, console=console, refresh_per_second=0.5) as bar:
        task = bar.add_task("", total=None, so_far="", left="")

        def show(step: Step) -> None:
            told = f"round {step.round}, {step.visit.config}"
            bar.update(task, description=told, left=duration(step.seconds_left))
            bar.update(task, completed=step.done, total=step.total)
            if step.record is not None:
                bar.update(task, so_far=_so_far(step.record))
                reason = f": {step.record.reason}" if step.record.reason else ""
                bar.console.print(f"{told}: {_so_far(step.record)}{reason}", soft_wrap=True)

        return job.run(show, kernels, budget_s)


def _so_far(record: Record) -> str:
    if record.status != "ok":
        return record.status
    return ", ".join(f"{p.threads}: {p.statistics.median / 1e6:.3g} ms" for p in record.points)


def seconds(name: str, text: str | None) -> float:
    """``90``, ``90s``, ``10m`` and ``2h`` in seconds; without a text there is no limit."""
    if text is None:
        return float("inf")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or float(found[1]) == 0:
        raise RequestError(f"{name}: must be like 90s, 10m or 2h, not {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def duration(seconds: float) -> str:
    """``45 s``, ``10 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
