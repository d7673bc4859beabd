"""A sweep: rounds of blocks, in which all that is left to measure takes turns.

For each block: set up, one trial at a time; for each cycle: shuffle, turn; end, one at a time.
The records alone say what is done. Everything here can be killed at any moment and started again:
at most the block in flight is measured once more.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from scalebench_lib.allocators import require_installed
from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.errors import MeasurementError, ScalebenchError
from scalebench_lib.files import DamagedError, set_aside, write_atomically
from scalebench_lib.machine import Machine, available_bytes
from scalebench_lib.record import KernelKind, Record, Software, Status, load_records, next_trial
from scalebench_lib.software import deciding
from scalebench_lib.sweep.block import Block, Member, Process
from scalebench_lib.sweep.folder import disk_errors_told, require_same, sweep_up, usable_records
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import folder_to_itself, machine_to_itself
from scalebench_lib.sweep.schedule import SPEC, Pace, Schedule, turn_seconds
from scalebench_lib.sweep.stop import Stop
from scalebench_lib.sweep.trial_process import StoppedError, TrialProcess

END_S = 0.5
"""Seconds of the end of a trial, roughly: recheck, record, drawing."""

BLOCK_S = 300.0
"""Seconds after which a block is long enough: a kill costs no more than that."""


class Start(Protocol):
    """Sets up a trial of the sweep in folder `out`, as `TrialProcess.start`."""

    def __call__(
        self,
        trial: Trial,
        out: Path,
        kernels: Kernels,
        environment: Mapping[str, str],
        limit_s: float | None,
        stopping: Callable[[], bool],
    ) -> Process:
        """See there."""


@dataclass(frozen=True)
class Step:
    """Where a sweep is: what it is `doing` in a round, and the block in flight.

    `record` is one that was just made. `done` of `total` trials of this round have ended;
    `seconds_left` are those of the whole sweep, at most.
    """

    round: int
    doing: str
    block: Block
    done: int
    total: int
    seconds_left: float
    record: Record | None = None


Progressed = Callable[[Step], None]


@dataclass
class SweepRun:
    """A sweep in its folder, checked and ready to run.

    `trial_timeout` bounds the set-up of a trial, each turn, and its end, in seconds.
    """

    sweep: Sweep
    machine: Machine
    software: Software
    out: Path
    records: list[Record]
    retry: set[str] = field(default_factory=set)
    trial_timeout: float | None = None
    start: Start = TrialProcess.start
    _alone: bool = field(default=False, init=False)

    @classmethod
    def prepare(cls, sweep: Sweep, out: Path, retry_failed: bool = False) -> SweepRun:
        """Check `sweep` against this machine and folder `out`; writes nothing.

        Raises `RequestError` where the machine lacks what is asked, or `out` cannot take it.
        """
        machine, software = Machine.here(), Software.here()
        require_installed(sweep.allocators)
        records = usable_records(sweep, out)
        require_same(sweep, machine, software, out, records)
        run = cls(sweep, machine, software, out, records)
        if retry_failed:
            run.retry = {record.config_id for record in records if record.status != "ok"}
        _ = run.schedule.trials  # raises where the machine lacks what is asked
        return run

    @property
    def schedule(self) -> Schedule:
        """What is left, by the records so far."""
        return Schedule(self.sweep, self.machine, tuple(self.records), frozenset(self.retry))

    def forecast(self) -> float:
        """Seconds that the sweep will still take, at most."""
        pace, schedule = Pace.of(self.records), self.schedule
        rounds = range(1, self.sweep.rounds + 1)
        return sum(pace.trial_s(trial) for number in rounds for trial in schedule.pending(number))

    @contextmanager
    def alone(self, if_busy: str = "refuse") -> Iterator[None]:
        """Keep other sweeps out of this folder, and off this machine unless told otherwise.

        Raises `RequestError` where another one is there already, naming its process.
        """
        with disk_errors_told(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            with folder_to_itself(self.out), machine_to_itself(str(self.out), if_busy):
                sweep_up(self.out)
                self.records[:] = load_records(self.out)
                self._alone = True
                try:
                    yield
                finally:
                    self._alone = False

    def run(
        self, progressed: Progressed, kernels: Kernels, budget_s: float = float("inf")
    ) -> list[Record]:
        """Run what is left, round by round; returns the new records, failed ones too.

        After `budget_s` seconds, or the first Ctrl-C or SIGTERM, the block in flight ends with
        its cycle. Raises `RequestError` where another sweep is running, and `ScalebenchError`
        where the disk is full or the machine is no longer what it was: then the sweep stops, and
        can be gone on with.
        """
        if not self._alone:
            with self.alone():
                return self.run(progressed, kernels, budget_s)
        before, stop = len(self.records), Stop(time.monotonic() + budget_s)
        self._write_spec()
        with stop.at_signals():
            for number in range(1, self.sweep.rounds + 1):
                _Round(self, number, stop, progressed, kernels).run()
        return self.records[before:]

    def measured(self, config: Config) -> bool:
        """Whether any trial of `config` went well."""
        return any(r.config_id == config.id and r.status == "ok" for r in self.records)

    def keep(self, record: Record) -> None:
        """Count `record`, which was just made."""
        self.records.append(record)
        self.retry.discard(record.config_id)  # once is enough

    def require_same_machine(self) -> None:
        """Raise `ScalebenchError` where this machine is no longer what it was."""
        self.require_machine(Machine.here())

    def require_machine(self, other: Machine, path: Path | None = None) -> None:
        """The same of `other`; the record at `path`, which was made on it, is set aside."""
        if changed := self.machine.differs_from(other):
            if path is not None:
                set_aside(path, f"{path.name} is of another machine ({changed})")
            raise ScalebenchError(
                f"stopped: the machine is no longer what it was ({changed}), and a sweep does not "
                "mix two; the same command goes on when it is as before"
            )

    def _write_spec(self) -> None:
        """Keep what was asked for, added to what was asked for before."""
        path = self.out / SPEC
        before = Sweep.load(path) if path.exists() else self.sweep
        write_atomically(path, before.merged(self.sweep).dump())


class _Round:
    """One round of a sweep: what is left of it, in blocks."""

    def __init__(
        self, run: SweepRun, number: int, stop: Stop, progressed: Progressed, kernels: Kernels
    ) -> None:
        self.of, self.number, self.stop, self.kernels = run, number, stop, kernels
        self.schedule, self.pace = run.schedule, Pace.of(run.records)
        self.queue = self.schedule.pending(number)
        self.total, self._progressed = len(self.queue), progressed
        later = range(number + 1, run.sweep.rounds + 1)
        self._later = [trial for one in later for trial in self.schedule.pending(one)]
        self._environment = deciding(os.environ)

    def run(self) -> None:
        """Measure it, block by block, until it is done or somebody wants to stop."""
        while self.queue and not self.stop():
            self.of.require_same_machine()
            seed = f"{self.of.sweep.seed} {self.number} {len(self.queue)}"
            block = Block(secrets.token_hex(4), seed)
            block.changed = partial(self._tell, "in turn", block)
            try:
                self._fill(block)
                block.run(self.stop)
                block.end(partial(self._ended, block))
            except StoppedError:
                return
            finally:
                block.kill()

    def _fill(self, block: Block) -> None:
        """Set up as many of the queue as fit, each with the base of its group.

        Of a time budget at most half goes by so: without turns there is nothing to keep.
        """
        half = (time.monotonic() + self.stop.deadline) / 2
        unpaired = False
        while self.queue and not unpaired and time.monotonic() <= half:
            trial = self.queue[0]
            base = self._missing_base(block, trial)
            if reason := self.of.schedule.skip_reason(trial):
                self._without_points(self._numbered(trial, block), "skipped", reason, "none")
            elif block.members and not self._room(block, trial, base):
                return
            else:
                unpaired = self._set_up_with(base, trial, block)
            self.queue.pop(0)

    def _set_up_with(self, base: Trial | None, trial: Trial, block: Block) -> bool:
        """Set up `trial`, beside `base`; returns whether it stays alone, since the memory does not
        hold both."""
        beside = self._set_up(block, base, again=True) if base else None
        unpaired = beside is not None and not self._fits([trial], block)
        if beside and unpaired:
            block.remove(beside)
        self._set_up(block, trial)
        return unpaired

    def _missing_base(self, block: Block, trial: Trial) -> Trial | None:
        """The base that `trial` needs beside it and `block` lacks; None where it cannot be had."""
        base = self.schedule.base(trial)
        there = (trial.config, *(member.trial.config for member in block.members))
        return None if base.config in there or not self.of.measured(base.config) else base

    def _room(self, block: Block, trial: Trial, base: Trial | None) -> bool:
        """Whether `trial`, and its `base`, can join: by memory, and by how long the block takes.

        The first trial beside its base may take as long as it likes.
        """
        wanted = [trial, base] if base else [trial]
        first = base is None and [m.group for m in block.members if m.base] == [trial.config.group]
        seconds = sum(map(self.pace.turns_s, [*wanted, *(m.trial for m in block.members)]))
        in_time = seconds <= BLOCK_S or (first and len(block.members) == 1)
        return in_time and self._fits(wanted, block)

    def _fits(self, wanted: list[Trial], block: Block) -> bool:
        """Whether the memory that is available now holds what `wanted` needs to be set up: its
        own last peak, else the largest so far. Alone, a trial is always tried."""
        known = {r.config_id: r.peak_memory_bytes for r in self.of.records if r.peak_memory_bytes}
        running = (member.process.peak_bytes for member in block.members)
        largest = max([*known.values(), *running], default=0)
        need = sum(known.get(trial.config.id, largest) for trial in wanted)
        return not block.members or need <= available_bytes()

    def _numbered(self, trial: Trial, block: Block) -> Trial:
        update = {
            "number": next_trial(self.of.out, trial.config),
            "round": self.number,
            "block": block.name,
            "thorough": not self.of.measured(trial.config),
        }
        return trial.model_copy(update=update)

    def _set_up(self, block: Block, trial: Trial, again: bool = False) -> Member | None:
        trial = self._numbered(trial, block)
        self._tell(f"setting up {trial}", block)
        started, start, kind = datetime.now(UTC), time.monotonic(), self.kernels.kind
        try:
            process = self.of.start(
                trial,
                self.of.out,
                self.kernels,
                self._environment,
                self.of.trial_timeout,
                self.stop.asked,
            )
        except MeasurementError as error:
            self._tell(f"setting up {trial}", block, self._failed(trial, str(error), started, kind))
            return None
        self.pace.learn_setup(trial.config.batch_size, time.monotonic() - start + END_S)
        is_base = trial.config == self.schedule.base(trial).config
        return block.add(process, trial.config.group, base=is_base, again=again)

    def _ended(self, block: Block, member: Member, found: Record | str) -> None:
        """Count what became of `member`."""
        trial = member.trial
        if isinstance(found, str):
            record = self._failed(trial, found, datetime.now(UTC), self.kernels.kind)
        else:
            self.of.require_machine(found.machine, self._path(trial))
            self.of.keep(record := found)
        for point in record.points:
            self.pace.learn_turn(trial.config.batch_size, turn_seconds(point))
        self._tell(f"ending {trial}", block, record)

    def _path(self, trial: Trial) -> Path:
        return self.of.out / "records" / f"{trial.name}.json"

    def _failed(self, trial: Trial, reason: str, started: datetime, kind: KernelKind) -> Record:
        """The record of a trial that failed: its own, if it came to write one."""
        path = self._path(trial)
        if path.exists():
            with suppress(DamagedError):
                self.of.keep(record := Record.load(path))
                return record
            set_aside(path, f"{path.name} is damaged")
        return self._without_points(trial, "failed", reason, kind, started)

    def _without_points(
        self,
        trial: Trial,
        status: Status,
        reason: str,
        kind: KernelKind,
        started: datetime | None = None,
    ) -> Record:
        started = started or datetime.now(UTC)
        record = Record.without_points(trial, self.of.machine, status, reason, started, kind)
        record.save(self.of.out / "records")
        self.of.keep(record)
        return record

    def _tell(self, doing: str, block: Block, record: Record | None = None) -> None:
        running = sum(not member.again for member in block.running)
        done = self.total - len(self.queue) - running
        step = Step(self.number, doing, block, done, self.total, self._seconds_left(block), record)
        self._progressed(step)

    def _seconds_left(self, block: Block) -> float:
        """Of the whole sweep, at most: what the block has left, and the trials after it."""
        running = [member for member in block.running if not member.again]
        planned = sum(self.pace.turns_s(member.trial) for member in running)
        spent = sum(point.spent_s for member in running for point in member.points.values())
        ends = END_S * len(block.members)
        after = sum(map(self.pace.trial_s, [*self.queue, *self._later]))
        return max(0.0, planned - spent) + ends + after
