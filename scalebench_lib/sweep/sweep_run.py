"""A sweep in its folder: whether it fits there, its records, and what is left to measure."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from scalebench_lib.allocators import require_installed
from scalebench_lib.config import SPEC, Config, Sweep, Trial
from scalebench_lib.errors import RequestError, ScalebenchError, reason_in
from scalebench_lib.files import DamagedError, leftovers, set_aside, write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.model_names import is_own, resolved_task
from scalebench_lib.processes import kernel_exit_reason, oom_kills
from scalebench_lib.record import (
    SCHEMA,
    Record,
    Software,
    Status,
    load_records,
    model_files_digest,
    next_trial_number,
    require_one_machine,
)
from scalebench_lib.results import FILE as IMPORTED
from scalebench_lib.sweep.block import Process
from scalebench_lib.sweep.interpreter import Interpreter, run_module
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import lock_folder, lock_machine, write_status
from scalebench_lib.sweep.schedule import DurationForecast, Schedule
from scalebench_lib.sweep.trial_process import SETUP_LIMIT_S, TrialProcess

Start = Callable[[Trial, Path, Kernels, float | None, Callable[[], bool]], Process]
"""Sets up a trial, as `TrialProcess.start`."""

_PREFLIGHT = "scalebench_lib.measure.preflight"

_HOSTS = {"one": "one machine", "each": "each of several hosts", "any": "any of several hosts"}


@dataclass
class SweepRun:
    """A sweep in its folder, checked and ready to run with `python`, in `kernels`.

    `trial_timeout` limits the set-up of a trial, each turn, and its end, in seconds. `other` is the
    same sweep in another environment, with which it takes turns; `host` measures it, where that is
    one of several.
    """

    sweep: Sweep
    machine: Machine
    out: Path
    records: list[Record]
    python: Interpreter
    retry: set[str] = field(default_factory=set)
    trial_timeout: float | None = None
    start: Start = TrialProcess.start
    kernels: Kernels = field(init=False, repr=False)
    other: SweepRun | None = None
    host: str | None = None

    @classmethod
    def prepare(
        cls,
        sweep: Sweep,
        out: Path,
        retry_failed: bool = False,
        python: Interpreter | None = None,
        machine: Machine | None = None,
        host: str | None = None,
    ) -> SweepRun:
        """Check `sweep` against `machine` and folder `out`; write nothing.

        Without a `machine` it is this one, which must have the allocators; `host` names one of
        several. Raises `RequestError` where the machine lacks what is asked, or `out` cannot take
        the sweep.
        """
        if machine is None:
            require_installed(sweep.allocators)
            machine = Machine.here()
        python = python or Interpreter.here()
        records = [record for record in _usable_records(sweep, out) if record.host_label == host]
        _require_same(sweep, machine, python.software, out, records)
        run = cls(sweep, machine, out, records, python, host=host)
        if retry_failed:
            run.retry = {record.config_id for record in records if record.status != "ok"}
        _ = run.schedule.trials  # raises where the machine lacks what is asked
        return run

    def require_measurable(self) -> None:
        """Have `measure.preflight` run the model in each size that has no good record.

        Writes nothing. Raises `RequestError`, saying why, where it cannot be measured.
        """
        measured = {_size(record.config) for record in self.records if record.status == "ok"}
        left = {_size(trial.config): trial.config for trial in self.schedule.left}
        if configs := [left[size] for size in sorted(left.keys() - measured)]:
            self._build_and_run(configs)

    def _build_and_run(self, configs: Sequence[Config]) -> None:
        model, limit_s = f"model: {self.sweep.model!r}", self.trial_timeout or SETUP_LIMIT_S
        asked, kills = json.dumps([config.model_dump() for config in configs]), oom_kills()
        try:
            python = [self.python.executable]
            done = run_module(python, _PREFLIGHT, self.python.environment, asked, limit_s)
        except subprocess.TimeoutExpired:
            raise RequestError(f"{model} is not built and run within {limit_s:.0f} s") from None
        if done.returncode:
            said = reason_in(done.stderr) if done.returncode > 0 else ""
            why = said or kernel_exit_reason(done.returncode, kills)
            raise RequestError(f"{model} cannot be built and run: {why}")
        if why_not := json.loads(done.stdout.splitlines()[-1]):
            raise RequestError(why_not)

    @property
    def schedule(self) -> Schedule:
        beside = Schedule(self.sweep, self.machine, self.other.records) if self.other else None
        return Schedule(self.sweep, self.machine, self.records, self.retry, beside)

    def seconds_left(self, pace: DurationForecast | None = None) -> float:
        """Return how long the sweep will still take, at most, by the `pace` of its records."""
        pace, schedule = pace or DurationForecast(self.records), self.schedule
        rounds = range(1, self.sweep.rounds + 1)
        return sum(pace.trial_s(trial) for number in rounds for trial in schedule.pending(number))

    @contextmanager
    def locked(self, if_busy: str = "refuse") -> Iterator[None]:
        """Keep other sweeps out of this folder, and by `if_busy` off this machine.

        The folder's file then asks for this sweep, too. Raises `RequestError` where another one is
        there already, naming its process, and `ScalebenchError` where the disk is full.
        """
        try:
            with lock_machine(str(self.out), if_busy):
                self.out.mkdir(parents=True, exist_ok=True)
                with lock_folder(self.out):
                    self._take_up()
                    try:
                        yield
                    finally:
                        write_status(self.out, None)
        except OSError as error:
            raise ScalebenchError(
                f"stopped: cannot write to {self.out} ({error.strerror or error}); what is done is "
                "kept, and the same command goes on when that is mended"
            ) from None

    def _take_up(self) -> None:
        for path in leftovers(self.out):
            path.unlink(missing_ok=True)
        self.reload()
        path = self.out / SPEC
        before = Sweep.load(path) if path.exists() else self.sweep
        write_atomically(path, before.merged(self.sweep).dump())

    def reload(self) -> None:
        """Read the records again: another sweep may have added some."""
        records = load_records(self.out, aside=True)
        self.records[:] = [record for record in records if record.host_label == self.host]

    def has_measured(self, config: Config) -> bool:
        return any(r.config_id == config.id and r.status == "ok" for r in self.records)

    def numbered(self, trial: Trial, round_number: int, block: str) -> Trial:
        """Return `trial` with its number, round and block."""
        update = {
            "number": next_trial_number(self.out, trial.config),
            "round": round_number,
            "block": block,
            "thorough": not self.has_measured(trial.config),
        }
        return trial.model_copy(update=update)

    def add(self, record: Record) -> Record:
        """Add `record`, which is saved, to those in memory."""
        self.records.append(record)
        self.retry.discard(record.config_id)  # once is enough
        return record

    def add_result(self, trial: Trial, found: Record | str) -> Record:
        """Add the record of `trial`: `found`, or, for a failure, its own with more details.

        Raises `ScalebenchError` where it is of another machine or model, and sets it aside.
        """
        path = self.out / "records" / f"{trial.name}.json"
        if isinstance(found, Record):
            try:
                self.require_machine(found.machine)
                self._require_model(found)
            except ScalebenchError:
                set_aside(path, f"{path.name} is of another machine or model")
                raise
            return self.add(found)
        if path.exists():
            with suppress(DamagedError):
                return self.add(Record.load(path))
            set_aside(path, f"{path.name} is damaged")
        return self.add_without_points(trial, "failed", found)

    def add_without_points(self, trial: Trial, status: Status, reason: str) -> Record:
        """Write and add the record of a trial that failed or was skipped."""
        record = Record.of(
            trial,
            machine=self.machine,
            software=self.python.software,
            status=status,
            reason=reason,
            started=datetime.now(UTC),
            kernel="none" if status == "skipped" else self.kernels.kind,
        )
        record.save(self.out / "records")
        return self.add(record)

    def require_machine(self, found: Machine) -> None:
        """Raise `ScalebenchError` where `found` is another machine."""
        if changed := self.machine.differs_from(found):
            raise ScalebenchError(
                f"stopped: the machine is no longer what it was ({changed}), and a sweep does not "
                "mix two; the same command goes on when it is as before"
            )

    def _require_model(self, found: Record) -> None:
        field = "model_hash" if is_own(self.sweep.model) else "model_files"
        if len({getattr(one, field) for one in (*self.records, found)} - {None}) > 1:
            raise ScalebenchError(
                f"stopped: the files of {self.sweep.model!r}, or of its weights, have changed, and "
                "a sweep does not mix two models: measure the new one into another folder"
            )


def prepare_pair(
    sweep: Sweep, out: Path, command: str, retry_failed: bool = False
) -> tuple[SweepRun, SweepRun]:
    """Prepare `sweep` for this Python, in folder ``out/a``, and for `command`'s, in ``out/b``.

    Their trials of one config share a block. Writes nothing. Raises `RequestError` as
    `SweepRun.prepare` and `Interpreter.of`.
    """
    if (out / SPEC).exists() or (out / "records").exists():
        raise RequestError(f"{out} holds a sweep: choose a new folder for '--against'")
    python = Interpreter.of(command)
    python.require(sweep.optimizations)
    a = SweepRun.prepare(sweep, out / "a", retry_failed)
    b = SweepRun.prepare(sweep, out / "b", retry_failed, python)
    a.other, b.other = b, a
    return a, b


def _size(config: Config) -> tuple[int, int, str]:
    return config.seq_len, config.image_size, config.phase


def _require_usable(out: Path) -> None:
    if not str(out).isprintable():
        raise RequestError(f"{str(out)!r} cannot be printed: choose another name for the folder")
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder: choose another place for the sweep")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{folder} cannot be written: choose another place for the sweep")
    if (out / IMPORTED).exists():
        raise RequestError(f"{out} holds an imported sweep: choose a new folder to measure into")
    strange = out.exists() and any(not path.name.startswith(".") for path in out.iterdir())
    if strange and not (out / SPEC).exists() and not (out / "records").exists():
        raise RequestError(f"{out} is full of other things: choose a new folder for the sweep")


def _usable_records(sweep: Sweep, out: Path) -> list[Record]:
    """Return the records in `out`; raise `RequestError` where it holds anything but this sweep."""
    _require_usable(out)
    records = load_records(out)
    before = {"any" if r.any_host else "each" if r.host else "one" for r in records}
    before |= {Sweep.load(out / SPEC).hosts} if (out / SPEC).exists() else set()
    for hosts in before - {sweep.hosts}:
        raise RequestError(f"{out} holds a sweep of {_HOSTS[hosts]}: use another folder")
    if any(record.schema_version != SCHEMA for record in records):
        raise RequestError(
            f"{out} was measured by an older scalebench: 'scalebench report {out}' reads it, "
            "measure into another folder"
        )
    return records


def _require_same(
    sweep: Sweep, machine: Machine, software: Software, out: Path, records: Sequence[Record]
) -> None:
    """Raise `RequestError` unless model, machine, software and settings are those of `records`."""
    require_one_machine(records)
    files = model_files_digest(sweep) if any(record.model_files for record in records) else None
    found = (_differing(record, sweep, machine, software, files) for record in records)
    if differing := list(dict.fromkeys(chain.from_iterable(found))):
        raise RequestError(f"{out} holds another sweep: {'; '.join(differing)}; use another folder")


def _differing(
    record: Record, sweep: Sweep, machine: Machine, software: Software, files: str | None
) -> Iterator[str]:
    """Yield the conditions of `record` that a trial of `sweep` would not have here and now."""
    asked = {"task": resolved_task(sweep.model, sweep.task, record.config.phase)}
    for name in ("model", "task", "weights", "seed", "placement"):
        theirs, mine = getattr(record.config, name), asked.get(name, getattr(sweep, name))
        if theirs != mine:
            yield f"{name} {theirs!r} against {mine!r}"
    others = {
        "another machine": record.machine.differs_from(machine),
        "other software": record.software.differs_from(software, record.config.allocator),
    }
    if record.points:  # without numbers nothing can be mixed
        others["another setting"] = record.machine.other_setting(machine)
        known = record.host is None and record.model_files and files  # a host has its own
        if known and record.model_files != files:
            others["another model"] = f"files of {sweep.model!r}, or of its weights, have changed"
    yield from (f"{what} ({why})" for what, why in others.items() if why)
