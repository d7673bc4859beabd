"""A sweep: the visits that are left, each run by papermill, each leaving a record behind.

The records alone say what is done. Everything here can be killed at any moment and started
again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import filelock
import psutil

from scalebench_lib.config import Sweep, Visit
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS
from scalebench_lib.record import Record, Software, load_records, next_visit, write_atomically
from scalebench_lib.sweep.forecast import Forecast, lacking_memory
from scalebench_lib.sweep.kernels import run_notebook

SPEC = "sweep.yaml"


@dataclass
class State:
    """Where a sweep stands: what its records say of the visits that were asked for."""

    records: list[Record]
    done: list[Visit] = field(default_factory=list)
    failed: list[tuple[Visit, Record]] = field(default_factory=list)
    left: list[Visit] = field(default_factory=list)

    @classmethod
    def of(
        cls, visits: Iterable[Visit], records: list[Record], retry_failed: bool = False
    ) -> State:
        """Sort `visits` by what `records` say of their configs and thread counts.

        With `retry_failed`, what failed or was skipped counts as not yet tried.
        """
        state = cls(records)
        for visit in visits:
            state._place(visit, retry_failed)
        return state

    def _place(self, visit: Visit, retry_failed: bool) -> None:
        mine = [record for record in self.records if record.config_id == visit.config.id]
        measured = {point.threads for record in mine for point in record.points}
        missing = tuple(count for count in visit.threads if count not in measured)
        if not missing:
            self.done.append(visit)
        elif mine and mine[-1].status != "ok" and not retry_failed:
            self.failed.append((visit, mine[-1]))
        else:
            self.left.append(visit.model_copy(update={"threads": missing}))


@dataclass(frozen=True)
class Job:
    """A sweep in its folder, checked and ready to run."""

    sweep: Sweep
    machine: Machine
    out: Path
    state: State

    @classmethod
    def prepare(cls, sweep: Sweep, out: Path, retry_failed: bool = False) -> Job:
        """Check `sweep` against this machine and folder `out`; writes nothing.

        Raises `RequestError` where the machine lacks what is asked, or `out` cannot take it.
        """
        machine = Machine.here()
        visits = sweep.visits(machine)
        _require_usable(out)
        records = load_records(out)
        _require_same(sweep, machine, out, records)
        return cls(sweep, machine, out, State.of(visits, records, retry_failed))

    def forecast(self) -> float:
        """Seconds that the visits that are left will take, at most."""
        return Forecast(self.state.records).seconds(self.state.left)

    def run(self, progress: Callable[[Visit, Record | None, float], None]) -> list[Record]:
        """Run every visit that is left; returns their records, failed ones too.

        `progress` is called before each visit (record None) and after it, with the seconds that
        are then left. Raises `RequestError` where another process runs a sweep in this folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _locked(self.out):
            self._write_spec()
            return self._run(progress)

    def _run(self, progress: Callable[[Visit, Record | None, float], None]) -> list[Record]:
        forecast, found = Forecast(self.state.records), list[Record]()
        for number, visit in enumerate(self.state.left):
            rest = self.state.left[number + 1 :]
            progress(visit, None, forecast.seconds([visit, *rest]))
            record = self._visit(visit, [*self.state.records, *found])
            found.append(record)
            forecast.learn(record)
            progress(visit, record, forecast.seconds(rest))
        return found

    def _visit(self, visit: Visit, before: list[Record]) -> Record:
        number = next_visit(self.out, visit.config)
        visit = visit.model_copy(update={"number": number})
        memory = min(psutil.virtual_memory().available, self.machine.memory_bytes)
        lack = lacking_memory(visit, before, memory)
        if lack:
            return self._without_points(visit, "skipped", lack, datetime.now(UTC))
        return self._measured(visit)

    def _measured(self, visit: Visit) -> Record:
        path = self.out / "records" / f"{visit.name}.json"
        target = self.out / "notebooks" / f"{visit.name}.ipynb"
        started = datetime.now(UTC)
        reason = "the notebook wrote no record"
        try:
            parameters = {**visit.parameters(), "out": os.path.relpath(self.out)}
            run_notebook(NOTEBOOKS / "measure.ipynb", target, parameters)
        except MeasurementError as error:
            reason = str(error)
        if path.exists():
            return Record.load(path)
        return self._without_points(visit, "failed", reason, started)

    def _without_points(
        self, visit: Visit, status: Literal["failed", "skipped"], reason: str, started: datetime
    ) -> Record:
        record = Record.without_points(visit, self.machine, status, reason, started)
        record.save(self.out / "records")
        return record

    def _write_spec(self) -> None:
        path = self.out / SPEC
        before = Sweep.load(path) if path.exists() else self.sweep
        write_atomically(path, before.merged(self.sweep).dump())


def sweep_state(out: Path) -> State:
    """Where the sweep in folder `out` stands, on the machine that measured it.

    Raises `RequestError` where `out` holds no sweep.
    """
    if not (out / SPEC).exists():
        raise RequestError(f"{out} holds no sweep: start one with 'scalebench sweep {out}'")
    records = load_records(out)
    machine = records[0].machine if records else Machine.here()
    return State.of(Sweep.load(out / SPEC).visits(machine), records)


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
