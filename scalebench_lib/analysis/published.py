"""Read the latency files that scalebench has published, into a sweep like any other."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scalebench_lib.config import DEFAULTS
from scalebench_lib.errors import RequestError, one_line
from scalebench_lib.files import write_atomically
from scalebench_lib.results import COLUMNS, CSV, FILE, Imported, PublishedPoint, Results, Row

_OPTIMIZATIONS = {"eager": "none"}
"""Published names of optimizations that have another name here; all others are kept."""

_TOKENS = {"bert": 16}
"""The files do not say how long their items are; of these models it is known."""

_USUAL = {"run": "manual", "pinning": "numactl", "source": "torch", "interop_threads": 1}
"""How most files were measured; what differs becomes part of the placement."""

_THREADS_A_CORE = 2
_ROUNDING = 1e-9
_BENCHMARK = r"^([\w.+-]{1,60})_(default|manual)_([\w.+-]{1,60})$"

Word = Annotated[str, Field(pattern=r"^[\w.+ -]{1,60}$")]
Count = Annotated[int, Field(ge=1, le=10**9)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Row(BaseModel):
    """A row as published, checked; `swapped` when it holds minimum, maximum, mean."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    benchmark: Annotated[str, Field(pattern=_BENCHMARK)]
    topology: Word
    pinning: Word
    source: Word = "torch"
    ht: bool = False
    allocator: Word = "default"
    instance_id: int
    interop_threads: Count
    intraop_threads: Count
    batch_size: Count
    mean: Milliseconds = Field(alias="latency(avg)")
    minimum: Milliseconds | None = Field(None, alias="latency(min)")
    maximum: Milliseconds | None = Field(None, alias="latency(max)")
    flops: Annotated[float, Field(ge=0)] = 0.0
    swapped: bool = False

    @model_validator(mode="before")
    @classmethod
    def _in_order(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Newer files hold minimum, maximum, mean under the names minimum, mean, maximum."""
        try:
            mean, most = float(values["latency(avg)"]), float(values["latency(max)"])
        except (KeyError, ValueError):
            return values  # no such column, or no number: an error of the field
        swapped = most < mean * (1 - _ROUNDING)
        exchanged = {"latency(avg)": most, "latency(max)": mean, "swapped": True}
        return {**values, **exchanged} if swapped else values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum is not None and self.minimum > self.mean * (1 + _ROUNDING):
            raise ValueError(f"no latency can be less than the minimum, {self.minimum} ms")
        return self

    @property
    def point(self) -> dict[str, Any]:
        """The columns of the results table that identify its point."""
        ((model, run, optimization),) = re.findall(_BENCHMARK, self.benchmark)
        how = {**self.model_dump(include=set(_USUAL)), "run": run}
        unusual = [f"{name} {how[name]}" for name, usual in _USUAL.items() if how[name] != usual]
        return {
            "model": model,
            "optimization": _OPTIMIZATIONS.get(optimization, optimization),
            "smt": self.ht,
            "placement": ", ".join([self.topology, *unusual]),
            "allocator": self.allocator,
            "seq_len": _TOKENS.get(model, 0),
            "batch_size": self.batch_size,
            "threads": self.intraop_threads,
            "cores": self.intraop_threads / (_THREADS_A_CORE if self.ht else 1),
            "pinned": run == "manual" and self.pinning != "none",
        }


_FIELDS = {field.alias or name: field for name, field in _Row.model_fields.items()}
_LATENCY = {"latency(min)", "latency(avg)", "latency(max)"}


def import_published(path: Path, out: Path, machine: str | None = None) -> Imported:
    """Import the published file at `path` into the new folder `out`.

    `machine` is a name for the machine, which the files do not have. Raises `RequestError`,
    naming the line, where the file cannot be read, or where `out` holds anything.
    """
    _require_new(out)
    source, rows = read_published(path, machine)
    table = Results((), source, rows).csv
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / CSV, table.to_csv(index=False))
        write_atomically(out / FILE, source.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise RequestError(f"cannot write {out / FILE}: {error.strerror}") from None
    return source


def _require_new(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file: choose a new folder for the import")
    if out.exists() and any(out.iterdir()):
        raise RequestError(f"{out} is not empty: choose a new folder for the import")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"{there} cannot be written: choose another place for the import")


def read_published(path: Path, machine: str | None = None) -> tuple[Imported, Sequence[Row]]:
    """Return what there is to know of the published file at `path`, and the rows of its table.

    Raises `RequestError`, naming the line, where it is damaged or not such a file.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not a text file: give a published latency CSV") from None
    header, rows = _rows(path, text)
    table = _table(rows, machine or path.stem, path.name)
    source = Imported(
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        imported=datetime.now(UTC),
        machine=machine,
        points=len(table),
        notes=tuple(_notes(header, rows, table)),
    )
    return source, table.to_dict("records")


def _rows(path: Path, text: str) -> tuple[list[str], list[_Row]]:
    """The names of the columns, and the rows."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _require_columns(header)
        rows = [_row(header, cells) for cells in reader if cells]
        _require_alone(rows)
    except (ValueError, csv.Error) as error:
        where = f"{path.name}, line {max(reader.line_num, 1)}"
        raise RequestError(f"{where}: {error}; nothing was imported") from None
    return header, rows


def _require_columns(header: list[str]) -> None:
    needed = {name for name, field in _FIELDS.items() if field.is_required()} | _LATENCY
    if "throughput" in header and not _LATENCY & set(header):
        needed -= _LATENCY
    if lacking := sorted(needed - set(header)):
        raise ValueError(f"no column {lacking[0]!r}: give a published scalebench latency CSV")
    if len(set(header)) < len(header):
        raise ValueError("a column's name stands there twice")


def _row(header: list[str], cells: list[str]) -> _Row:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells where the first line names {len(header)} columns")
    values: dict[str, Any] = dict(zip(header, cells, strict=True))
    if "latency(avg)" not in values:
        values["latency(avg)"] = _mean_of(values)
    try:
        return _Row(**values)
    except ValidationError as error:
        raise ValueError(one_line(error)) from None


def _mean_of(values: dict[str, Any]) -> float:
    """A throughput file's mean latency in ms; its throughput is items over time."""
    try:
        return 1e3 * int(values["batch_size"]) / float(values["throughput"])
    except (ValueError, ZeroDivisionError):
        both = f"{values['batch_size']!r} and {values['throughput']!r}"
        raise ValueError(f"batch_size, throughput: must be above 0, not {both}") from None


def _require_alone(rows: list[_Row]) -> None:
    """Copies of a model that ran at the same time are slower than one alone."""
    if not rows:
        raise ValueError("no rows under the names of the columns")
    instances = sorted({row.instance_id for row in rows})
    if len(instances) > 1:
        raise ValueError(
            f"{len(instances)} instances ran beside each other (instance_id {instances[0]}, "
            f"{instances[1]} …), which is not how fast one runs alone: give a file of one instance"
        )


def _table(rows: list[_Row], machine: str, file: str) -> pd.DataFrame:
    """The results table: one row for all the rows of a point; the same row twice counts once."""
    found = pd.DataFrame(
        [{**row.point, "mean": row.mean, "least": row.minimum} for row in dict.fromkeys(rows)]
    )
    points = found.groupby(list(rows[0].point), sort=False)
    table = points.agg(
        latency_ms_mean=("mean", "mean"), latency_ms_min=("least", "min"), trials=("mean", "size")
    ).reset_index()
    table = table.assign(
        machine=machine,
        **{name: value for name, value in DEFAULTS.items() if name not in table},
        item=[f"{length} tokens" if length else "" for length in table["seq_len"]],
        status="ok",
        latency_ms=table["latency_ms_mean"],
        coarse=False,
        throughput=table["batch_size"] / table["latency_ms_mean"] * 1e3,
        imported_from=file,
    ).reindex(columns=list(COLUMNS))
    ids = [PublishedPoint.of(row).config.id for row in table.to_dict("records")]
    return table.assign(config_id=ids)


def _notes(header: list[str], rows: list[_Row], table: pd.DataFrame) -> list[str]:
    """Reservations about the file and its points, a sentence each."""
    swapped, twice = sum(row.swapped for row in rows), len(rows) - len(set(rows))
    unknown = [name for name in header if name not in {*_FIELDS, "throughput"}]
    several = int((table["trials"] > 1).sum())
    script = (table["model"] == "bert") & (table["optimization"] == "script")
    notes = {
        "A throughput file: mean latencies are batch size / throughput, minima are not known.": (
            "latency(avg)" not in header
        ),
        f"In {swapped} of {len(rows)} rows latency(max) is less than latency(avg): they hold "
        "minimum, maximum, mean, and were read so.": swapped,
        f"Rows that stand in the file twice and count once: {twice}.": twice,
        f"Columns that are not known were left out: {', '.join(unknown)}.": unknown,
        "The file does not tell of hyper-threading (ht): taken as off.": "ht" not in header,
        "The column flops was left out: files differ in what it means.": any(
            row.flops for row in rows
        ),
        f"Points whose means are those of several runs, averaged: {several}.": several,
        f"Hyper-threading is taken to be {_THREADS_A_CORE} threads a core.": table["smt"].any(),
        "What is published as script for BERT was never TorchScript: it ran eagerly.": script.any(),
        "The file does not tell how long an item is.": (table["seq_len"] == 0).any(),
    }
    return [note for note, holds in notes.items() if holds]
