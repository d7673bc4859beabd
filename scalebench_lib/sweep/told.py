"""What a sweep tells the person before it: its plan, its progress, its durations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from scalebench_lib.config import Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.numerals import counted, duration, number
from scalebench_lib.record import Record
from scalebench_lib.sweep.cluster import cluster_at
from scalebench_lib.sweep.fleet import Fleet
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.runner import Job, Progress, Step


def announce(job: Job | Fleet, console: Console) -> None:
    """Say what the sweep will measure, and how long that takes at most."""
    state = job.state
    console.print(f"{job.machine}", soft_wrap=True)
    console.print(
        f"{len(state.left)} configs to measure in up to {job.sweep.rounds} rounds, "
        f"{len(state.done)} done before, {len(state.failed)} failed before: "
        f"up to {duration(job.forecast())}"
    )


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """A bar that is told each step, and shows where the sweep is."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("[dim]{task.fields[so_far]}, {task.fields[left]} left"),
    )
    with Bar(*columns, console=console, refresh_per_second=0.5) as bar:
        task = bar.add_task("", total=None, so_far="", left="")

        def show(step: Step) -> None:
            told = f"round {step.round}, {step.visit}"
            bar.update(task, description=told, left=duration(step.seconds_left))
            bar.update(task, completed=step.done, total=step.total)
            if step.record is not None:
                bar.update(task, so_far=_so_far(step.record))
                reason = f": {step.record.reason}" if step.record.reason else ""
                bar.console.print(f"{told}: {_so_far(step.record)}{reason}", soft_wrap=True)

        yield show


@contextmanager
def prepared(
    request: Sweep,
    out: Path,
    retry_failed: bool,
    scheduler: str | None,
    any_host: bool,
    warm: bool,
    if_busy: str,
) -> Iterator[Job | Fleet]:
    """The sweep, checked: on this machine, or on the hosts of the `scheduler`'s cluster."""
    if not scheduler:
        if any_host:
            raise RequestError("any_host: a sweep of several hosts needs '--scheduler ADDRESS'")
        yield Job.prepare(request, out, retry_failed)
        return
    request = request.model_copy(update={"hosts": "any" if any_host else "each"})
    with cluster_at(scheduler, warm, if_busy) as cluster:
        yield Fleet.prepare(request, out, cluster, retry_failed)


def outcome(job: Job | Fleet, out: Path, console: Console) -> list[str]:
    """Say what is left; returns what went wrong."""
    state, found = job.state, list[str]()
    if state.left:
        console.print(f"{len(state.left)} configs are left: the same command goes on from here")
    if any(record.status == "failed" for _, record in state.failed):
        found.append(
            f"{len(state.failed)} of the configs failed: 'scalebench status {out}' says why"
        )
    if state.left and isinstance(job, Fleet) and job.trouble:
        found.append(f"{len(job.trouble)} of the hosts did not see it through")
    return found


def run_shown(
    job: Job | Fleet, budget_s: float, warm: bool, if_busy: str, console: Console
) -> list[str]:
    """Run the sweep under a bar; returns what there is to complain of, a line each."""
    if isinstance(job, Fleet):
        with job.alone(), shown(console) as show:
            job.run(show, budget_s)
        return [f"{one}: what it has left waits for the same command" for one in job.trouble]
    with job.alone(if_busy), Kernels(warm and bool(job.state.left)) as how:
        with shown(console) as show:
            job.run(show, how, budget_s)
        slow = "kernels were started afresh, which takes longer"
        return [f"{how.trouble}; {slow}"] if how.trouble else []


def _so_far(record: Record) -> str:
    if record.status != "ok":
        return record.status
    return ", ".join(
        f"{counted(point.threads, 'thread')} {number(point.statistics.median / 1e6)} ms"
        for point in record.points
    )


def seconds(name: str, text: str | None) -> float:
    """``90``, ``90s``, ``10m`` and ``2h`` in seconds; without a text there is no limit."""
    if text is None:
        return float("inf")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or float(found[1]) == 0:
        raise RequestError(f"{name}: must be like 90s, 10m or 2h, not {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
