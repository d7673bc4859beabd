"""Giving each computing thread a CPU of its own, and checking that it stays there.

Which threads compute is not asked of the runtime but seen: they are the ones whose CPU time
grows while they work. So the same code serves any OpenMP runtime or inference engine.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from scalebench_lib.errors import MeasurementError

_TASKS = Path("/proc/self/task")

_SETTLE_NS = 25_000_000
"""The kernel brings a running thread's CPU time up to date at its ticks, up to 10 ms apart."""

_BUSY = 0.2
"""Share of the busiest thread's CPU time from which on a thread counts as computing. Not of the
wall time: on a machine that others use too, no thread may get much of that."""

SPIN_NS = 30_000_000
"""OpenMP's threads spin for 10 ms behind their last work, and ticks are up to 10 ms apart: in a
turn, a thread with less CPU time than this has not computed."""

_SHARING = 0.02
"""An engine that shares out small work gives its other threads little of it, but some."""

_SMALL_PASS_S = 0.02
"""CPU time of a pass up to which an engine may well keep some of its threads idle."""

_LOOK_S = 0.0005

_ATTEMPTS = 10
"""On a busy machine a thread may look idle for a moment, or busy with the work before."""


@dataclass(frozen=True)
class ThreadTeam:
    """The threads that compute: thread ids and their CPU numbers, in step."""

    tids: tuple[int, ...]
    cpus: tuple[int, ...]

    @property
    def pinned(self) -> bool:
        """Whether each thread has a CPU to itself (False where the system has no affinity)."""
        return bool(self.tids)

    @property
    def alive(self) -> bool:
        """Whether its threads are still there: OpenMP ends some where it needs fewer."""
        return self.pinned and all((_TASKS / str(tid)).exists() for tid in self.tids)

    def pin(self) -> None:
        """Put each thread on its CPU (again)."""
        for tid, cpu in zip(self.tids, self.cpus, strict=False):
            os.sched_setaffinity(tid, {cpu})

    def check(self, run: Callable[[], object]) -> None:
        """Call `run`; `MeasurementError` unless this team alone computes it, each in its place."""
        if torch.get_num_threads() != len(self.cpus):
            raise MeasurementError(
                f"asked for {len(self.cpus)} threads, torch now uses {torch.get_num_threads()}"
            )
        extra_threads = self._strangers(run)
        if not self.pinned:
            return
        if extra_threads:
            raise MeasurementError(
                f"{len(extra_threads)} more threads compute than the {len(self.cpus)} asked for"
            )
        self.require_in_place()

    def require_in_place(self) -> None:
        """Raise `MeasurementError` where somebody has moved a thread since it was pinned."""
        for tid, cpu in zip(self.tids, self.cpus, strict=False):
            if os.sched_getaffinity(tid) != {cpu}:
                raise MeasurementError(f"thread {tid} did not stay on CPU {cpu}")

    def _strangers(self, run: Callable[[], object]) -> set[int]:
        for _ in range(_ATTEMPTS):
            extra_threads = busy_during(run) - set(self.tids)
            if not extra_threads:
                break
        return extra_threads


@dataclass(frozen=True)
class SelfPinnedTeam(ThreadTeam):
    """Threads that an engine binds to `cpus` itself, each time anew, while they compute."""

    def pin(self) -> None:
        """The engine does, and would undo what we do."""

    @property
    def pinned(self) -> bool:
        """Each thread has a CPU to itself; `check` has seen it."""
        return True

    def check(self, run: Callable[[], object]) -> None:
        """Call `run`; `MeasurementError` unless it computes on `cpus` alone, and on all of them.

        A pass that is hardly worth sharing may leave some of them idle, but none to two threads.
        """
        small = _cpu_seconds(run) < _SMALL_PASS_S
        for _ in range(_ATTEMPTS):
            busy = {threading.get_native_id(), *busy_during(run, _SHARING)}
            seen = _bound_to(busy, run)
            if len(busy) <= len(self.cpus) and (
                seen == set(self.cpus) or (small and len(seen) == len(busy))
            ):
                break
        else:
            raise MeasurementError(
                f"asked for one thread on each of the CPUs {sorted(self.cpus)}, but the engine "
                f"computes with {len(busy)} on {sorted(seen)}"
            )
        if not seen <= set(self.cpus):
            raise MeasurementError(f"the engine computes on CPUs {sorted(seen)}")


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


