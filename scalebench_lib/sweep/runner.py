"""Rounds of blocks, in which all that is left of one sweep or more takes turns.

For each block: set up, one trial at a time; for each cycle: shuffle, turn; end, one at a time.
The records alone say what is done. Everything here can be killed at any moment and started again:
at most the block in flight is measured once more.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from scalebench_lib.config import Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import available_bytes
from scalebench_lib.record import Record
from scalebench_lib.sweep.block import Block, Member
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.schedule import Pace, turn_seconds
from scalebench_lib.sweep.stop import Stop
from scalebench_lib.sweep.trial_process import StoppedError

END_S = 0.5
"""Seconds of the end of a trial, roughly: recheck, record, drawing."""

BLOCK_S = 300.0
"""Seconds after which a block is long enough: a kill costs no more than that."""


@dataclass(frozen=True)
class Step:
    """Where a sweep is: what it is `doing` in a round, and the block in flight.

    `record` is one that was just made, by `run`. `done` of `total` trials of this round have
    ended; `seconds_left` are those of the whole sweep, at most.
    """

    round: int
    doing: str
    block: Block
    done: int
    total: int
    seconds_left: float
    record: Record | None = None
    run: SweepRun | None = None


Progressed = Callable[[Step], None]


def run_in_turn(
    runs: Sequence[SweepRun], progressed: Progressed, budget_s: float = float("inf")
) -> list[Record]:
    """Run what is left of each of `runs`, round by round; of the same config, in the same block.

    They are the same sweep, in different environments. Returns the new records, failed ones too.
    After `budget_s` seconds, or the first Ctrl-C or SIGTERM, the block in flight ends with its
    cycle. Raises `RequestError` where another sweep is running, and `ScalebenchError` where the
    disk is full or the machine is no longer what it was: then the sweep stops, and can be gone
    on with.
    """
    stop = Stop(time.monotonic() + budget_s)
    with ExitStack() as locks:
        for run in runs:
            if not run.locked:
                locks.enter_context(run.alone("refuse" if run is runs[0] else "beside"))
            run.write_spec()
        before = [len(run.records) for run in runs]
        locks.enter_context(stop.at_signals())
        for number in range(1, runs[0].sweep.rounds + 1):
            _Round(runs, number, stop, progressed).run()
    return [r for run, count in zip(runs, before, strict=True) for r in run.records[count:]]


def run_block(run: SweepRun, number: int, wanted: Container[str], stop: Stop) -> list[Trial]:
    """Run one block of round `number`, of the configs `wanted` (ids); returns those left of them.

    Raises as `run_in_turn`.
    """
    turn = _Round([run], number, stop, lambda step: None)
    turn.queue = [trial for trial in turn.queue if trial.config.id in wanted]
    if turn.queue and not stop():
        turn.run_block()
    return turn.queue


class _Wanted(NamedTuple):
    """A trial to be set up; `again`: it is a base that was measured before."""

    run: SweepRun
    trial: Trial
    again: bool


class _Round:
    """One round: what is left of it, in blocks."""

    def __init__(
        self, runs: Sequence[SweepRun], number: int, stop: Stop, progressed: Progressed
    ) -> None:
        self.runs, self.number, self.stop, self._progressed = runs, number, stop, progressed
        self._random = random.Random(f"{runs[0].sweep.seed} {number}")  # noqa: S311
        self.pace = Pace.of(record for run in runs for record in run.records)
        schedules = [run.schedule for run in runs]
        self._bases = schedules[0].base
        pending = [schedule.pending(number) for schedule in schedules]
        self.queue = list(dict.fromkeys(trial for trials in pending for trial in trials))
        self._asked = [set(trials) for trials in pending]
        self.total = sum(map(len, pending))
        rounds = range(number + 1, runs[0].sweep.rounds + 1)
        self._later = [t for schedule in schedules for n in rounds for t in schedule.pending(n)]

    def run(self) -> None:
        """Measure it, block by block, until it is done or somebody wants to stop."""
        while self.queue and not self.stop():
            self.run_block()

    def run_block(self) -> None:
        """Measure as much of the queue as fits into a block."""
        self.runs[0].require_same_machine()
        seed = f"{self.runs[0].sweep.seed} {self.number} {len(self.queue)}"
        block = Block(secrets.token_hex(4), seed)
        block.changed = partial(self._tell, "in turn", block)
        try:
            self._fill(block)
            block.run(self.stop)
            block.end(partial(self._ended, block))
        except StoppedError:
            pass  # without turns there is nothing to keep
        finally:
            block.kill()

    def _fill(self, block: Block) -> None:
        """Set up as many of the queue as fit, each with the base of its group.

        Of a time budget at most half goes by so: without turns there is nothing to keep.
        """
        half = (time.monotonic() + self.stop.deadline) / 2
        unpaired = False
        while self.queue and not unpaired and time.monotonic() <= half:
            wanted = list(self._wanted(block, self.queue[0]))
            if wanted and block.members and not self._room(block, wanted):
                return
            unpaired = self._set_up_all(wanted, block)
            self.queue.pop(0)

    def _wanted(self, block: Block, trial: Trial) -> Iterator[_Wanted]:
        """`trial` in each sweep in which it is left, after its base where `block` lacks that."""
        asking = [run for run, asked in zip(self.runs, self._asked, strict=True) if trial in asked]
        for run in self._random.sample(asking, len(asking)):
            if reason := run.schedule.skip_reason(trial):
                run.keep_skipped(run.numbered(trial, self.number, block.name), reason)
                continue
            if base := self._missing_base(block, run, trial):
                yield _Wanted(run, base, again=True)
            yield _Wanted(run, trial, again=False)

    def _missing_base(self, block: Block, run: SweepRun, trial: Trial) -> Trial | None:
        """The base that `trial` needs beside it and `block` lacks; None where it cannot be had."""
        base = self._bases(trial)
        there = (m.trial.config for m in block.members if m.process.out == run.out)
        had = base.config in (trial.config, *there)
        return None if had or not run.measured(base.config) else base

    def _set_up_all(self, wanted: Sequence[_Wanted], block: Block) -> bool:
        """Set up `wanted`, one after another. Returns whether the memory did not hold a trial
        beside its base: then it stays alone."""
        unpaired, beside = False, list[Member]()
        for run, trial, again in wanted:
            if not again and beside and not self._fits([trial], block):
                unpaired = True
                while beside:
                    block.remove(beside.pop())
            member = self._set_up(block, run, trial, again)
            if again and member:
                beside.append(member)
        return unpaired

    def _room(self, block: Block, wanted: Sequence[_Wanted]) -> bool:
        """Whether `wanted` can join: by memory, and by how long the block takes.

        The first trial beside its base may take as long as it likes.
        """
        trials = [one.trial for one in wanted]
        paired = not any(one.again for one in wanted)
        group = trials[-1].config.group
        first = paired and all(m.base and m.group == group for m in block.members)
        seconds = sum(map(self.pace.turns_s, [*trials, *(m.trial for m in block.members)]))
        return (first or seconds <= BLOCK_S) and self._fits(trials, block)

    def _fits(self, trials: Sequence[Trial], block: Block) -> bool:
        """Whether the memory that is available now holds what `trials` need to be set up: each
        its own last peak, else the largest so far. Alone, a trial is always tried."""
        records = (record for run in self.runs for record in run.records)
        known = {r.config_id: r.peak_memory_bytes for r in records if r.peak_memory_bytes}
        running = (member.process.peak_bytes for member in block.members)
        largest = max([*known.values(), *running], default=0)
        need = sum(known.get(trial.config.id, largest) for trial in trials)
        return not block.members or need <= available_bytes()

    def _set_up(self, block: Block, run: SweepRun, trial: Trial, again: bool) -> Member | None:
        trial = run.numbered(trial, self.number, block.name)
        self._tell(f"setting up {trial}", block)
        started, start = datetime.now(UTC), time.monotonic()
        try:
            process = run.set_up(trial, self.stop.asked)
        except MeasurementError as error:
            record = run.keep_failed(trial, str(error), started)
            self._tell(f"setting up {trial}", block, record, run)
            return None
        self.pace.learn_setup(trial.config.batch_size, time.monotonic() - start + END_S)
        is_base = trial.config == self._bases(trial).config
        return block.add(process, trial.config.group, base=is_base, again=again)

    def _ended(self, block: Block, member: Member, found: Record | str) -> None:
        """Count what became of `member`."""
        run = next(run for run in self.runs if run.out == member.process.out)
        if isinstance(found, str):
            record = run.keep_failed(member.trial, found)
        else:
            record = run.keep_measured(member.trial, found)
        for point in record.points:
            self.pace.learn_turn(member.trial.config.batch_size, turn_seconds(point))
        self._tell(f"ending {member.trial}", block, record, run)

    def _tell(
        self, doing: str, block: Block, record: Record | None = None, run: SweepRun | None = None
    ) -> None:
        running = sum(not member.again for member in block.running)
        left = sum(trial in asked for trial in self.queue for asked in self._asked)
        done = max(0, self.total - left - running)
        seconds = self._seconds_left(block)
        self._progressed(Step(self.number, doing, block, done, self.total, seconds, record, run))

    def _seconds_left(self, block: Block) -> float:
        """Of the whole sweep, at most: what the block has left, and the trials after it."""
        running = [member for member in block.running if not member.again]
        planned = sum(self.pace.turns_s(member.trial) for member in running)
        spent = sum(point.spent_s for member in running for point in member.points.values())
        ends = END_S * len(block.members)
        queued = [trial for trial in self.queue for asked in self._asked if trial in asked]
        after = sum(map(self.pace.trial_s, [*queued, *self._later]))
        return max(0.0, planned - spent) + ends + after
