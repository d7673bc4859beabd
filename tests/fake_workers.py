"""Trials without a model: they take turns by a clock of the test's own, and leave records.

`FakeTrials` is in the place of `TrialProcess.start`; what it sets up is a `block.Process`.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scalebench_lib.config import Sweep, Trial
from scalebench_lib.protocol import EndedBy, TurnResult
from scalebench_lib.record import Point, Record, Setup, Software, Turn
from scalebench_lib.stats import MIN_TURNS
from scalebench_lib.sweep.runner import SweepProgress, run_rounds
from scalebench_lib.sweep.sweep_run import SweepRun
from scalebench_lib.sweep.trial_process import StoppedError
from tests.factories import START, machine

SMALL = machine(cores=2, smt=False)
SWEEP = Sweep(batch_sizes=(1, 4), optimizations=("none", "script", "bf16"), max_seconds=2, rounds=2)


class FakeClock:
    """Seconds that pass only where somebody says so; in the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The time."""
        return self.now


class FakeKernels:
    """Kernels that nobody starts; `warning` is that of a real `Kernels`."""

    kind = "warm"
    warning = None


class Event(NamedTuple):
    """A trial did something: ``set up``, ``turn``, ``end`` or ``killed``."""

    phase: str
    trial: str
    cycle: int = 0
    threads: int = 0


Happens = Callable[[str, Trial, int], None]
"""Called with the phase, the trial and the cycle before each; what it raises, happens."""


def nothing(phase: str, trial: Trial, cycle: int) -> None:
    """All goes well."""


def short(trial: Trial) -> str:
    """``script 4``: the optimization and the batch size."""
    return f"{trial.config.optimization} {trial.config.batch_size}"


def short_of(record: Record) -> str:
    """As `short` of its trial."""
    return f"{record.config.optimization} {record.config.batch_size}"


def at(phase: str, name: str, error: BaseException, cycle: int = 0) -> Happens:
    """This happens the first time that trial `name` comes to `phase` (in `cycle`, or any)."""
    left = [error]

    def happens(now: str, trial: Trial, number: int) -> None:
        if (now, short(trial)) == (phase, name) and cycle in (0, number) and left:
            raise left.pop()

    return happens


@dataclass
class FakeTrials:
    """Sets trials up, which then compute for `pass_s` seconds a pass and hold `peak` bytes each.

    The points are known to `half_width`. `events` is what they did, in this order.
    """

    happens: Happens = nothing
    pass_s: Callable[[Trial, int], float] = lambda trial, threads: 0.1
    half_width: Callable[[Trial, int], float] = lambda trial, threads: 0.5
    peak: Callable[[Trial], int] = lambda trial: 0
    setup_s: float = 1.0
    memory: int = 1000
    clock: FakeClock = field(default_factory=FakeClock)
    events: list[Event] = field(default_factory=list)
    alive: list["FakeTrial"] = field(default_factory=list)

    def __call__(self, trial: Trial, out: Path, kernels, limit_s, stopping) -> "FakeTrial":
        """As `TrialProcess.start`."""
        self.note("set up", trial)
        self.clock.now += self.setup_s
        if stopping():
            raise StoppedError
        self.alive.append(FakeTrial(trial, out, self, self.setup_s, self.peak(trial)))
        return self.alive[-1]

    def note(self, phase: str, trial: Trial, cycle: int = 0, threads: int = 0) -> None:
        """Let it happen."""
        self.events.append(Event(phase, short(trial), cycle, threads))
        self.happens(phase, trial, cycle)

    def available_bytes(self) -> int:
        """What those that live on this host leave of the memory; a host is a thread."""
        here = threading.get_ident()
        return self.memory - sum(one.peak_bytes for one in self.alive if one.thread == here)

    def did(self, phase: str) -> list[str]:
        """The trials that did this, in order."""
        return [event.trial for event in self.events if event.phase == phase]

    def blocks(self) -> list[list[str]]:
        """The trials that took turns with each other, in the order in which they were set up."""
        found: list[list[str]] = [[]]
        for before, event in zip([None, *self.events], self.events, strict=False):
            if event.phase == "set up":
                if before is not None and before.phase != "set up":
                    found.append([])
                found[-1].append(event.trial)
        return found


@dataclass(eq=False)
class FakeTrial:
    """A `Process` that is there only to be told what to do."""

    trial: Trial
    out: Path
    of: FakeTrials
    setup_s: float = 1.0
    peak_bytes: int = 0
    thread: int = field(default_factory=threading.get_ident)
    taken: dict[int, list[Turn]] = field(default_factory=dict)

    def turn(self, cycle: int, threads: int, seconds: float) -> TurnResult:
        """As `TrialProcess.turn`."""
        self.of.note("turn", self.trial, cycle, threads)
        pass_s = self.of.pass_s(self.trial, threads)
        passes = max(1, math.ceil(seconds / pass_s))
        start, turns = self.of.clock.now, self.taken.setdefault(threads, [])
        self.of.clock.now += passes * pass_s
        samples = (round(pass_s * 1e9),) * passes
        turns.append(Turn(cycle=cycle, start_ns=round(start * 1e9), samples_ns=samples))
        half_width = self.of.half_width(self.trial, threads)
        return TurnResult(
            median_ns=samples[0],
            half_width=half_width if len(turns) >= MIN_TURNS else None,
            spent_s=passes * pass_s,
        )

    def end(self, reason: EndedBy) -> Record:
        """As `TrialProcess.end`."""
        self.of.note("end", self.trial)
        record = self.record(reason)
        record.save(self.out / "records")
        self._gone()
        return record

    def kill(self) -> None:
        """As `TrialProcess.kill`."""
        if self in self.of.alive:
            self.of.note("killed", self.trial)
            self._gone()

    def _gone(self) -> None:
        if self in self.of.alive:
            self.of.alive.remove(self)

    def record(self, reason: EndedBy) -> Record:
        """What it has found."""
        return Record(
            config=self.trial.config,
            config_id=self.trial.config.id,
            trial=self.trial.number,
            round=self.trial.round,
            block=self.trial.block or None,
            status="ok",
            ended_by=reason,
            started=START,
            finished=START,
            machine=SMALL,
            software=Software.here(),
            setup=Setup(build_s=self.setup_s, optimize_s=0, first_pass_s=0),
            peak_memory_bytes=self.peak_bytes or None,
            points=tuple(map(self._point, self.trial.threads)),
        )

    def _point(self, threads: int) -> Point:
        turns = tuple(self.taken[threads])
        return Point(threads=threads, cores=threads, cpus=range(threads), pinned=True, turns=turns)


class Killed(BaseException):
    """The runner is gone, in the middle of whatever it did."""


def quiet(_: SweepProgress) -> None:
    """No progress to be seen."""


def run_fakes(
    trials: FakeTrials, out: Path, sweep: Sweep = SWEEP, progressed=quiet, **more: object
) -> list[Record]:
    """Run `sweep` with these trials, as far as it goes; returns the new records."""
    prepared = SweepRun.prepare(sweep, out, bool(more.pop("retry_failed", False)))
    prepared.start, prepared.kernels, known = trials, FakeKernels(), len(prepared.records)
    run_rounds([prepared], progressed, **more)
    return prepared.records[known:]