ThreadTimes = Mapping[int, tuple[int, int]]
"""Of each thread by its id, in ns: its CPU time, and how long it was ready but had no CPU."""


def thread_times() -> dict[int, tuple[int, int]]:
    """The `ThreadTimes` of this process so far; empty without /proc."""
    if not _TASKS.exists():
        return {}
    times = {}
    for tid in _tids():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            computed, waited, *_ = (_TASKS / str(tid) / "schedstat").read_text().split()
            times[tid] = int(computed), int(waited)
    return times


def _known_thread_times() -> dict[int, tuple[int, int]]:
    times = thread_times()
    if not times and _TASKS.exists():
        raise MeasurementError(
            "this kernel does not tell threads' CPU time (/proc/<pid>/task/*/schedstat), "
            "so they cannot be pinned one by one"
        )
    return times


def set_affinity(cpus: Iterable[int]) -> None:
    """Let every thread of this process run on `cpus` only; later threads inherit that."""
    allowed = set(cpus)
    for tid in _tids():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(tid, allowed)


def pin_team(cpus: Sequence[int], pinnable: bool) -> ThreadTeam:
    """Make torch compute with one thread on each of `cpus`, in that order; the caller first.

    Raises `MeasurementError` where another number of threads computes than asked for.
    """
    if not pinnable:
        torch.set_num_threads(len(cpus))
        return ThreadTeam((), tuple(cpus))
    set_affinity(cpus)
    torch.set_num_threads(len(cpus))
    # torch shares out 32768 elements at a time
    work = torch.ones(max(1 << 20, len(cpus) << 16))
    team = ThreadTeam(_workers(len(cpus), lambda: work.mul_(1.0)), tuple(cpus))
    team.pin()
    return team


def pin_engine(cpus: Sequence[int], pinnable: bool, run: Callable[[], object]) -> ThreadTeam:
    """Pin the threads that an engine computes `run` with, one to each of `cpus`, caller first.

    Raises `MeasurementError` where another number of threads computes than there are CPUs.
    """
    if not pinnable:
        return ThreadTeam((), tuple(cpus))
    set_affinity(cpus)
    team = ThreadTeam(_workers(len(cpus), run, _SHARING), tuple(cpus))
    team.pin()
    return team


def _workers(count: int, run: Callable[[], object], share: float = _BUSY) -> tuple[int, ...]:
    """The caller and the threads that work beside it when `run` is called."""
    caller = threading.get_native_id()
    for _ in range(_ATTEMPTS):
        busy = {caller, *busy_during(run, share)}
        if len(busy) == count:
            return (caller, *sorted(busy - {caller}))
    raise MeasurementError(f"asked for {count} threads, but {len(busy)} of them compute")


def busy_during(run: Callable[[], object], share: float = _BUSY) -> set[int]:
    """The ids of the threads that compute while `run` is called again and again for a moment."""
    before, start = _known_thread_times(), time.perf_counter_ns()
    while time.perf_counter_ns() - start < _SETTLE_NS:
        run()
    return busy_between(before, _known_thread_times(), share)


def busy_between(
    before: ThreadTimes, after: ThreadTimes, share: float = _BUSY, least_ns: int = 0
) -> set[int]:
    """The ids of the threads that computed between two `thread_times`: those with more than
    `share` of the busiest one's CPU time, and more than `least_ns`."""
    grown = {tid: now - before.get(tid, (0, 0))[0] for tid, (now, _) in after.items()}
    least = max(least_ns, share * max(grown.values(), default=0))
    return {tid for tid, ns in grown.items() if ns > least}


def _bound_to(tids: Iterable[int], run: Callable[[], object]) -> set[int]:
    """The CPUs to which one of `tids` alone was bound at a moment while `run` computed."""
    seen: set[int] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_S):
            bound = [os.sched_getaffinity(tid) for tid in tids]
            seen.update(cpu for cpus in bound if len(cpus) == 1 for cpu in cpus)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        busy_during(run)
    finally:
        stop.set()
        watcher.join()
    return seen


def _tids() -> list[int]:
    return [int(name.name) for name in _TASKS.iterdir()]
