"""Pin the threads of this process to CPUs, and run a model on them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations.base import OptimizedModel, Outputs, Profile, Runner
from scalebench_lib.measure.pinning import (
    SelfPinnedTeam,
    ThreadTeam,
    pin_computing_threads,
    pin_torch,
)


class PinnedExecutor:
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
            return pin_computing_threads(cpus, self.pinnable, self.pass_once)
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

    def profile(self, engine: Callable[..., Profile], threads: int, passes: int) -> Profile:
        """Free the runners; profile `passes` by the `engine`, on the CPUs of `threads`."""
        self.team = ThreadTeam((), ())
        self.runners.clear()
        del self.runner
        with self._unpinned(self.cpus_for(threads)):
            return engine(threads, next(self.batches), passes)
