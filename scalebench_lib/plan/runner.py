"""Plans are run for real, in turn, and timed from a common start.

Each instance is a process with its own copy of the model on its own CPUs, started once and
parked while others have their turn. The plans take turns in shuffled cycles, so that they meet
the same states of the machine: a ratio of two plans is that of their turns of one cycle.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from statistics import median
from typing import Any, Self

import numpy as np
import psutil

from scalebench_lib.allocators import preload
from scalebench_lib.config import Config, Fraction, Seconds, StrictModel
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.plan.placement import placed
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.worker import WorkerSpec
from scalebench_lib.processes import cause_of_death, end
from scalebench_lib.record import Turn
from scalebench_lib.stats import MIN_TURNS, Interval, Ratio, turns_interval

_COMMAND = (sys.executable, "-m", "scalebench_lib.plan.worker")

_HEAD_START_NS = 1_500_000
_HEAD_START_EACH_NS = 50_000
"""How far ahead a start is set: every instance must have read of it by then."""

_FAREWELL_S = 5.0
"""A process whose pipe has closed is given so long to say why."""


class Workers:
    """Processes that compute at one common start; a context manager that leaves none behind."""

    def __init__(self, roles: Sequence[WorkerSpec]) -> None:
        self._members: dict[Connection, _Member] = {}
        try:
            for role in roles:
                member = _Member(role)
                self._members[member.pipe] = member
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the workers, whatever it is doing."""
        for member in self._members.values():
            member.close()
        self._members.clear()

    def ready(self, limit_s: float) -> None:
        """Wait until all are ready; `MeasurementError` where one dies or takes too long."""
        self._answers(limit_s)

    def run(self, limit_s: float) -> int:
        """All compute once, from a common start to the end of the last one: ns.

        Raises `MeasurementError` where one dies, or does not end within `limit_s`.
        """
        ahead = _HEAD_START_NS + _HEAD_START_EACH_NS * len(self._members)
        start = time.perf_counter_ns() + ahead
        for member in self._members.values():
            member.send({"start_ns": start})
        answers = self._answers(limit_s)
        return int(max(answer["ended_ns"] for answer in answers)) - start

    def _answers(self, limit_s: float) -> list[dict[str, Any]]:
        """One message from each member."""
        deadline, left, answers = time.monotonic() + limit_s, dict(self._members), []
        while left:
            heard = wait(list(left), timeout=max(0.0, deadline - time.monotonic()))
            if not heard:
                raise MeasurementError(
                    f"{len(left)} of {len(self._members)} instances did not answer "
                    f"within {limit_s:.3g} s"
                )
            answers += [left.pop(pipe).receive() for pipe in heard]  # type: ignore[call-overload]
        return answers


class _Member:
    """A process, the pipe to it, and what it writes to standard error."""

    def __init__(self, role: WorkerSpec) -> None:
        env = {**os.environ, **preload(role.config.allocator)}
        self.pipe, theirs = Pipe()
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [*_COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                start_new_session=True,
                env=env,
            )
        self.send(role.model_dump(mode="json"))

    def send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # that it is gone shows when it is listened to
            self.pipe.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_S)
            end(self._process)
            self._words.seek(0)
            how = cause_of_death(self._process, self._words.read())
            raise MeasurementError(f"an instance {how}") from None
        return answer

    def close(self) -> None:
        end(self._process)
        self.pipe.close()
        self._words.close()


_NS = 1_000_000_000

TURN_NS = 300_000_000
"""A plan's turn; or one batch, where that takes longer."""

MEMORY_SHARE = 0.85
"""Of the free memory, what parked instances may fill together."""

Say = Callable[[str], None]


class Limits(StrictModel):
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
class PlanRunner:
    """Runs plans of the model of `config` on `machine`; `say` hears of each step."""

    config: Config
    machine: Machine
    limits: Limits = field(default_factory=Limits)
    say: Say = lambda _: None
    seed: int = 0

    def run(self, plans: Sequence[Plan]) -> list[Run]:
        """Run `plans` in turn; one that cannot be run, dies or hangs has its reason instead."""
        runs, cycles = [Run(plan) for plan in plans], count(1)
        for wave in self._memory_batches(runs):
            self._wave(wave, cycles)
        return runs

    def _wave(self, runs: Sequence[Run], cycles: Iterator[int]) -> None:
        """Runs whose instances are all alive together, parked but for one plan's."""
        with ExitStack() as stack:
            crews = {run: workers for run in runs if (workers := self._start_workers(run, stack))}
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

    def _start_workers(self, run: Run, stack: ExitStack) -> Workers | None:
        """The instances of a plan, ready; None, with the reason in `run`, where they are not."""
        self.say(f"starting {run.plan}")
        try:
            workers = stack.enter_context(Workers(self._roles(run.plan)))
        except (OSError, RequestError) as error:
            why = getattr(error, "strerror", error)
            run.reason = f"its processes could not be started: {why}"
            return None
        _or_fail(run, workers, lambda: workers.ready(self.limits.setup_s))
        return None if run.reason else workers

    def _turn(self, cycle: int, run: Run, workers: Workers) -> None:
        self.say(f"cycle {cycle}, {run.plan}")
        start = time.perf_counter_ns()
        _or_fail(run, workers, lambda: run.turns.append(self._sampled(cycle, run, workers)))
        run.spent_ns += time.perf_counter_ns() - start

    def _sampled(self, cycle: int, run: Run, workers: Workers) -> Turn:
        limit_s = self.limits.of_batch(run.plan)
        if not (run.turns and run.turns[-1].median_ns > TURN_NS):
            workers.run(limit_s)  # brings caches and threads back; it does not count
        start, batches = time.perf_counter_ns(), list[int]()
        while not batches or time.perf_counter_ns() < start + TURN_NS:
            batches.append(workers.run(limit_s))
        return Turn(cycle=cycle, start_ns=start, samples_ns=tuple(batches))

    def _roles(self, plan: Plan) -> list[WorkerSpec]:
        return [
            WorkerSpec(
                config=self._config(one.option),
                cpus=one.cpus,
                pinnable=self.machine.pinnable,
            )
            for one in placed(plan, self.machine, self.config.placement)
        ]

    def _config(self, option: Any) -> Config:
        names = ("batch_size", "optimization", "smt", "allocator")
        return self.config.model_copy(update={name: getattr(option, name) for name in names})

    def _memory_batches(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
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


def _or_fail(run: Run, workers: Workers, work: Callable[[], object]) -> None:
    """Do `work`; where an instance dies or hangs, the plan fails and its processes end."""
    try:
        work()
    except MeasurementError as error:
        run.reason = str(error)
        workers.close()


def _memory_mb(plan: Plan, runs: Iterable[Run]) -> float:
    """What the instances need together; one that was never measured as much as the largest."""
    known = [one.memory_mb or 0.0 for run in runs for one in run.plan.instances]
    return sum(one.memory_mb or max(known) for one in plan.instances)
