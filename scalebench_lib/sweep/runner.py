"""Run rounds of blocks, in which the trials that are left of one sweep or more take turns.

For each block: set up, one trial at a time; for each cycle: shuffle, turn; end, one at a time.
The records alone say what is done: the sweep can be killed at any moment and started again, and
measures at most the last block once more.
"""

from __future__ import annotations

import math
import random
import secrets
import signal
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from scalebench_lib.config import Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine, available_bytes
from scalebench_lib.processes import mute_terminal
from scalebench_lib.record import Record
from scalebench_lib.sweep.block import Block, Member
from scalebench_lib.sweep.schedule import END_S, DurationForecast
from scalebench_lib.sweep.sweep_run import SweepRun
from scalebench_lib.sweep.trial_process import StoppedError

BLOCK_S = 300.0
"""The time of a full block, and the most that a kill costs."""


@dataclass(frozen=True)
class SweepProgress:
    """The state of a running sweep, for its progress display.

    `done` of `total` trials of this round have had their turns; `record`, of `run`, is new.
    `seconds_left` is the most that the whole sweep still takes.
    """

    round: int
    doing: str
    block: Block
    done: int
    total: int
    seconds_left: float
    record: Record | None = None
    run: SweepRun | None = None


Progressed = Callable[[SweepProgress], None]


def run_rounds(
    runs: Sequence[SweepRun],
    progressed: Progressed,
    budget_s: float = math.inf,
    if_busy: str = "refuse",
) -> None:
    """Run what is left of each of `runs`, round by round.

    The runs are the same sweep in different environments: trials of one config share a block.
    After `budget_s` seconds, or the first Ctrl-C or SIGTERM, the block in flight ends with its
    cycle. Raises `RequestError` where another sweep is running, and `ScalebenchError` where the
    disk is full, or where machine or model have changed.
    """
    stop = StopRequest(time.monotonic() + budget_s)
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.locked(if_busy if run is runs[0] else "ignore"))
        stack.enter_context(stop.at_signals())
        for number in range(1, runs[0].sweep.rounds + 1):
            this_round = Round(runs, number, stop, progressed)
            while this_round.queue and not stop():
                this_round.run_block()


class StopRequest:
    """Whether to end the sweep after the cycle in flight: by a signal, or a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.signum: int | None = None

    def __call__(self) -> bool:
        return self.asked() or time.monotonic() > self.deadline

    def asked(self) -> bool:
        """Return whether a signal has asked for the end."""
        return self.signum is not None

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM ask for the end; the second acts at once.

        So does a terminal that closes, which shell and system may both report. The first one is
        raised again at the end.
        """
        asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {signum: signal.getsignal(signum) for signum in asking}
        before = {s: handler for s, handler in before.items() if handler is not signal.SIG_IGN}

        def restore() -> None:
            for signum, handler in before.items():
                signal.signal(signum, handler)

        def ask(signum: int, frame: FrameType | None) -> None:
            self.signum = signum
            restore()
            if signum == signal.SIGHUP:
                signal.signal(signum, signal.SIG_IGN)
                mute_terminal()

        for signum in before:
            signal.signal(signum, ask)
        try:
            yield
        finally:
            restore()
        if self.signum is not None:
            signal.raise_signal(self.signum)


