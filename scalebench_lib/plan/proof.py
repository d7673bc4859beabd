"""The proof of plans: they are run for real, in turn, and timed from a common start.

Each instance is a process with its own copy of the model on its own CPUs, started once and
parked while others have their turn. The plans take turns in shuffled cycles, so that they meet
the same states of the machine: a ratio of two plans is that of their turns of one cycle.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import psutil

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.plan.crew import Crew
from scalebench_lib.plan.instance import Role
from scalebench_lib.plan.placing import placed
from scalebench_lib.plan.planner import Plan
from scalebench_lib.record import Turn
from scalebench_lib.stats import MIN_TURNS, Interval, Ratio, turns_interval
from scalebench_lib.words import Fraction, Seconds, Words

_NS = 1_000_000_000

TURN_NS = 300_000_000
"""A plan's turn; or one batch, where that takes longer."""

MEMORY_SHARE = 0.85
"""Of the free memory, what parked instances may fill together."""

Say = Callable[[str], None]


class Limits(Words):
    """When plans have been timed enough: as of any measurement, and what one may take at most.

    `target_ci` is the half-width of the interval over the median, `max_seconds` the time of a
    plan. It fails where its instances are not ready within `setup_s`, or a batch takes longer
    than `batch_s`, or twenty times what was predicted.
    """

    target_ci: Fraction = 0.02
    max_seconds: Seconds = 10.0
    setup_s: Seconds = 300.0
    batch_s: Seconds = 30.0

    def of_batch(self, plan: Plan) -> float:
        """Seconds that one batch of `plan` may take."""
        predicted = 0.0 if np.isnan(plan.predicted_ms) else plan.predicted_ms
        return max(self.batch_s, 20 * predicted / 1e3)


@dataclass(eq=False)
class Run:
    """A plan that was run: its turns, a sample a batch; `reason` says why it failed."""

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    spent_ns: int = 0
    reason: str | None = None

    @property
    def latency_ms(self) -> Interval | None:
        """The median of its batches, with the interval from its turns; None where it failed."""
        if self.reason or not self.turns:
            return None
        found = turns_interval([turn.median_ns for turn in self.turns])
        middle_ms = median(ns for turn in self.turns for ns in turn.samples_ns) / 1e6
        return Interval.around(middle_ms, found.variance)

    @property
    def half_width(self) -> float:
        """That of `latency_ms`; 0 where it failed, as nothing more can be learned."""
        return found.half_width if (found := self.latency_ms) else 0.0


def speedup(run: Run, other: Run) -> Ratio | None:
    """How much faster `run` is than `other`, paired by cycle; None where one failed."""
    mine, theirs = run.latency_ms, other.latency_ms
    if mine is None or theirs is None:
        return None
    of_cycle = {turn.cycle: turn.median_ns for turn in run.turns}
    pairs = [t.median_ns / of_cycle[t.cycle] for t in other.turns if t.cycle in of_cycle]
    if not pairs:
        variance = mine.variance + theirs.variance
        return Ratio.around(theirs.value / mine.value, variance, "not measured together")
    found = turns_interval(pairs)
    return Ratio(found.value, found.low, found.high, found.variance)


