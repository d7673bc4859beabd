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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from scalebench_lib.allocators import require_installed
from scalebench_lib.config import Sweep, Visit
from scalebench_lib.errors import MeasurementError, RequestError, ScalebenchError
from scalebench_lib.files import set_aside, write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS
from scalebench_lib.record import (
    KernelKind,
    Record,
    Software,
    Status,
    load_records,
    next_visit,
)
from scalebench_lib.reference import reference_for
from scalebench_lib.sweep.folder import disk_errors_told, require_same, sweep_up, usable_records
from scalebench_lib.sweep.forecast import Forecast, doomed, lacking_memory
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import folder_to_itself, machine_to_itself
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
    """A sweep in its folder, checked and ready to run.

    A visit that takes `visit_timeout` seconds is ended; by default the forecast decides.
    """

    sweep: Sweep
    machine: Machine
    software: Software
    out: Path
    judge: Judge
    records: list[Record]
    visit_timeout: float | None = None
    _alone: bool = field(default=False, init=False)

    @classmethod
    def prepare(cls, sweep: Sweep, out: Path, retry_failed: bool = False) -> Job:
        """Check `sweep` against this machine and folder `out`; writes nothing.

        Raises `RequestError` where the machine lacks what is asked, or `out` cannot take it.
        """
        if sweep.hosts != "one":
            raise RequestError("hosts: a sweep of several hosts needs '--scheduler ADDRESS'")
        machine = Machine.here()
        require_installed(sweep.allocators)
        records = usable_records(sweep, out)
        return cls.of(sweep, machine, Software.here(), out, records, retry_failed)

    @classmethod
    def of(
        cls,
        sweep: Sweep,
        machine: Machine,
        software: Software,
        out: Path,
        records: list[Record],
        retry_failed: bool,
        host: str | None = None,
    ) -> Job:
        """As `prepare`, of any `machine` (called `host` where there are several)."""
        failed = {record.config_id for record in records if record.status != "ok"}
        judge = Judge(sweep, machine, failed if retry_failed else (), host)
        require_same(sweep, machine, software, out, records)
        return cls(sweep, machine, software, out, judge, records)

    @property
    def state(self) -> State:
        """Where the sweep stands now."""
        return self.judge.state(self.out, self.records)

    def forecast(self) -> float:
        """Seconds that the sweep will still take, at most."""
        return Forecast(self.records).seconds(self.state.left, self.sweep.rounds)

    @contextmanager
    def alone(self, if_busy: str = "refuse") -> Iterator[None]:
        """Keep other sweeps out of this folder, and off this machine unless told otherwise.

        Raises `RequestError` where another one is there already, naming its process.
        """
        with disk_errors_told(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            with folder_to_itself(self.out), machine_to_itself(str(self.out), if_busy):
                self.catch_up()
                self._alone = True
                try:
                    yield
                finally:
                    self._alone = False

    def run(
        self, progress: Progress, kernels: Kernels, budget_s: float = float("inf")
    ) -> list[Record]:
        """Run what is left, round by round; returns the new records, failed ones too.

        No visit is begun that would end after `budget_s` seconds. Raises `RequestError` where
        another sweep is running, and `ScalebenchError` where the disk is full or the machine is
        no longer what it was: then the sweep stops, and can be gone on with.
        """
        deadline = time.monotonic() + budget_s
        with nullcontext() if self._alone else self.alone():
            before = len(self.records)
            self.write_spec()
            for number in range(1, self.sweep.rounds + 1):
                self._round(number, progress, kernels, deadline)
        return self.records[before:]

    def catch_up(self) -> None:
        """What a killed sweep has left half written goes; what another has finished counts."""
        sweep_up(self.out)
        if len(list((self.out / "records").glob("*.json"))) != len(self.records):
            self.records[:] = load_records(self.out)

    def _round(self, number: int, progress: Progress, kernels: Kernels, deadline: float) -> None:
        visits = self.visits_of_round(number)
        forecast, rounds, done = Forecast(self.records), self.sweep.rounds, 0
        total = sum(len(visit.threads) for visit in visits)
        for position, visit in enumerate(visits):
            if time.monotonic() + forecast.visit_seconds(visit) > deadline:
                continue
            rest = forecast.seconds(visits[position:], rounds)
            progress(Step(number, visit, None, done, total, rest))
            self._require_same_machine()
            limit_s = self.visit_timeout or forecast.visit_limit(visit)
            record = self._visit(visit, kernels, limit_s)
            self.keep(record)
            forecast.learn(record)
            done += len(visit.threads)
            rest = forecast.seconds(visits[position + 1 :], rounds)
            progress(Step(number, visit, record, done, total, rest))
        self.keep_reference()

    def visits_of_round(self, number: int) -> list[Visit]:
        """What is left to be visited in round `number`, in the order to do it."""
        left = [visit for visit in self.state.left if visit.number <= number]
        return _ordered(left, number, self.sweep.seed)

    def keep(self, record: Record) -> None:
        """Count `record`, which was just made."""
        self.records.append(record)
        self.judge.retry.discard(record.config_id)  # once is enough

    def numbered(self, visit: Visit, hosts: str = "") -> Visit:
        """`visit` with the next number at `hosts` (as `next_visit` takes them)."""
        number = next_visit(self.out, visit.config, hosts)
        thorough = not self._has_fitted(visit)
        return visit.model_copy(update={"number": number, "thorough": thorough})

    def why_not(self, visit: Visit, available_bytes: int) -> str | None:
        """Why `visit` is not worth trying with so much memory; None: it is."""
        if self._has_fitted(visit):
            return None
        memory = min(available_bytes, self.machine.memory_bytes)
        return lacking_memory(visit, self.records, memory) or doomed(visit, self.records)

    def _has_fitted(self, visit: Visit) -> bool:
        return any(r.config_id == visit.config.id and r.status == "ok" for r in self.records)

    def _visit(self, visit: Visit, kernels: Kernels, limit_s: float) -> Record:
        visit = self.numbered(visit)
        if lack := self.why_not(visit, psutil.virtual_memory().available):
            return self._save_without_points(visit, "skipped", lack, datetime.now(UTC), "none")
        return self._measured(visit, kernels, limit_s)

    def _measured(self, visit: Visit, kernels: Kernels, limit_s: float) -> Record:
        path = self.out / "records" / f"{visit.name}.json"
        target = self.out / "notebooks" / f"{visit.name}.ipynb"
        started = datetime.now(UTC)
        reason, kind = "the notebook wrote no record", kernels.kind
        try:
            parameters = {**visit.parameters(), "out": os.path.relpath(self.out)}
            kernels.run(NOTEBOOKS / "measure.ipynb", target, parameters, limit_s=limit_s)
        except MeasurementError as error:
            reason = str(error)
        if path.exists():
            return self._of_this_machine(path)
        return self._save_without_points(visit, "failed", reason, started, kind)

    def _of_this_machine(self, path: Path) -> Record:
        """The record at `path`: set aside where the machine changed just before it was made."""
        record = Record.load(path)
        if changed := self.machine.differs_from(record.machine):
            set_aside(path, f"{path.name} is of another machine ({changed})")
            raise ScalebenchError(self._changed(changed))
        return record

    def _require_same_machine(self) -> None:
        if changed := self.machine.differs_from(Machine.here()):
            raise ScalebenchError(self._changed(changed))

    def _changed(self, what: str) -> str:
        return (
            f"stopped: the machine is no longer what it was ({what}), and a sweep does not mix "
            "two; the same command goes on when it is as before"
        )

    def _save_without_points(
        self, visit: Visit, status: Status, reason: str, started: datetime, kernel: KernelKind
    ) -> Record:
        record = Record.without_points(visit, self.machine, status, reason, started, kernel)
        record.save(self.out / "records")
        return record

    def write_spec(self) -> None:
        """Keep what was asked for, added to what was asked for before."""
        path = self.out / SPEC
        before = Sweep.load(path) if path.exists() else self.sweep
        write_atomically(path, before.merged(self.sweep).dump())

    def keep_reference(self) -> None:
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
