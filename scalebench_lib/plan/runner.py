"""Run plans for real, in turn, and time each from a common start.

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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from statistics import median
from typing import Any

import numpy as np
import psutil

from scalebench_lib.allocators import variables
from scalebench_lib.config import Config, Fraction, Seconds, StrictModel
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine, available_bytes
from scalebench_lib.plan.placement import place
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.worker import WorkerSpec
from scalebench_lib.processes import cause_of_death, kill_group
from scalebench_lib.record import Turn
from scalebench_lib.stats import MIN_TURNS, Interval, Ratio, turns_interval

_COMMAND = (sys.executable, "-m", "scalebench_lib.plan.worker")

_HEAD_START_NS = 1_500_000
_HEAD_START_EACH_NS = 50_000
"""How far ahead a start is set: every instance must have read of it by then."""

_FAREWELL_S = 5.0
"""A process whose pipe has closed is given so long to say why."""


class Workers(ExitStack):
    """Processes that compute at one common start; a context manager that leaves none behind."""

    def __init__(self, specs: Iterable[WorkerSpec]) -> None:
        super().__init__()
        self.by_pipe: dict[Connection, _Worker] = {}
        try:
            for spec in specs:
                worker = _Worker(spec)
                self.callback(worker.close)
                self.by_pipe[worker.pipe] = worker
        except BaseException:
            self.close()
            raise

    def answers(self, limit_s: float) -> list[dict[str, Any]]:
        """Return one message of each worker, the first when it is ready.

        Raises `MeasurementError` if one dies, or does not answer within `limit_s`.
        """
        deadline, left, answers = time.monotonic() + limit_s, dict(self.by_pipe), []
        while left:
            heard = wait(list(left), timeout=max(0.0, deadline - time.monotonic()))
            if not heard:
                raise MeasurementError(
                    f"{len(left)} of {len(self.by_pipe)} instances did not answer "
                    f"within {limit_s:.3g} s"
                )
            answers += [left.pop(pipe).receive() for pipe in heard]  # type: ignore[call-overload]
        return answers

    def run(self, limit_s: float) -> int:
        """Have all compute once; return the ns from their common start to the end of the last one.

        Raises `MeasurementError` as `answers`.
        """
        ahead = _HEAD_START_NS + _HEAD_START_EACH_NS * len(self.by_pipe)
        start = time.perf_counter_ns() + ahead
        for worker in self.by_pipe.values():
            worker.send({"start_ns": start})
        return max(int(answer["ended_ns"]) for answer in self.answers(limit_s)) - start


class _Worker:
    """A process, the pipe to it, and what it writes to standard error."""

    def __init__(self, spec: WorkerSpec) -> None:
        env = {**os.environ, **variables(spec.config.allocator)}
        self.pipe, theirs = Pipe()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [*_COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
                env=env,
            )
        self.send(spec.model_dump(mode="json"))

    def send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # a worker that has died is found out by `receive`
            self.pipe.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_S)
            kill_group(self._process)
            self._errors.seek(0)
            how = cause_of_death(self._process, self._errors.read())
            raise MeasurementError(f"an instance {how}") from None
        return answer

    def close(self) -> None:
        kill_group(self._process)
        self.pipe.close()
        self._errors.close()


TURN_NS = 300_000_000
"""A plan's turn; or one batch, where that takes longer."""

MEMORY_SHARE = 0.85
"""Of the free memory, what parked instances may fill together."""

Say = Callable[[str], None]


