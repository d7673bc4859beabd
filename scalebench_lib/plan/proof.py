"""The proof of plans: they are run for real, in turn, and timed from a common start.

Each instance is a process with its own copy of the model on its own CPUs, started once and
parked while others have their turn. The probe runs while all of them are idle: beside a running
neighbour it would hide what instances do to each other.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import psutil
from scipy import stats

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.estimate import CONFIDENCE, enough_samples, median_interval, steadied
from scalebench_lib.headline import Headline, PointSamples, headlines
from scalebench_lib.machine import Machine
from scalebench_lib.plan.crew import Crew
from scalebench_lib.plan.instance import Role
from scalebench_lib.plan.placing import placed
from scalebench_lib.plan.planner import Plan
from scalebench_lib.words import Fraction, Seconds, Words

_NS = 1_000_000_000

TURN_NS = _NS // 2
PROBE_EVERY_NS = _NS // 10
"""A plan's turn, and how far apart probes are in it; or one batch, where that takes longer."""

LEAST_TURNS = 3
"""Ratios of plans are taken turn by turn: fewer would have no interval."""

PROBE_STARTS = 3
"""How often the probe is started before the proof is given up."""

MEMORY_SHARE = 0.85
"""Of the free memory, what parked instances may fill together."""

Say = Callable[[str], None]


class Limits(Words):
    """When a plan has been timed enough: as of any measurement, and what it may take at most.

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
    """A plan that was run: its samples in ns with the probes around them and their turns.

    `reason` says why it failed. `headline` is its latency at the machine's reference speed.
    """

    plan: Plan
    samples_ns: list[int] = field(default_factory=list)
    probes_ns: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    spent_ns: int = 0
    reason: str | None = None
    headline: Headline | None = None
    steady_ns: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def measured_ms(self) -> tuple[float, float, float]:
        """The latency at the reference speed with its interval."""
        found = self.headline
        assert found is not None  # noqa: S101 - asked only of plans that were run
        return found.value / 1e6, found.low / 1e6, found.high / 1e6

    def enough(self, limits: Limits) -> bool:
        """Whether the median is known well enough, or the time is up; never below the minimum."""
        if len(set(self.turns)) < LEAST_TURNS or not enough_samples(self.samples_ns):
            return False
        interval = median_interval(steadied(self.samples_ns, self.probes_ns))
        known = not interval.coarse and interval.half_width <= limits.target_ci
        return known or self.spent_ns >= limits.max_seconds * _NS

    def by_turn(self) -> dict[int, float]:
        """Log of the median of each turn at the reference speed, without disturbed samples."""
        turns, logs = np.array(self.turns), np.log(self.steady_ns)
        return {int(turn): float(np.median(logs[turns == turn])) for turn in np.unique(turns)}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}× ({self.low:.2f} … {self.high:.2f})"


def speedup(run: Run, other: Run) -> Ratio | None:
    """How much faster `run` is than `other`, paired turn by turn; None where one failed."""
    if run.headline is None or other.headline is None:
        return None
    mine, theirs = run.by_turn(), other.by_turn()
    apart = np.array([theirs[turn] - mine[turn] for turn in mine.keys() & theirs.keys()])
    value = other.headline.value / run.headline.value
    if apart.size < 2:
        return Ratio(value, 0.0, float("inf"))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, apart.size - 1) * stats.sem(apart)
    return Ratio(value, value * float(np.exp(-reach)), value * float(np.exp(reach)))


@dataclass
class Proof:
    """Runs plans of the model of `config` on `machine`.

    `reference_ns` is the probe's time at the machine's reference speed with a thread on each of
    `cores` (nan: the fast end of the probes met here). `say` is told what goes on.
    """

    config: Config
    machine: Machine
    cores: int
    reference_ns: float
    limits: Limits = field(default_factory=Limits)
    say: Say = lambda _: None
    seed: int = 0

    def run(self, plans: Sequence[Plan]) -> list[Run]:
        """Run `plans` in turn; one that cannot be run, dies or hangs has its reason instead."""
        runs = [Run(plan) for plan in plans]
        with self._probe() as probe:
            for wave in self._waves(runs):
                self._wave(wave, probe)
        self._headlines([run for run in runs if run.reason is None])
        return runs

    def _wave(self, runs: Sequence[Run], probe: Crew) -> None:
        """Runs whose instances are all alive together, parked but for one plan's."""
        with ExitStack() as stack:
            crews = {run: crew for run in runs if (crew := self._hired(run, stack))}
            shuffle = random.Random(self.seed).shuffle  # noqa: S311
            for turn in count():
                going = [run for run in crews if not (run.reason or run.enough(self.limits))]
                if not going:
                    return
                shuffle(going)
                for run in going:
                    self._turn(turn, run, crews[run], probe)

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

    def _turn(self, number: int, run: Run, crew: Crew, probe: Crew) -> None:
        self.say(f"round {number + 1}, {run.plan}")
        start = time.perf_counter_ns()
        _or_fail(run, crew, lambda: self._sample(number, run, crew, probe))
        run.spent_ns += time.perf_counter_ns() - start

    def _sample(self, number: int, run: Run, crew: Crew, probe: Crew) -> None:
        limit_s, probe_s = self.limits.of_batch(run.plan), self.limits.batch_s
        crew.run(limit_s)  # brings caches and threads back; it does not count
        end, before = time.perf_counter_ns() + TURN_NS, probe.run(probe_s)
        while True:
            batches, due = list[int](), time.perf_counter_ns() + PROBE_EVERY_NS
            while not batches or time.perf_counter_ns() < due:
                batches.append(crew.run(limit_s))
            after = probe.run(probe_s)
            run.samples_ns += batches
            run.probes_ns += [float(np.sqrt(before * after))] * len(batches)
            run.turns += [number] * len(batches)
            if time.perf_counter_ns() >= end:
                return
            before = after

    def _probe(self) -> Crew:
        """The probe, ready; without it nothing is proved, so a busy machine gets more chances."""
        for left in reversed(range(PROBE_STARTS)):
            probe = Crew([self._prober()])
            try:
                probe.ready(self.limits.setup_s)
                break
            except BaseException as error:
                probe.close()
                if not left or not isinstance(error, MeasurementError):
                    raise
                self.say(f"starting the probe again: {error}")
        return probe

    def _prober(self) -> Role:
        cpus = self.machine.cpus_for(self.cores, smt=False, placement=self.config.placement)
        pinnable = self.machine.pinnable
        return Role(config=None, threads=self.cores, cpus=cpus, pinnable=pinnable)

    def _roles(self, plan: Plan) -> list[Role]:
        return [
            Role(
                config=self._config(one.option),
                threads=one.option.threads,
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

    def _headlines(self, runs: Sequence[Run]) -> None:
        probes = [np.array(run.probes_ns) for run in runs]
        reference = self.reference_ns
        if runs and np.isnan(reference):
            reference = float(np.quantile(np.concatenate(probes), 0.05))
        points = {run: _point(run, reference) for run in runs}
        for run, found in headlines(points).items():
            assert isinstance(run, Run)  # noqa: S101 - they are the keys
            steady = np.exp(np.log(run.samples_ns) - found.exponent * points[run].slowness)
            run.headline = found
            run.steady_ns = np.where(found.disturbed, np.median(steady), steady)


def _point(run: Run, reference_ns: float) -> PointSamples:
    return PointSamples(
        kind="plan",
        latency=np.array(run.samples_ns, dtype=float),
        probe=np.array(run.probes_ns),
        visit=np.array(run.turns),
        reference=reference_ns,
    )


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