@dataclass
class Proof:
    """Runs plans of the model of `config` on `machine`; `say` hears of each step."""

    config: Config
    machine: Machine
    limits: Limits = field(default_factory=Limits)
    say: Say = lambda _: None
    seed: int = 0

    def run(self, plans: Sequence[Plan]) -> list[Run]:
        """Run `plans` in turn; one that cannot be run, dies or hangs has its reason instead."""
        runs, cycles = [Run(plan) for plan in plans], count(1)
        for wave in self._waves(runs):
            self._wave(wave, cycles)
        return runs

    def _wave(self, runs: Sequence[Run], cycles: Iterator[int]) -> None:
        """Runs whose instances are all alive together, parked but for one plan's."""
        with ExitStack() as stack:
            crews = {run: crew for run in runs if (crew := self._hired(run, stack))}
            shuffle = random.Random(self.seed).shuffle  # noqa: S311
            while (going := [run for run in crews if not run.reason]) and not self._enough(going):
                cycle = next(cycles)
                shuffle(going)
                for run in going:
                    self._turn(cycle, run, crews[run])

    def _enough(self, going: Sequence[Run]) -> bool:
        """Whether all plans have turns enough, and are known well enough or their time is up."""
        if len(going[0].turns) < MIN_TURNS:
            return False
        spent = sum(run.spent_ns for run in going)
        over = spent >= len(going) * self.limits.max_seconds * _NS
        return over or all(run.half_width <= self.limits.target_ci for run in going)

    def _hired(self, run: Run, stack: ExitStack) -> Crew | None:
        """The instances of a plan, ready; None, with the reason in `run`, where they are not."""
        self.say(f"starting {run.plan}")
        try:
            crew = stack.enter_context(Crew(self._roles(run.plan)))
        except (OSError, RequestError) as error:
            why = getattr(error, "strerror", error)
            run.reason = f"its processes could not be started: {why}"
            return None
        _or_fail(run, crew, lambda: crew.ready(self.limits.setup_s))
        return None if run.reason else crew

    def _turn(self, cycle: int, run: Run, crew: Crew) -> None:
        self.say(f"cycle {cycle}, {run.plan}")
        start = time.perf_counter_ns()
        _or_fail(run, crew, lambda: run.turns.append(self._sampled(cycle, run, crew)))
        run.spent_ns += time.perf_counter_ns() - start

    def _sampled(self, cycle: int, run: Run, crew: Crew) -> Turn:
        limit_s = self.limits.of_batch(run.plan)
        if not (run.turns and run.turns[-1].median_ns > TURN_NS):
            crew.run(limit_s)  # brings caches and threads back; it does not count
        start, batches = time.perf_counter_ns(), list[int]()
        while not batches or time.perf_counter_ns() < start + TURN_NS:
            batches.append(crew.run(limit_s))
        return Turn(cycle=cycle, start_ns=start, samples_ns=tuple(batches))

    def _roles(self, plan: Plan) -> list[Role]:
        return [
            Role(
                config=self._config(one.option),
                cpus=one.cpus,
                pinnable=self.machine.pinnable,
            )
            for one in placed(plan, self.machine, self.config.placement)
        ]

    def _config(self, option: Any) -> Config:
        names = ("batch_size", "optimization", "smt", "allocator")
        return self.config.model_copy(update={name: getattr(option, name) for name in names})

    def _waves(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """All at once where memory allows; else as many at a time as fit, and it is said."""
        free_mb = MEMORY_SHARE * min(psutil.virtual_memory().available, self.machine.memory_bytes)
        free_mb /= 1e6
        needs = {run: _memory_mb(run.plan, runs) for run in runs}
        wave: list[Run] = []
        for run in runs:
            if needs[run] > free_mb:
                run.reason = f"its instances need {needs[run]:.0f} MB, of {free_mb:.0f} MB free"
                continue
            if sum(needs[one] for one in wave) + needs[run] > free_mb:
                self.say("not all plans fit into memory together: they are run in several groups")
                yield wave
                wave = []
            wave.append(run)
        yield wave


def _or_fail(run: Run, crew: Crew, work: Callable[[], object]) -> None:
    """Do `work`; where an instance dies or hangs, the plan fails and its processes end."""
    try:
        work()
    except MeasurementError as error:
        run.reason = str(error)
        crew.close()


def _memory_mb(plan: Plan, runs: Iterable[Run]) -> float:
    """What the instances need together; one that was never measured as much as the largest."""
    known = [one.memory_mb or 0.0 for run in runs for one in run.plan.instances]
    return sum(one.memory_mb or max(known) for one in plan.instances)
