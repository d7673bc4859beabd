"""Import the latency files that scalebench has published, as a sweep."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scalebench_lib.config import DEFAULTS
from scalebench_lib.errors import RequestError, validation_message
from scalebench_lib.files import write_atomically
from scalebench_lib.results import COLUMNS, CSV, FILE, Imported, PublishedPoint, Results, Row

_OPTIMIZATIONS = {"eager": "none"}
_MODELS = {"resnet": "resnet50"}
_COLUMNS = {"threads": "intraop_threads"}
"""Published names of optimizations, models, and columns of the older layout, with their names
here."""

_TOKENS = {"bert": 16}
"""The known lengths of items, which the files do not hold."""

_USUAL = {"run": "manual", "pinning": "numactl", "source": "torch", "interop_threads": 1}
"""Settings of most files; others become part of the placement."""

_THREADS_A_CORE = 2
_ROUNDING = 1e-9
_BENCHMARK = r"^([\w.+-]{1,60})_(default|manual)_([\w.+-]{1,60})$"

Word = Annotated[str, Field(pattern=r"^[\w.+ -]{1,60}$")]
Count = Annotated[int, Field(ge=1, le=10**9)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Row(BaseModel):
    """A published row, checked; `swapped` if it holds minimum, maximum, mean in this order."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    benchmark: Annotated[str, Field(pattern=_BENCHMARK)]
    topology: Word = "sequential"
    pinning: Word = "numactl"
    source: Word = "torch"
    ht: bool = False
    allocator: Word = "default"
    instance_id: int = 1
    interop_threads: Count = 1
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
        """Newer files hold minimum, maximum, mean under the names minimum, mean, maximum, and
        others the throughput alone, in items/s."""
        if "latency(avg)" not in values:
            try:
                mean = 1e3 * int(values["batch_size"]) / float(values["throughput"])
            except (ValueError, ZeroDivisionError):
                both = f"{values['batch_size']!r} and {values['throughput']!r}"
                raise ValueError(f"batch_size, throughput: must be above 0, not {both}") from None
            return {**values, "latency(avg)": mean}
        try:
            mean, most = float(values["latency(avg)"]), float(values["latency(max)"])
        except ValueError:
            return values  # no number: an error of the field
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
            "model": _MODELS.get(model, model),
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
_OLDER = {name: _FIELDS[name].default for name in ("instance_id", "pinning", "topology")}
"""Columns that the older layout lacks, with their defaults."""

_LATENCY = {"latency(min)", "latency(avg)", "latency(max)"}


def import_published(files: Sequence[Path], out: Path, machine: str | None = None) -> Imported:
    """Import the published `files`, of one machine, into the new folder `out`.

    `machine` names the machine, which the files do not. Raises `RequestError`, with the line,
    where a file cannot be read, or where `out` is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        trouble = "is not empty" if out.is_dir() else "is a file"
        raise RequestError(f"{out} {trouble}: choose a new folder for the import")
    source, rows = parse_published(files, machine)
    table = Results((), source, rows).csv
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / CSV, table.to_csv(index=False))
        write_atomically(out / FILE, source.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise RequestError(f"cannot write {out / FILE}: {error.strerror}") from None
    return source


def parse_published(files: Sequence[Path], machine: str | None) -> tuple[Imported, Sequence[Row]]:
    """Return the source of the published `files`, and the rows of their table.

    Raises `RequestError`, with the line, where one is damaged or not such a file.
    """
    parts = list(map(_rows, files))
    runs = [run for path, (_, rows) in zip(files, parts, strict=True) for run in _runs(path, rows)]
    alone = [run[0] for run in runs if len(run) == 1]
    together = [
        {**run[0].point, "instances": len(run), "latency_ms": max(row.mean for row in run)}
        for run in runs
        if len(run) > 1
    ]
    file = ", ".join(path.name for path in files)
    if not alone:
        raise RequestError(
            f"{file}: every instance ran beside others (instance_id), which is not how fast one is "
            "alone: give a file of single ones with it; nothing was imported"
        )
    table = _table(alone, machine or files[0].stem, file)
    notes = [note for part in parts for note in _notes(*part, table, len(together))]
    source = Imported(
        file=file,
        sha256=", ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files),
        imported=datetime.now(UTC),
        machine=machine,
        points=len(table),
        together=tuple(together),
        notes=tuple(dict.fromkeys(notes)),
    )
    return source, table.to_dict("records")


def _rows(path: Path) -> tuple[list[str], list[_Row]]:
    """Return the names of the columns, and the rows."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not a text file: give a published latency CSV") from None
    try:
        header = [_COLUMNS.get(name.strip(), name.strip()) for name in next(reader, [])]
        _require_columns(header)
        rows = [_row(header, cells) for cells in reader if cells]
        if not rows:
            raise ValueError("no rows under the names of the columns")
    except (ValueError, csv.Error) as error:
        where = f"{path.name}, line {max(reader.line_num, 1)}"
        raise RequestError(f"{where}: {error}; nothing was imported") from None
    return header, rows


