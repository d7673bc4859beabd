"""A sweep's folder: whether it may be used, what it holds, and what is going on in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from scalebench_lib.config import Sweep
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.files import unfinished
from scalebench_lib.machine import Machine
from scalebench_lib.record import SCHEMA, Record, Software, load_records, require_one_machine
from scalebench_lib.results import FILE as IMPORTED
from scalebench_lib.sweep.locks import require_free
from scalebench_lib.sweep.schedule import SPEC

_HOSTS = {"one": "one machine", "each": "each of several hosts", "any": "any of several hosts"}

_IN_FLIGHT = ".running"
"""The file in which a running sweep says what it does now."""


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


def require_same(
    sweep: Sweep, machine: Machine, software: Software, out: Path, records: Sequence[Record]
) -> None:
    """Raise `RequestError` unless machine, software, model and weights are those of `records`."""
    require_one_machine(records)
    for record in records[:1]:
        config = record.config
        differing = [
            f"{name} {theirs!r} against {mine!r}"
            for name in ("model", "weights", "seed", "placement")
            if (theirs := getattr(config, name)) != (mine := getattr(sweep, name))
        ]
        if other := record.machine.differs_from(machine):
            differing.append(f"another machine ({other})")
        if other := record.software.differs_from(software, config.allocator):
            differing.append(f"other software ({other})")
        if differing:
            raise RequestError(f"{out} holds another sweep: {differing[0]}; use another folder")


def remove_unfinished(out: Path) -> None:
    """Remove what a killed sweep has left half written."""
    for path in (*unfinished(out), out / _IN_FLIGHT):
        with suppress(OSError):
            path.unlink()


@contextmanager
def disk_errors_in_one_line(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `ScalebenchError`."""
    try:
        yield
    except OSError as error:
        raise ScalebenchError(
            f"stopped: cannot write to {out} ({error.strerror or error}); what is done is kept, "
            "and the same command goes on when that is mended"
        ) from None


def say_in_flight(out: Path, doing: str | None) -> None:
    """Let `in_flight` tell that the sweep in folder `out` is `doing` this; None: no longer."""
    with suppress(OSError):
        if doing is None:
            (out / _IN_FLIGHT).unlink(missing_ok=True)
        else:
            (out / _IN_FLIGHT).write_text(doing, encoding="utf-8")


def in_flight(out: Path) -> str | None:
    """What a sweep does in folder `out` now, in a line; None where none is running."""
    try:
        require_free(out)
    except RequestError:
        with suppress(OSError, ValueError):
            return (out / _IN_FLIGHT).read_text(encoding="utf-8")
    return None
