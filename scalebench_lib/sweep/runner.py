"""A sweep: the visits that are left, each run by papermill, each leaving a record behind.

The records alone say what is done. Everything here can be killed at any moment and started
again. Visits of a config lie spread over the sweep, in rounds: the first gives a whole page,
coarse, and each further one sharpens it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock
import psutil

from scalebench_lib.config import Sweep, Visit
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS
from scalebench_lib.record import (
    KernelKind,
    Record,
    Software,
    Status,
    load_records,
    next_visit,
    write_atomically,
)
from scalebench_lib.reference import reference_for
from scalebench_lib.sweep.forecast import Forecast, lacking_memory
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.state import SPEC, Judge, State


@dataclass(frozen=True)
class Step:
    """What a sweep is doing: `visit` begins, or has ended with `record`.

    `done` of `total` points of this round are finished; `seconds_left` are those of the sweep.
    """

    round: int
    visit: Visit
    record: Record | None
    done: int
    total: int
    seconds_left: float


Progress = Callable[[Step], None]


@dataclass
class Job:
    """A sweep in its folder, checked and ready to run."""

    sweep: Sweep
    machine: Machine
    out: Path
    judge: Judge
    records: list[Record]

    @classmethod
    def prepare(cls, sweep: Sweep, out: Path, retry_failed: bool = False) -> Job:
        """Check `sweep` against this machine and folder `out`; writes nothing.

        Raises `RequestError` where the machine lacks what is asked, or `out` cannot take it.
        """
        machine = Machine.here()
        _require_usable(out)
        records = load_records(out)
        failed = {record.config_id for record in records if record.status != "ok"}
        judge = Judge(sweep, machine, failed if retry_failed else ())
        _require_same(sweep, machine, out, records)
        return cls(sweep, machine, out, judge, records)

    @property
    def state(self) -> State:
        """Where the sweep stands now."""
        return self.judge.state(self.out, self.records)

    def forecast(self) -> float:
        """Seconds that the sweep will still take, at most."""
        return Forecast(self.records).seconds(self.state.left, self.sweep.rounds)

    def run(
        self, progress: Progress, kernels: Kernels, budget_s: float = float("inf")
    ) -> list[Record]:
        """Run what is left, round by round; returns the new records, failed ones too.

        No visit is begun that would end after `budget_s` seconds. Raises `RequestError` where
        another process runs a sweep in this folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        before, deadline = len(self.records), time.monotonic() + budget_s
        with _locked(self.out):
            self._write_spec()
            for number in range(1, self.sweep.rounds + 1):
                self._round(number, progress, kernels, deadline)
        return self.records[before:]

    def _round(self, number: int, progress: Progress, kernels: Kernels, deadline: float) -> None:
        left = [visit for visit in self.state.left if visit.number <= number]
        visits = _ordered(left, number, self.sweep.seed)
        forecast, rounds, done = Forecast(self.records), self.sweep.rounds, 0
        total = sum(len(visit.threads) for visit in visits)
        for position, visit in enumerate(visits):
            if time.monotonic() + forecast.visit_seconds(visit) > deadline:
                continue
            rest = forecast.seconds(visits[position:], rounds)
            progress(Step(number, visit, None, done, total, rest))
            record = self._visit(visit, kernels)
            self.records.append(record)
            self.judge.retry.discard(record.config_id)  # once is enough
            forecast.learn(record)
            done += len(visit.threads)
            rest = forecast.seconds(visits[position + 1 :], rounds)
            progress(Step(number, visit, record, done, total, rest))
        self._keep_reference()

    def _visit(self, visit: Visit, kernels: Kernels) -> Record:
        number = next_visit(self.out, visit.config)
        memory = min(psutil.virtual_memory().available, self.machine.memory_bytes)
        fitted = any(r.config_id == visit.config.id and r.status == "ok" for r in self.records)
        visit = visit.model_copy(update={"number": number, "thorough": not fitted})
        lack = None if fitted else lacking_memory(visit, self.records, memory)
        if lack:
            return self._save_without_points(visit, "skipped", lack, datetime.now(UTC), "none")
        return self._measured(visit, kernels)

    def _measured(self, visit: Visit, kernels: Kernels) -> Record:
        path = self.out / "records" / f"{visit.name}.json"
        target = self.out / "notebooks" / f"{visit.name}.ipynb"
        started = datetime.now(UTC)
        reason, kind = "the notebook wrote no record", kernels.kind
        try:
            parameters = {**visit.parameters(), "out": os.path.relpath(self.out)}
            kernels.run(NOTEBOOKS / "measure.ipynb", target, parameters)
        except MeasurementError as error:
            reason = str(error)
        if path.exists():
            return Record.load(path)
        return self._save_without_points(visit, "failed", reason, started, kind)

    def _save_without_points(
        self, visit: Visit, status: Status, reason: str, started: datetime, kernel: KernelKind
    ) -> Record:
        record = Record.without_points(visit, self.machine, status, reason, started, kernel)
        record.save(self.out / "records")
        return record

    def _write_spec(self) -> None:
        path = self.out / SPEC
        before = Sweep.load(path) if path.exists() else self.sweep
        write_atomically(path, before.merged(self.sweep).dump())

    def _keep_reference(self) -> None:
        """From the first round on; later rounds, and later sweeps, are read with the same."""
        if self.records:
            reference_for(self.out, self.records).save(self.out)


def _ordered(visits: list[Visit], number: int, seed: int) -> list[Visit]:
    """Shuffled, so that drift falls on all alike; in the first round smaller batches first,
    since they tell whether larger ones will fit in memory."""
    shuffled = random.Random(f"{seed} {number}").sample(visits, len(visits))  # noqa: S311
    if number > 1:
        return shuffled
    return sorted(shuffled, key=lambda visit: visit.config.batch_size)


def _require_usable(out: Path) -> None:
    folder = out if out.exists() else next(p for p in out.absolute().parents if p.exists())
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder: choose another place for the sweep")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{folder} cannot be written: choose another place for the sweep")
    strange = out.exists() and any(out.iterdir())
    if strange and not (out / SPEC).exists() and not (out / "records").exists():
        raise RequestError(f"{out} is full of other things: choose a new folder for the sweep")


def _require_same(sweep: Sweep, machine: Machine, out: Path, records: list[Record]) -> None:
    """Adding to a sweep needs the same machine, software, model and weights."""
    for record in records[:1]:
        config = record.config
        differing = [
            f"{name} {theirs!r} against {mine!r}"
            for name in ("model", "weights", "seed", "placement")
            if (theirs := getattr(config, name)) != (mine := getattr(sweep, name))
        ]
        other = record.machine.differs_from(machine)
        differing += [f"another machine ({other})"] if other else []
        other = record.software.differs_from(Software.here())
        differing += [f"other software ({other})"] if other else []
        if differing:
            raise RequestError(f"{out} holds another sweep: {differing[0]}; use another folder")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One sweep at a time in a folder; the lock goes with its process, however that ends."""
    try:
        with filelock.FileLock(out / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise RequestError(
            f"another sweep is running in {out}: wait for it, or use another folder"
        ) from None
