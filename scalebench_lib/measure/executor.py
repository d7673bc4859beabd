"""Pin the threads of this process to CPUs, and run or profile a model on them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.autograd.profiler import profile

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations.base import (
    OptimizedModel,
    Outputs,
    Profile,
    Runner,
    Times,
)
from scalebench_lib.measure.pinning import SelfPinnedTeam, ThreadTeam, pin_threads, pin_torch
from scalebench_lib.operators import OperatorTimes

MIN_PASSES, MAX_PASSES, PROFILE_S = 5, 100, 0.5
"""Profile passes for about `PROFILE_S`: an interruption of a few would count too much."""
MAX_PROFILE_S = 10.0
"""Profile nothing that takes longer, with an engine's second start."""


class Executor:
    """Run a model on one thread a CPU.

    `threads` are the thread counts to use; `cpus_for` maps each to its CPU numbers; without
    `pinnable` the system has no affinity. `team` are the threads that compute now.
    `first_outputs` are those of the last pass over `first_batch`, if `keep_outputs` is set.
    Opening the first runner took `open_s` seconds, `ready_s` with optimizing the model.
    """

    runner: Runner
    batches: Iterator[Inputs]
    first_batch: Inputs
    optimized: OptimizedModel | None = None
    keep_outputs = False
    first_outputs: Outputs | None = None
    open_s = ready_s = 0.0

    def __init__(
        self, threads: Sequence[int], cpus_for: Callable[[int], tuple[int, ...]], pinnable: bool
    ) -> None:
        self.threads, self.cpus_for, self.pinnable = threads, cpus_for, pinnable
        self.team = ThreadTeam((), ())
        self.teams: dict[int, ThreadTeam] = {}
        self.runners: dict[int, Runner] = {}
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)

    def set_num_threads(self, threads: int) -> None:
        """Compute with `threads` threads from now on, each on its own CPU.

        Threads are found once, and again only after they have ended: a search takes up to 250 ms.
        Raises `MeasurementError` if a thread of the last team has moved, or if another number of
        threads computes.
        """
        self.team.require_in_place()
        torch.set_num_threads(threads)
        cpus = self.cpus_for(threads)
        if self.optimized:
            if threads not in self.runners:
                start = time.perf_counter()
                with self._unpinned(cpus):
                    self.runners[threads] = self.optimized.runner(threads)
                self.open_s = self.open_s or time.perf_counter() - start
            self.runner = self.runners[threads]
        team = self.teams.get(threads)
        if team is None or not team.alive:
            team = self.teams[threads] = self._find_team(cpus)
        team.pin()
        self.team = team

    def _find_team(self, cpus: tuple[int, ...]) -> ThreadTeam:
        if not (self.optimized and self.optimized.own_threads):
            return pin_torch(cpus, self.pinnable)
        if not (self.optimized.pins_itself and self.pinnable):
            return pin_threads(cpus, self.pinnable, self.pass_once)
        team = SelfPinnedTeam((), cpus)
        team.pin()
        team.run_and_check(self.pass_once)
        return team

    @contextmanager
    def _unpinned(self, cpus: tuple[int, ...]) -> Iterator[None]:
        """Let the caller use all of `cpus`: compilers and engines read its affinity."""
        if self.pinnable:
            os.sched_setaffinity(0, cpus)
        try:
            yield
        finally:
            self.team.pin()

    def load(self, make: Callable[[], OptimizedModel], batches: Sequence[Inputs]) -> OptimizedModel:
        """Run the model that `make` returns on `batches` in rotation, at each thread count."""
        start = time.perf_counter()
        with self._unpinned(self.team.cpus):
            self.optimized = optimized = make()
        made_s = time.perf_counter() - start
        batches = optimized.prepare(batches)
        self.batches, self.first_batch = itertools.cycle(batches), batches[0]
        if optimized.own_threads:
            self.teams.clear()
        if optimized.per_thread_count:  # most threads first: engines look at their CPUs only once
            for threads in sorted(self.threads, reverse=True):
                self.set_num_threads(threads)
        self.set_num_threads(max(self.threads))
        self.batches = itertools.cycle(batches)
        self.ready_s = made_s + self.open_s
        return optimized

    def pass_once(self) -> None:
        batch = next(self.batches)
        outputs = self.runner(*batch)
        if self.keep_outputs and batch is self.first_batch:
            self.first_outputs = outputs

    def operator_times(self, threads: int, pass_s: float) -> OperatorTimes:
        """Profile passes, of about `pass_s` seconds each, at `threads` threads.

        Engines profile in another session, and free those that were timed. Raises
        `MeasurementError` where it would take too long, or where the profiler reports no times.
        """
        passes = max(MIN_PASSES, min(MAX_PASSES, round(PROFILE_S / pass_s)))
        engine = self.optimized.profile if self.optimized else None
        expected_s = (self.open_s if engine else 0) + (1 + passes) * pass_s
        if expected_s > MAX_PROFILE_S:
            raise MeasurementError(
                f"it would take {expected_s:.0f} s, more than {MAX_PROFILE_S:.0f}"
            )
        self.set_num_threads(threads)
        wall_ns, times = (
            self._by_engine(engine, threads, passes) if engine else self._by_torch(passes)
        )
        if not times.total():
            raise MeasurementError("its engine tells no times of operators")
        self_ns = {name: round(ns) for name, ns in times.items() if ns > 0}
        return OperatorTimes(threads=threads, passes=passes, wall_ns=wall_ns, self_ns=self_ns)

    def _by_engine(self, engine: Callable[..., Profile], threads: int, passes: int) -> Profile:
        self.team = ThreadTeam((), ())
        self.runners.clear()
        del self.runner
        with self._unpinned(self.cpus_for(threads)):
            return engine(threads, next(self.batches), passes)

    def _by_torch(self, passes: int) -> Profile:
        """Profile the operators of torch, also those of compiled code."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it logs each start and stop
        self.pass_once()
        with profile(use_kineto=False) as found:
            start = time.perf_counter_ns()
            for _ in range(passes):
                self.pass_once()
            wall_ns = time.perf_counter_ns() - start
        times = Times()
        for event in found.function_events or ():
            # A copy counts for the operator that called it: a conversion, or a product.
            caller = event.cpu_parent if event.name == "aten::copy_" else None
            name = "CompiledFxGraph" if "CompiledFxGraph" in event.name else (caller or event).name
            times[name] += 1e3 * event.self_cpu_time_total
        return wall_ns, times
