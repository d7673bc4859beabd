"""A sweep's folder: whether it may be used, what it holds, and what is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scalebench_lib.config import Sweep
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.files import unfinished
from scalebench_lib.machine import Machine
from scalebench_lib.record import (
    SCHEMA,
    Record,
    Software,
    load_records,
    require_one_machine,
)
from scalebench_lib.results import FILE as IMPORTED
from scalebench_lib.sweep.locks import require_free
from scalebench_lib.sweep.schedule import SPEC

_HOSTS = {"one": "one machine", "each": "each of several hosts", "any": "any of several hosts"}


def _require_usable(out: Path) -> None:
    if not str(out).isprintable():
        raise RequestError(f"{str(out)!r} cannot be printed: choose another name for the folder")
    folder = out if out.exists() else next(p for p in out.absolute().parents if p.exists())
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder: choose another place for the sweep")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{folder} cannot be written: choose another place for the sweep")
    if (out / IMPORTED).exists():
        raise RequestError(f"{out} holds an imported sweep: choose a new folder to measure into")
    strange = out.exists() and any(not path.name.startswith(".") for path in out.iterdir())
    if strange and not (out / SPEC).exists() and not (out / "records").exists():
        raise RequestError(f"{out} is full of other things: choose a new folder for the sweep")


def usable_records(sweep: Sweep, out: Path) -> list[Record]:
    """The records in `out`, which may hold nothing else than this sweep (`RequestError`)."""
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


def sweep_up(out: Path) -> None:
    """Remove what a killed sweep has left half written."""
    for path in unfinished(out):
        with suppress(OSError):
            path.unlink()


def require_same(
    sweep: Sweep, machine: Machine, software: Software, out: Path, records: list[Record]
) -> None:
    """Adding to a sweep needs the same machine, software, model and weights."""
    require_one_machine(records)
    for record in records[:1]:
        config = record.config
        differing = [
            f"{name} {theirs!r} against {mine!r}"
            for name in ("model", "weights", "seed", "placement")
            if (theirs := getattr(config, name)) != (mine := getattr(sweep, name))
        ]
        other = record.machine.differs_from(machine)
        differing += [f"another machine ({other})"] if other else []
        other = record.software.differs_from(software, config.allocator)
        differing += [f"other software ({other})"] if other else []
        if differing:
            raise RequestError(f"{out} holds another sweep: {differing[0]}; use another folder")


@contextmanager
def disk_errors_told(out: Path) -> Iterator[None]:
    """What the disk refuses becomes a `ScalebenchError` of one line."""
    try:
        yield
    except OSError as error:
        raise ScalebenchError(
            f"stopped: cannot write to {out} ({error.strerror or error}); what is done is kept, "
            "and the same command goes on when that is mended"
        ) from None


_IN_FLIGHT = ".running.json"
"""Of a sweep that is running: what it does now."""


def say_in_flight(out: Path, doing: str | None) -> None:
    """Let `in_flight` tell that the sweep in folder `out` is `doing` this; None: no longer."""
    with suppress(OSError):
        if doing is None:
            (out / _IN_FLIGHT).unlink(missing_ok=True)
            return
        draft = out / f"{_IN_FLIGHT}.draft"
        draft.write_text(json.dumps(doing), encoding="utf-8")
        draft.replace(out / _IN_FLIGHT)


def in_flight(out: Path) -> str | None:
    """What a sweep does in folder `out` now, in a line; None where none is running."""
    try:
        require_free(out)
    except RequestError:
        with suppress(OSError, ValueError):
            return str(json.loads((out / _IN_FLIGHT).read_bytes()))
    return None