def _require_columns(header: list[str]) -> None:
    needed = {name for name, field in _FIELDS.items() if field.is_required()} | _LATENCY
    if "throughput" in header and not _LATENCY & set(header):
        needed -= _LATENCY
    if lacking := sorted(needed - set(header)):
        names = ", ".join(map(repr, lacking))
        raise ValueError(f"no column {names}: 'scalebench import --help' lists the columns")
    if len(set(header)) < len(header):
        raise ValueError("a column's name stands there twice")


def _row(header: list[str], cells: list[str]) -> _Row:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells where the first line names {len(header)} columns")
    try:
        return _Row(**dict(zip(header, cells, strict=True)))
    except ValidationError as error:
        raise ValueError(validation_message(error)) from None


def _runs(path: Path, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yield the rows of each run of a file: equal instances that ran at once.

    Raises `RequestError` unless the instances count from 0 or 1 on (instance_id).
    """
    first = min(1, *(row.instance_id for row in rows))
    alike: dict[str, list[_Row]] = defaultdict(list)
    for row in dict.fromkeys(rows):
        alike[repr(row.point)].append(row)
    for each in alike.values():
        if len({row.instance_id for row in each}) == len(each):  # one run, in whatever order
            each.sort(key=lambda row: row.instance_id)
        starts = {place for place, row in enumerate(each) if row.instance_id == first}
        for start, end in pairwise(sorted({0, *starts, len(each)})):
            run = each[start:end]
            if [row.instance_id for row in run] != list(range(first, first + len(run))):
                where = f"batch {run[0].batch_size} on {run[0].intraop_threads} threads"
                raise RequestError(
                    f"{path.name}: instance_id {run[0].instance_id} at {where} ran beside others "
                    "that are not alike: give a file of one instance; nothing was imported"
                )
            yield run


def _table(rows: list[_Row], machine: str, file: str) -> pd.DataFrame:
    """Return the results table: one row for all rows of a point."""
    found = pd.DataFrame([{**row.point, "mean": row.mean, "least": row.minimum} for row in rows])
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


def _notes(header: list[str], rows: list[_Row], table: pd.DataFrame, together: int) -> list[str]:
    """Return reservations about a file and all its points, a sentence each."""
    swapped, twice = sum(row.swapped for row in rows), len(rows) - len(set(rows))
    unknown = [name for name in header if name not in {*_FIELDS, "throughput"}]
    several = int((table["trials"] > 1).sum())
    script = (table["model"] == "bert") & (table["optimization"] == "script")
    older = {name: value for name, value in _OLDER.items() if name not in header}
    notes = {
        f"The file does not tell of {', '.join(older)}: taken as "
        f"{', '.join(map(str, older.values()))}.": older,
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
        f"Runs of several instances at once, whose slow-down plans learn: {together}.": together,
        f"Hyper-threading is taken to be {_THREADS_A_CORE} threads a core.": table["smt"].any(),
        "The published harness timed with autograd on, which costs time.": True,
        "What is published as script for BERT was never TorchScript: it ran eagerly.": script.any(),
        "The file does not tell how long an item is.": (table["seq_len"] == 0).any(),
    }
    return [note for note, holds in notes.items() if holds]
