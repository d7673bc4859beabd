"""Give each computing thread a CPU of its own, and check that it stays there.

A thread computes if its CPU time grows during a pass. This finds the threads of any OpenMP runtime
and of any inference engine.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from scalebench_lib.errors import MeasurementError
from scalebench_lib.text import pluralize

_TASKS = Path("/proc/self/task")

_SETTLE_NS = 25_000_000
"""The kernel updates a running thread's CPU time at its ticks, which are up to 10 ms apart."""

_BUSY = 0.2
"""A thread computes if it has more than this share of the busiest thread's CPU time; not of wall
time, of which no thread gets much on a machine that others use too."""

_SHARING = 0.02
"""The same for an engine, which shares out small work unevenly."""

SPIN_NS = 30_000_000
"""A thread with less CPU time in a turn has not computed: OpenMP's threads spin for 10 ms after
their last work, and ticks are up to 10 ms apart."""

_SMALL_PASS_NS = 20_000_000
"""An engine may leave some threads idle in a pass that takes less CPU time than this."""

_POLL_S = 0.0005
_ATTEMPTS = 10
"""On a busy machine a thread may seem idle for a moment, or busy with its last work."""

ThreadTimes = Mapping[int, tuple[int, int]]
"""By thread id, in ns: the thread's CPU time, and how long it was ready but had no CPU."""


@dataclass(frozen=True)
class ThreadTeam:
    """The threads that compute: `cpus[i]` is the CPU of thread `tids[i]`, the caller the first.

    Without affinity (macOS) `tids` is empty: threads are counted, not pinned.
    """

    tids: tuple[int, ...]
    cpus: tuple[int, ...]

    @property
    def is_pinned(self) -> bool:
        return bool(self.tids)

    @property
    def alive(self) -> bool:
        """True if all threads still exist: OpenMP ends some when it needs fewer."""
        return all((_TASKS / str(tid)).exists() for tid in self.tids)

    def pin(self) -> None:
        for tid, cpu in zip(self.tids, self.cpus, strict=False):
            os.sched_setaffinity(tid, {cpu})

    def run_and_check(self, run: Callable[[], object]) -> None:
        """Call `run`, at least once; `MeasurementError` unless this team alone computes it."""
        if torch.get_num_threads() != len(self.cpus):
            raise MeasurementError(
                f"asked for {pluralize(len(self.cpus), 'thread')}, torch now uses "
                f"{torch.get_num_threads()}"
            )
        for _ in range(_ATTEMPTS):
            extra_threads = computing_threads_during(run) - set(self.tids)
            if not extra_threads or not self.is_pinned:
                break
        else:
            raise MeasurementError(
                f"{len(extra_threads)} more threads compute than the {len(self.cpus)} asked for"
            )
        self.require_in_place()

    def require_in_place(self) -> None:
        """Raise `MeasurementError` if a thread has been moved since it was pinned."""
        for tid, cpu in zip(self.tids, self.cpus, strict=False):
            if os.sched_getaffinity(tid) != {cpu}:
                raise MeasurementError(f"thread {tid} did not stay on CPU {cpu}")

    def require_alone(self, before: ThreadTimes, after: ThreadTimes) -> None:
        """Raise `MeasurementError` if threads other than `tids` (if known) computed in between."""
        extra_threads = computing_threads_between(before, after, least_ns=SPIN_NS) - set(self.tids)
        if self.tids and extra_threads:
            raise MeasurementError(
                f"{len(extra_threads)} more threads computed than the {len(self.cpus)} asked for"
            )


@dataclass(frozen=True)
class SelfPinnedTeam(ThreadTeam):
    """Threads that an engine binds to `cpus` in each pass; their ids may change."""

    @property
    def is_pinned(self) -> bool:
        """True: `run_and_check` has seen that each thread has a CPU to itself."""
        return True

    def pin(self) -> None:
        """Put the caller on the first CPU; the engine binds the others."""
        os.sched_setaffinity(0, {self.cpus[0]})

    def run_and_check(self, run: Callable[[], object]) -> None:
        """Call `run`; `MeasurementError` unless one thread on each of `cpus` computes it.

        A small pass may leave CPUs idle, but never puts two threads on one.
        """
        for _ in range(_ATTEMPTS):
            busy, bound = _watch(run)
            if len(busy) <= len(self.cpus) and (
                bound == set(self.cpus) or (len(bound) == len(busy) and _is_small(run))
            ):
                break
        else:
            raise MeasurementError(
                f"asked for one thread on each of the CPUs {sorted(self.cpus)}, but the engine "
                f"computes with {len(busy)} on {sorted(bound)}"
            )
        if not bound <= set(self.cpus):
            raise MeasurementError(f"the engine computes on CPUs {sorted(bound)}")