class OthersCpu:
    """CPUs that other processes use in the mean from now on, of those that `machine` has."""

    def __init__(self, machine: Machine) -> None:
        self._cpus = {cpu for core in machine.cores for cpu in core.cpus}
        self._since = self._seconds()

    @property
    def mean(self) -> float:
        """All that computed, less this process and its children, which are the instances."""
        (clock, busy), (began, before) = self._seconds(), self._since
        return max(0.0, (busy - before) / (clock - began))

    def _seconds(self) -> tuple[float, float]:
        every = [one for cpu, one in enumerate(psutil.cpu_times(percpu=True)) if cpu in self._cpus]
        busy = sum(one.user + one.system + getattr(one, "nice", 0.0) for one in every)
        for one in (me := psutil.Process(), *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                busy -= sum(one.cpu_times()[:4])  # with those of its own that have ended
        return time.monotonic(), busy


class Limits(StrictModel):
    """Limits of time and precision for running plans.

    `target_ci` is the half-width of the interval over the median, `max_seconds` the time of a
    plan. A plan fails if its instances are not ready within `setup_s`, or a batch takes longer
    than both `batch_s` and twenty times what was predicted.
    """

    target_ci: Fraction = 0.02
    max_seconds: Seconds = 10.0
    setup_s: Seconds = 300.0
    batch_s: Seconds = 30.0


@dataclass(eq=False)
class PlanTiming:
    """The turns of a plan, a sample a batch; `reason` says why it failed."""

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    workers: Workers = field(default_factory=lambda: Workers(()))
    spent_s: float = 0.0
    reason: str | None = None

    @property
    def latency_ms(self) -> Interval | None:
        """The median of its batches, with the interval from its turns; None if it failed."""
        if self.reason or not self.turns:
            return None
        found = turns_interval([turn.median_ns for turn in self.turns])
        middle_ms = median(ns for turn in self.turns for ns in turn.samples_ns) / 1e6
        return Interval(middle_ms, found.variance)

    @property
    def measured(self) -> Plan:
        """The plan with its latency, or with the reason of its failure."""
        return replace(self.plan, measured_ms=self.latency_ms, failed=self.reason)


def paired(one: PlanTiming, other: PlanTiming) -> Ratio | None:
    """Return how much faster `one` is than `other`, paired by cycle; None if they share none."""
    of_cycle = {turn.cycle: turn.median_ns for turn in one.turns}
    pairs = [t.median_ns / of_cycle[t.cycle] for t in other.turns if t.cycle in of_cycle]
    if not pairs:
        return None
    found = turns_interval(pairs)
    return Ratio(found.value, found.variance)


@dataclass
class PlanRunner:
    """Runs plans of the model of `config` on `machine`; calls `say` before each step.

    `other_cpus` is what other processes used in the mean of the last run (see `OthersCpu`).
    """

    config: Config
    machine: Machine
    limits: Limits = field(default_factory=Limits)
    say: Say = lambda _: None
    other_cpus: float | None = None

    def run(self, plans: Iterable[Plan]) -> list[PlanTiming]:
        """Run `plans` in turn; the timing of one that fails has the reason."""
        timings, cycles = [PlanTiming(plan) for plan in plans], count(1)
        others = OthersCpu(self.machine)
        for together in self._memory_batches(timings):
            self._take_turns(together, cycles)
        self.other_cpus = others.mean
        return timings

    def _take_turns(self, timings: Sequence[PlanTiming], cycles: Iterator[int]) -> None:
        """Time plans whose instances are alive together, parked but for one plan's."""
        with ExitStack() as stack:
            for timing in timings:
                self._start_workers(timing, stack)
            shuffle = random.Random(0).shuffle  # noqa: S311
            while (going := [one for one in timings if not one.reason]) and not self._enough(going):
                cycle = next(cycles)
                shuffle(going)
                for timing in going:
                    self._turn(cycle, timing)

    def _start_workers(self, timing: PlanTiming, stack: ExitStack) -> None:
        """Start the instances of a plan, and wait until they are ready."""
        self.say(f"starting {timing.plan}")
        with _failing(timing):
            timing.workers = stack.enter_context(Workers(self.specs(timing.plan)))
            timing.workers.answers(self.limits.setup_s)

    def _enough(self, timings: Sequence[PlanTiming]) -> bool:
        """Return whether all have turns enough, and are known well enough or their time is up."""
        if len(timings[0].turns) < MIN_TURNS:
            return False
        spent_s = sum(timing.spent_s for timing in timings)
        latencies = [found for one in timings if (found := one.latency_ms)]
        known = all(found.half_width <= self.limits.target_ci for found in latencies)
        return known or spent_s >= len(timings) * self.limits.max_seconds

    def _turn(self, cycle: int, timing: PlanTiming) -> None:
        self.say(f"cycle {cycle}, {timing.plan}")
        # A plan that was not predicted has NaN, which fmax passes over.
        limit_s = float(np.fmax(self.limits.batch_s, 20 * timing.plan.predicted_ms / 1e3))
        began = time.perf_counter_ns()
        with _failing(timing):
            if not (timing.turns and timing.turns[-1].median_ns > TURN_NS):
                timing.workers.run(limit_s)  # brings caches and threads back; it does not count
            start, batches = time.perf_counter_ns(), list[int]()
            while not batches or time.perf_counter_ns() < start + TURN_NS:
                batches.append(timing.workers.run(limit_s))
            timing.turns.append(Turn(cycle=cycle, start_ns=start, samples_ns=tuple(batches)))
        timing.spent_s += (time.perf_counter_ns() - began) / 1e9

    def specs(self, plan: Plan) -> Iterator[WorkerSpec]:
        """Yield how to start each instance of `plan`, on its CPUs."""
        for one in place(plan, self.machine, self.config.placement):
            changed = {"batch_size": one.instance.batch_size, **one.instance.settings}
            yield WorkerSpec(
                config=self.config.model_copy(update=changed),
                cpus=one.cpus,
                pinnable=self.machine.pinnable,
            )

    def _memory_batches(self, timings: Sequence[PlanTiming]) -> Iterator[list[PlanTiming]]:
        """Yield all at once if memory allows; else as many at a time as fit."""
        free_mb = MEMORY_SHARE * available_bytes() / 1e6
        instances = [one for timing in timings for one in timing.plan.instances]
        largest = max(one.memory_mb or 0.0 for one in instances)
        together, filled = list[PlanTiming](), 0.0
        for timing in timings:
            # One that was never measured is taken to need as much as the largest.
            needed = sum(one.memory_mb or largest for one in timing.plan.instances)
            if needed > free_mb:
                timing.reason = f"its instances need {needed:.0f} MB, of {free_mb:.0f} MB free"
                continue
            if filled + needed > free_mb:
                self.say("not all plans fit into memory together: they are run in several groups")
                yield together
                together, filled = [], 0.0
            together.append(timing)
            filled += needed
        yield together


@contextmanager
def _failing(timing: PlanTiming) -> Iterator[None]:
    """Fail the plan and end its processes if an instance does not start, dies or hangs."""
    try:
        yield
    except MeasurementError as error:
        timing.reason = str(error)
        timing.workers.close()
    except (OSError, RequestError) as error:
        why = getattr(error, "strerror", error)
        timing.reason = f"its processes could not be started: {why}"