class Round:
    """One round: `queue` maps each trial that is left to the runs that lack it.

    Of the config ids that are `wanted`, or of all.
    """

    def __init__(
        self,
        runs: Sequence[SweepRun],
        number: int,
        stop: StopRequest,
        progressed: Progressed = lambda step: None,
        wanted: Container[str] | None = None,
    ) -> None:
        self.runs, self.number, self.stop, self._progressed = runs, number, stop, progressed
        self._seed = f"{runs[0].sweep.seed} {number}"
        self._random = random.Random(self._seed)  # noqa: S311
        self._base = runs[0].schedule.base
        self.queue: dict[Trial, list[SweepRun]] = {}
        for run in runs:
            for trial in run.schedule.pending(number):
                if wanted is None or trial.config.id in wanted:
                    self.queue.setdefault(trial, []).append(run)
        self._total = self._queued

    @property
    def _queued(self) -> int:
        return sum(map(len, self.queue.values()))

    def _forecast(self) -> None:
        """Tell by what was seen so far how long turns take, and all that is not set up yet."""
        self._pace = DurationForecast(record for run in self.runs for record in run.records)
        self._ahead_s = sum(run.seconds_left(self._pace) for run in self.runs)

    def _seconds_left(self, block: Block) -> float:
        """Return the most that the sweep takes: `block`, by what its turns took, then the rest."""
        turns_s = sum(self._pace.turns_s(member.trial) for member in block.running)
        spent_s = sum(one.spent_s for member in block.running for one in member.points.values())
        ends_s = END_S * sum(not member.ended for member in block.members)
        return max(0.0, turns_s - spent_s) + ends_s + max(0.0, self._ahead_s)

    def run_block(self) -> None:
        """Measure as much of the queue as fits into a block."""
        self.runs[0].require_machine(Machine.here())
        self._forecast()
        block = Block(secrets.token_hex(4), f"{self._seed} {len(self.queue)}")
        block.changed = lambda: self._tell("in turn", block)
        try:
            self._fill(block)
            block.run(self.stop)
            for member, found in block.end():
                self._add_result(block, member, found)
        except StoppedError:
            pass  # without turns nothing is kept
        finally:
            block.kill()

    def _fill(self, block: Block) -> None:
        """Set up as many of the queue as fit, each with the base of its group.

        A trial that does not fit into memory together with its base has a block for itself.
        Set-ups take at most half of a time budget: without turns nothing is kept.
        """
        half = (time.monotonic() + self.stop.deadline) / 2
        fits = True
        while self.queue and fits and time.monotonic() <= half:
            trial = next(iter(self.queue))
            wanted = list(self._wanted(block, trial))
            trials = [one for _, one in wanted]
            fits = self._fits(block, trials)
            if block.members and not (fits and self._in_time(block, trial, trials)):
                return
            for run, one in wanted:
                if fits or one is trial:
                    self._set_up(block, run, one, remeasured=one is not trial)
            del self.queue[trial]

    def _wanted(self, block: Block, trial: Trial) -> Iterator[tuple[SweepRun, Trial]]:
        """Yield `trial` for each run that lacks it, after its base where `block` lacks that."""
        for run in self._random.sample(self.queue[trial], len(self.queue[trial])):
            if reason := run.schedule.skip_reason(trial):
                numbered = run.numbered(trial, self.number, block.name)
                run.add_without_points(numbered, "skipped", reason)
                self._ahead_s -= self._pace.trial_s(trial)
                # Once, though the block may be full for the other runs.
                self.queue[trial] = [one for one in self.queue[trial] if one is not run]
                continue
            base = self._base(trial)
            there = [m.trial.config for m in block.members if m.process.out == run.out]
            if base.config not in (trial.config, *there) and run.has_measured(base.config):
                yield run, base
            yield run, trial

    def _in_time(self, block: Block, trial: Trial, wanted: list[Trial]) -> bool:
        """Return whether `block` has time for `wanted`: for the first after its base, always."""
        there = [member.trial for member in block.members]
        if not wanted or {one.config for one in there} == {self._base(trial).config}:
            return True
        return sum(map(self._pace.turns_s, [*there, *wanted])) <= BLOCK_S

    def _fits(self, block: Block, wanted: list[Trial]) -> bool:
        """Return whether the available memory holds `wanted`.

        A trial needs its own last peak, else the largest so far, to be set up, and then its
        resident memory.
        """
        records = [record for run in self.runs for record in run.records]
        peaks = {r.config_id: r.peak_memory_bytes for r in records if r.peak_memory_bytes}
        resident = {r.config_id: r.resident_bytes for r in records if r.resident_bytes}
        running = (member.process.peak_bytes for member in block.members)
        largest = max([*peaks.values(), *running], default=0)
        need = kept = 0
        for config_id in (trial.config.id for trial in wanted):
            peak = peaks.get(config_id, largest)
            need = max(need, kept + peak)
            kept += resident.get(config_id, peak)
        return need <= available_bytes()

    def _set_up(self, block: Block, run: SweepRun, trial: Trial, remeasured: bool) -> None:
        trial = run.numbered(trial, self.number, block.name)
        self._tell(f"setting up {trial}", block)
        self._ahead_s -= 0.0 if remeasured else self._pace.trial_s(trial)
        try:
            process = run.start(trial, run.out, run.kernels, run.trial_timeout, self.stop.asked)
        except MeasurementError as error:
            record = run.add_result(trial, str(error))
            self._tell(f"setting up {trial}", block, record, run)
        else:
            block.add(process, trial.config.group, remeasured)

    def _add_result(self, block: Block, member: Member, found: Record | str) -> None:
        run = next(run for run in self.runs if run.out == member.process.out)
        record = run.add_result(member.trial, found)
        self._tell(f"ending {member.trial}", block, record, run)

    def _tell(
        self, doing: str, block: Block, record: Record | None = None, run: SweepRun | None = None
    ) -> None:
        running = sum(not member.remeasured for member in block.running)
        done = max(0, self._total - self._queued - running)
        left_s = self._seconds_left(block)
        self._progressed(
            SweepProgress(self.number, doing, block, done, self._total, left_s, record, run)
        )
