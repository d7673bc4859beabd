"""Where a model runs: the threads of a process on their CPUs, and what they run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Inputs
from scalebench_lib.measure.optimizations.base import OptimizedModel, Runner
from scalebench_lib.measure.pinning import (
    SPIN_NS,
    SelfPinnedTeam,
    ThreadTeam,
    ThreadTimes,
    busy_between,
    pin_engine,
    pin_team,
)
from scalebench_lib.measure.roof import peak_gflops


class Executor:
    """The threads of this process, and what they run.

    `place` gives the CPUs for a number of threads; `threads` are the numbers that will be used.
    """

    runner: Runner
    team = ThreadTeam((), ())
    optimized = OptimizedModel()

    def __init__(
        self, threads: Sequence[int], place: Callable[[int], tuple[int, ...]], pinnable: bool
    ) -> None:
        self.threads, self.place, self.pinnable = threads, place, pinnable
        self.teams: dict[int, ThreadTeam] = {}
        self.engines: dict[int, ThreadTeam] = {}
        self.runners: dict[int, Runner] = {}
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)

    def switch(self, threads: int) -> None:
        """Compute with `threads` threads from now on, each on its own CPU.

        Raises `MeasurementError` as `require_in_place`.
        """
        self.require_in_place()
        cpus = self.place(threads)
        self.team = self.teams[threads] = self._team(threads, cpus)
        if self.optimized.per_thread_count and threads not in self.runners:
            with self._roaming(cpus):
                self._open(threads)
        if threads in self.runners:
            self.runner = self.runners[threads]
        if self.optimized.own_threads:
            self._pin_engine(threads, cpus)

    def _team(self, threads: int, cpus: tuple[int, ...]) -> ThreadTeam:
        """Torch's threads on `cpus`: looked for only where those known before have ended."""
        known = self.teams.get(threads)
        if known is None or not known.alive:
            return pin_team(cpus, self.pinnable)
        torch.set_num_threads(threads)
        known.pin()
        return known

    def _open(self, threads: int) -> None:
        """With a pass: OpenVINO looks at its CPUs only then."""
        self.runner = self.runners[threads] = self.optimized.runner(threads)
        self.pass_once()

    def require_in_place(self) -> None:
        """Raise `MeasurementError` where somebody has moved the threads that compute now."""
        if self.team.cpus:
            self.team_of(len(self.team.cpus)).require_in_place()

    def require_alone(self, before: ThreadTimes, after: ThreadTimes) -> None:
        """Raise `MeasurementError` where others computed from `before` to `after` (`thread_times`)
        than the threads that were pinned."""
        team = self.team_of(len(self.team.cpus))
        busy = busy_between(before, after, least_ns=SPIN_NS)
        if team.tids and (others := busy - set(team.tids)):
            raise MeasurementError(
                f"{len(others)} more threads computed than the {len(team.cpus)} asked for"
            )

    def _pin_engine(self, threads: int, cpus: tuple[int, ...]) -> None:
        """An engine's threads are found once, and anew where they have ended."""
        known = self.engines.get(threads)
        if known is None or not (known.alive or isinstance(known, SelfPinnedTeam)):
            self.engines[threads] = self._engine_team(cpus)
        self.team.pin()
        self.engines[threads].pin()

    def _engine_team(self, cpus: tuple[int, ...]) -> ThreadTeam:
        if not (self.pinnable and self.optimized.pins_itself):
            return pin_engine(cpus, self.pinnable, self.pass_once)
        team = SelfPinnedTeam((), cpus)
        team.check(self.pass_once)
        return team

    @contextmanager
    def _roaming(self, cpus: tuple[int, ...]) -> Iterator[None]:
        """Let this thread use all of `cpus` for a while: compilers and engines look at that."""
        if self.pinnable:
            os.sched_setaffinity(0, cpus)
        try:
            yield
        finally:
            self.team.pin()

    def load(self, make: Callable[[], OptimizedModel], batches: Sequence[Inputs]) -> OptimizedModel:
        """Run what `make` makes on `batches` in turn from now on, ready at each thread count."""
        with self._roaming(self.team.cpus):
            optimized = make()
        self.optimized, self.batches = optimized, itertools.cycle(batches)
        if optimized.per_thread_count:
            for threads in sorted(self.threads, reverse=True):
                self.switch(threads)  # the most first: engines look at their CPUs only once
            self.switch(max(self.threads))
        else:
            self.runner = optimized.runner(max(self.threads))
        return optimized

    def pass_once(self) -> None:
        """One pass, over the next batch."""
        self.runner(*next(self.batches))

    def check(self, run: Callable[[], object]) -> None:
        """Call `run`; `MeasurementError` unless the threads that were pinned alone compute it."""
        self.team_of(max(self.threads)).check(run)

    def team_of(self, threads: int) -> ThreadTeam:
        """The threads that compute where `threads` are asked for."""
        return (self.engines or self.teams)[threads]

    def roof(self, precision: str) -> dict[int, dict[str, float]]:
        """The machine's own peak in `precision` at each number of threads, where it has it."""
        peaks = {}
        for threads in self.threads:
            self.switch(threads)
            peaks[threads] = peak_gflops(precision)
        return peaks