def pin_torch(cpus: Sequence[int], pinnable: bool) -> ThreadTeam:
    """Make torch compute with one thread on each of `cpus`, in that order; the caller is first.

    Raises `MeasurementError` if another number of threads computes.
    """
    torch.set_num_threads(len(cpus))
    work = torch.ones(max(1 << 20, len(cpus) << 16))  # dealt out 32768 elements at a time
    return pin_computing_threads(cpus, pinnable, lambda: work.mul_(1.0), _BUSY)


def pin_computing_threads(
    cpus: Sequence[int], pinnable: bool, run: Callable[[], object], share: float = _SHARING
) -> ThreadTeam:
    """Pin the threads that compute `run`, one to each of `cpus`, the caller first.

    A thread computes if it has more than `share` of the busiest one's CPU time. Raises
    `MeasurementError` if their number is not that of the CPUs.
    """
    if not pinnable:
        return ThreadTeam((), tuple(cpus))
    set_affinity(cpus)
    caller = threading.get_native_id()
    for _ in range(_ATTEMPTS):
        busy = {caller, *computing_threads_during(run, share)}
        if len(busy) == len(cpus):
            break
    else:
        raise MeasurementError(
            f"asked for {pluralize(len(cpus), 'thread')}, but {len(busy)} of them compute"
            f"{_likely_cause()}"
        )
    team = ThreadTeam((caller, *sorted(busy - {caller})), tuple(cpus))
    team.pin()
    return team


def _likely_cause() -> str:
    """Name the variables by which OpenMP uses fewer threads, or idle ones spin."""
    names = ("OMP_DYNAMIC", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    found = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    return f": start without {' and '.join(found)}" if found else ""


def set_affinity(cpus: Iterable[int]) -> None:
    """Let every thread of this process run on all of `cpus`; later threads inherit that."""
    allowed = set(cpus)
    for tid in _tids():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(tid, allowed)


def thread_times() -> ThreadTimes:
    """Return the `ThreadTimes` of this process so far; empty without ``/proc``.

    Raises `MeasurementError` if ``/proc`` holds no times of threads.
    """
    times = {}
    for tid in _tids():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            computed, waited, *_ = (_TASKS / str(tid) / "schedstat").read_text().split()
            times[tid] = int(computed), int(waited)
    if not times and _TASKS.exists():
        raise MeasurementError(
            "this kernel does not tell threads' CPU time (/proc/<pid>/task/*/schedstat), "
            "so they cannot be pinned one by one"
        )
    return times


def computing_threads_during(run: Callable[[], object], share: float = _BUSY) -> set[int]:
    """Call `run` for 25 ms, at least once; return the ids of the threads that compute it."""
    before, start = thread_times(), time.perf_counter_ns()
    while time.perf_counter_ns() - start < _SETTLE_NS:
        run()
    return computing_threads_between(before, thread_times(), share)


def computing_threads_between(
    before: ThreadTimes, after: ThreadTimes, share: float = _BUSY, least_ns: int = 0
) -> set[int]:
    """Return the ids of the threads that computed between two `thread_times`.

    Their CPU time is more than `least_ns`, and more than `share` of the busiest one's.
    """
    grown = {tid: now - before.get(tid, (0, 0))[0] for tid, (now, _) in after.items()}
    least = max(least_ns, share * max(grown.values(), default=0))
    return {tid for tid, ns in grown.items() if ns > least}


def _watch(run: Callable[[], object]) -> tuple[set[int], set[int]]:
    """Return the threads that compute `run`, and the CPUs to which one of them was bound."""
    bound: dict[int, set[int]] = defaultdict(set)
    watcher = threading.Thread(target=_note_bound, args=(bound, stop := threading.Event()))
    watcher.start()
    try:
        busy = {threading.get_native_id(), *computing_threads_during(run, _SHARING)}
        busy -= {watcher.native_id}
    finally:
        stop.set()
        watcher.join()
    return busy, set().union(*(bound[tid] for tid in busy))


def _note_bound(bound: dict[int, set[int]], stop: threading.Event) -> None:
    while not stop.wait(_POLL_S):
        for tid in _tids():
            with suppress(ProcessLookupError):  # it has just ended
                cpus = os.sched_getaffinity(tid)
                bound[tid] |= cpus if len(cpus) == 1 else set()


def _is_small(run: Callable[[], object]) -> bool:
    start = time.process_time_ns()
    run()
    return time.process_time_ns() - start < _SMALL_PASS_NS


def _tids() -> list[int]:
    return [int(task.name) for task in _TASKS.iterdir()] if _TASKS.exists() else []
