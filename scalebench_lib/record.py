"""The record of a trial: one JSON file, written once, never changed. It alone means "done".

It holds the config, the results (verification, points with their turns), and the conditions: the
machine and the software.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import os
import platform
import re
import runpy
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from scalebench_lib import __version__
from scalebench_lib.allocators import LIBRARIES, SETTINGS, other_preloads
from scalebench_lib.config import AXES, Config, StrictModel, Sweep, Trial, trial_name
from scalebench_lib.errors import (
    MeasurementError,
    RequestError,
    ScalebenchError,
    plain,
    validation_message,
)
from scalebench_lib.files import DamagedError, sealed, set_aside, unsealed, write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.model_names import MODELS, is_own, local_folder, own_files
from scalebench_lib.operators import OperatorTimes
from scalebench_lib.optimizations import OPTIMIZATIONS, Precision, is_package_installed
from scalebench_lib.protocol import EndedBy
from scalebench_lib.text import format_error_db, format_number, pluralize

_log = logging.getLogger("scalebench")


EXACT_DB = 60.0
"""Outputs of a larger SQNR differ by less than a thousandth, as by other fp32 arithmetic."""


class Verification(StrictModel):
    """Errors of the optimized outputs against `reference`: float64, or eager float32.

    `sqnr_db` is the SQNR of the worst of the `items` compared, in dB, at unmasked positions;
    `eager_sqnr_db` that of eager float32. `max_abs_error` is against eager. Records before 0.2 have
    a `tolerance` on that instead.
    """

    max_abs_error: float
    items: int
    sqnr_db: float | None = None
    eager_sqnr_db: float | None = None
    required_db: float | None = None
    precision: Precision = "fp32"
    reference: Literal["fp64", "eager"] = "eager"
    batch_size: int | None = None
    note: str | None = None
    tolerance: float | None = None

    @property
    def passed(self) -> bool:
        if self.sqnr_db is None or self.required_db is None:
            return True
        return self.sqnr_db >= self.required_db

    def __str__(self) -> str:
        largest = f"outputs differ from eager's by at most {self.max_abs_error:.2g}"
        if self.sqnr_db is None:
            return largest
        note = f" ({self.note})" if self.note else ""
        return (
            f"error {format_error_db(self.sqnr_db) or '−∞'} dB against {self.reference} "
            f"({self.precision} must have −{self.required_db:.0f} or less), worst of {self.items} "
            f"items{note}; {largest}"
        )


_LIBRARIES = ("numpy", "torch", "transformers")
_ENGINES = sorted({package for one in OPTIMIZATIONS.values() for package in one.needs})
_SPEED_VARIABLES = re.compile(
    "(OMP|KMP|GOMP|MKL|OPENBLAS|ONEDNN|DNNL|TORCH|PYTORCH|TORCHINDUCTOR|TORCHDYNAMO|ATEN|MALLOC"
    "|TCMALLOC|THP|ORT|OV)_|(LD_PRELOAD|GLIBC_TUNABLES|LRU_CACHE_CAPACITY|CXX)$"
)
_LOCATIONS = re.compile("(_DIR|_PATH|_HOME|CACHE|LOGS)$")

RUNNER_ENVIRONMENT = "SCALEBENCH_ENVIRONMENT"
"""The variable in which a runner passes its `speed_variables` to its kernels, as JSON: a kernel
also has variables that the runner set to start it."""


def speed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that change the result or its speed, but for locations.

    Preloaded libraries and the compiler are given by file name alone.
    """
    found = {
        name: value
        for name, value in sorted(environment.items())
        if value and _SPEED_VARIABLES.match(name) and not _LOCATIONS.search(name)
    }
    for name in {"LD_PRELOAD", "CXX"} & found.keys():
        found[name] = ":".join(Path(one).name for one in re.split("[: ]+", found[name]))
    return found


def model_files_digest(config: Config | Sweep) -> str | None:
    """Return 12 hex digits of the files that the model and its weights are read from.

    None without files: for a known name with random weights, or a hub id that was never downloaded.
    """
    files = own_files(config.model) if is_own(config.model) else []
    sources = [(config.model, "config.json")] * (config.model not in MODELS)
    if config.weights != "random":
        own = config.weights == "pretrained"
        sources.append((config.model if own else config.weights, "*.safetensors*"))
    for source, pattern in sources:
        if folder := local_folder(source):
            files += sorted(folder.glob(pattern))
    if not files:
        return None
    checksums = [f"{path.name} {_crc32(path)}" for path in files]
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()[:12]


def _crc32(path: Path) -> int:
    found = 0
    with suppress(OSError), path.open("rb") as file:
        while part := file.read(2**24):
            found = zlib.crc32(part, found)
    return found


def package_version(name: str) -> str:
    """Return the version of an installed package; torch's with its build: ``2.13.0+cu130``.

    Its metadata may lack the build: it is read from a file, since torch takes seconds to import.
    """
    spec = find_spec(name) if name == "torch" else None
    if spec is None or spec.origin is None:
        return version(name)
    built = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    toolkits = (f"{kind}{built[kind]}" for kind in ("cuda", "hip", "xpu") if built.get(kind))
    found = str(built["__version__"])
    return found if "+" in found else "+".join([found, *toolkits])


class Software(StrictModel):
    """Versions, `libraries` that compute inside torch, and `speed_variables`."""

    python: str
    scalebench: str
    versions: dict[str, str]
    libraries: dict[str, str] = Field(default={})
    environment: dict[str, str] = Field(default={})

    @classmethod
    def here(cls, libraries: dict[str, str] | None = None) -> Self:
        """Return this process's software; `libraries` compute inside torch, where known."""
        packages = (*_LIBRARIES, *filter(is_package_installed, _ENGINES))
        passed = os.environ.get(RUNNER_ENVIRONMENT)
        return cls(
            python=platform.python_version(),
            scalebench=__version__,
            versions={name: package_version(name) for name in packages},
            libraries=libraries or {},
            environment=json.loads(passed) if passed else speed_variables(os.environ),
        )

    @property
    def conditions(self) -> dict[str, str]:
        """What decides the speed, by name."""
        return {"python": self.python, **self.versions, **self.environment}

    def differs_from(self, other: Software, allocator: str = "default") -> str | None:
        """Return the first difference that makes two sweeps incomparable, or None.

        The variables that load an `allocator` do not count: every trial checks which one it has.
        Nor does an engine that one of them lacks: nothing was measured with it there.
        """
        loading = ("MALLOC_",) if allocator in LIBRARIES else tuple(SETTINGS.get(allocator, ()))
        sides = self.conditions, other.conditions
        for side in sides:
            side["LD_PRELOAD"] = ":".join(other_preloads(side.get("LD_PRELOAD", "")))
        engines = (self.versions | other.versions).keys() - set(_LIBRARIES)
        for name in sorted(sides[0] | sides[1]):
            mine, theirs = (side.get(name) or None for side in sides)
            lacking = name in engines and None in (mine, theirs)
            if mine != theirs and not lacking and not name.startswith(loading):
                return f"{name} {mine} against {theirs}"
        return None


KernelKind = Literal["fresh", "warm", "none"]
Status = Literal["ok", "failed", "skipped"]

SCHEMA: Final = 2
"""Version 1 had visits: trials by themselves, without blocks, in files that end in ``-v1``."""

MAX_WAIT_SHARE = 0.1
"""A turn is shared if a ready thread had no CPU for a larger share of it: on a calm machine it was
1.5 %, and 4 % at most, with a busy loop on its CPU 50 %."""

MIN_CPU_SHARE = 0.9
"""A turn is shared if its CPU time / wall time is a smaller share of the median of its point's
turns: a hypervisor gives CPUs to other guests without any thread waiting."""

CONFIG_ORDER = ("model", *(name for name in AXES if name != "batch_size"), "batch_size")
"""The sort keys of records and rows, fields of their configs."""

_MIN_TYPICAL_TURNS = 3  # the median of two is one that neither had


class Turn(StrictModel):
    """A slice of time in which one point computed and everything else of the sweep stood still.

    `samples_ns` are the passes that count, in the order made; `start_ns` is the start of the first
    by the machine's monotonic clock, which all trials of a block share. `cpu_ns` is the CPU time
    of all threads for the samples, `waited_ns` the longest time that a ready thread had no CPU,
    `stolen_ns` the time that the hypervisor took from all of the point's CPUs, and `throttled` the
    number of periods in which a quota stopped the process. None: not known.
    """

    cycle: Annotated[int, Field(ge=1)]
    start_ns: int
    samples_ns: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    cpu_ns: Annotated[int, Field(ge=0)] | None = None
    waited_ns: Annotated[int, Field(ge=0)] | None = None
    stolen_ns: Annotated[int, Field(ge=0)] | None = None
    throttled: int | None = None

    @property
    def median_ns(self) -> float:
        return float(median(self.samples_ns))


class Point(StrictModel):
    """A config at one thread count: its turns, in the order made.

    A sample is one pass, or the mean of `passes_per_sample` timed at once. `warmup_ns` are passes
    that do not count; `spent_s` is the time of all turns, warm-up included.
    """

    threads: Annotated[int, Field(ge=1)]
    cores: Annotated[float, Field(gt=0)]
    cpus: tuple[int, ...]
    pinned: bool
    passes_per_sample: Annotated[int, Field(ge=1)] = 1
    warmup_ns: tuple[int, ...] = ()
    spent_s: float = 0.0
    turns: Annotated[tuple[Turn, ...], Field(min_length=1)]

    @cached_property
    def samples_ns(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(turn.samples_ns for turn in self.turns))

    @property
    def median_ns(self) -> float:
        return float(median(self.samples_ns))

    @property
    def wall_ns(self) -> int:
        return sum(self.samples_ns) * self.passes_per_sample

    @property
    def cpu_ns(self) -> int | None:
        """CPU time of all samples and threads; None where it is not known."""
        times = [turn.cpu_ns for turn in self.turns]
        return None if None in times else sum(filter(None, times))

    @property
    def cpus_utilized(self) -> float:
        """CPU time / wall time of the samples: the mean number of busy threads; NaN if unknown."""
        return math.nan if self.cpu_ns is None else self.cpu_ns / self.wall_ns

    @property
    def shared(self) -> tuple[bool | None, ...]:
        """Which turns shared the CPU (`MAX_WAIT_SHARE`, `MIN_CPU_SHARE`); None where not known."""
        walls = [sum(turn.samples_ns) * self.passes_per_sample for turn in self.turns]
        rates = [(turn.cpu_ns or 0) / wall for turn, wall in zip(self.turns, walls, strict=True)]
        typical = self.cpu_ns is not None and len(rates) >= _MIN_TYPICAL_TURNS
        least = MIN_CPU_SHARE * median(rates) if typical else 0.0
        return tuple(
            rate < least
            or (None if turn.waited_ns is None else turn.waited_ns > MAX_WAIT_SHARE * wall)
            for turn, rate, wall in zip(self.turns, rates, walls, strict=True)
        )

    def __str__(self) -> str:
        cpus = f"{', '.join(map(str, self.cpus))}{'' if self.pinned else ', unpinned'}"
        means = "" if self.passes_per_sample == 1 else f"means of {self.passes_per_sample} "
        return (
            f"{pluralize(self.threads, 'thread')} on CPU {cpus}: median "
            f"{format_number(self.median_ns / 1e6, 4)} ms of {len(self.samples_ns)} {means}passes "
            f"in {pluralize(len(self.turns), 'turn')}"
        )


CacheState = Literal["empty", "partly full", "full"]


class Setup(StrictModel):
    """Seconds spent before the first sample.

    `optimize_s` is for all thread counts, `ready_s` for the first alone. `export_cache` is the
    state of the cache of exports and compiled code; None if it was not used.
    """

    build_s: float
    optimize_s: float
    first_pass_s: float
    ready_s: float | None = None
    export_cache: CacheState | None = None

    @property
    def seconds(self) -> float:
        return self.build_s + self.optimize_s + self.first_pass_s

    @property
    def exported(self) -> bool:
        """True if something was exported or compiled, not all of it found in the cache."""
        return self.export_cache in ("empty", "partly full")

    def __str__(self) -> str:
        return f"built in {self.build_s:.2g} s, optimized in {self.optimize_s:.2g} s"


class Record(StrictModel):
    """The result of one trial: its config, time, machine, software, and every sample.

    Records with one `block` took turns: their samples can be paired by cycle. `trial` counts the
    trials of this config here, `round` those of the sweep. `item` describes one of the batch:
    ``16 tokens``. `model_hash` is of the model's structure and weights, as built, `model_files`
    of the files that they were read from. `flops` are those of one pass of the batch.
    `peak_gflops` is the machine's own, in a large matrix product, by thread count and type
    (``fp32``, ``bf16``). For decoding, each pass reads `bytes_to_read` of weights and cache, and
    the machine reads `read_gb_per_s`, by thread count. `engine` has its ``name``, ``version``,
    ``precision``, and settings. `peak_memory_bytes` is the process's peak, `resident_bytes` its
    memory between turns. `governor_after` is that of the CPUs at its end, if it changed.
    `operators` is the profile of a pass, or `not_profiled` the reason why it has none. In a sweep
    of several hosts `host` names the one that measured; with `any_host` they were alike, and count
    as one machine.
    """

    schema_version: Literal[1, 2] = SCHEMA
    config: Config
    config_id: str
    trial: Annotated[int, Field(ge=1)]
    round: Annotated[int, Field(ge=1)] = 1
    block: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")] | None = None
    status: Status
    reason: Annotated[str, AfterValidator(plain)] | None = None
    ended_by: EndedBy | None = None
    started: datetime
    finished: datetime
    machine: Machine
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] | None = None
    any_host: bool = False
    software: Software
    kernel: KernelKind = "fresh"
    item: str | None = None
    model_hash: str | None = None
    model_files: str | None = None
    verification: Verification | None = None
    setup: Setup | None = None
    peak_memory_bytes: int | None = None
    resident_bytes: int | None = None
    governor_after: str | None = None
    flops: int | None = None
    peak_gflops: dict[int, dict[str, float]] = Field(default={})
    bytes_to_read: int | None = None
    read_gb_per_s: dict[int, float] = Field(default={})
    engine: dict[str, str] = Field(default={})
    operators: OperatorTimes | None = None
    not_profiled: Annotated[str, AfterValidator(plain)] | None = None
    points: tuple[Point, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.config_id != self.config.id:
            raise ValueError(f"config_id {self.config_id!r} is not this config's")
        if (self.status == "ok") != bool(self.points):
            raise ValueError("points belong to status 'ok', and to it alone")
        return self

    @classmethod
    def of(cls, trial: Trial, **found: Any) -> Self:
        """Return the record of a trial with the fields `found`, finished now."""
        return cls(
            config=trial.config,
            config_id=trial.config.id,
            trial=trial.number,
            round=trial.round,
            block=trial.block or None,
            finished=datetime.now(UTC),
            **found,
        )

    def require_ok(self) -> None:
        """Raise `MeasurementError` with the reason unless the trial succeeded."""
        if self.status != "ok":
            raise MeasurementError(self.reason)

    @property
    def name(self) -> str:
        """The stem of the record's file."""
        name = trial_name(self.config_id, self.host, self.trial)
        return name if self.schema_version == SCHEMA else re.sub(r"-t(\d+)$", r"-v\1", name)

    @property
    def host_label(self) -> str | None:
        """The host, where a sweep compares several."""
        return None if self.any_host else self.host

    @property
    def machine_name(self) -> str:
        """The machine's name in tables, with its `host_label` if it has one."""
        return f"{self.machine.name}-{self.host_label}" if self.host_label else self.machine.name

    @property
    def config_key(self) -> str:
        """Equal for trials of one config on one host."""
        return config_key(self.config_id, self.host_label)

    @property
    def conditions(self) -> dict[str, str | None]:
        """The conditions that decide the speed, apart from config and machine, by name."""
        forward = self.config.phase == "forward"  # other phases always have a head
        return {
            "model's structure and weights": self.model_hash if forward else None,
            "generating model's structure and weights": None if forward else self.model_hash,
            "model's files": self.model_files,
            "OS kernel": self.machine.kernel,
            "governor": self.machine.governor,
            "transparent huge pages": self.machine.huge_pages,
            "scalebench": self.software.scalebench,
            **self.software.conditions,
        }

    def __str__(self) -> str:
        first = f"{self.config}: {self.reason or self.status}"
        parts = filter(None, (first, *self.points, self.verification, self.setup))
        return "\n".join(map(str, parts))

    def save(self, folder: Path) -> Path:
        """Write ``folder/<name>.json`` atomically, never over an existing record.

        Its last line is the SHA-256 digest of the lines before it.
        """
        target = folder / f"{self.name}.json"
        if target.exists():
            raise ScalebenchError(f"{target} exists, and a record is never changed")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, sealed(json.dumps(self.model_dump(mode="json"), indent=1)))
        return target

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a record; raise `ScalebenchError`, `DamagedError` if it was changed."""
        try:
            data = unsealed(path.read_bytes())
            old = b'"visit":' in data
            record = cls.model_validate(_in_trials(data)) if old else cls.model_validate_json(data)
        except OSError as error:
            raise ScalebenchError(f"cannot read {path}: {error.strerror}") from None
        except (DamagedError, ValueError, LookupError, TypeError) as error:
            why = validation_message(error) if isinstance(error, ValidationError) else error
            raise DamagedError(f"{path.name} is damaged: {why}") from None
        if path.stem != record.name:  # a copy would count twice
            raise DamagedError(f"{path.name} is damaged: it holds {record.name}")
        return record


def config_key(config_id: str, host: str | None) -> str:
    """Return the name of a config's points, with the host where a sweep compares several."""
    return f"{config_id}@{host}" if host else config_id


def _in_trials(data: bytes) -> dict[str, Any]:
    """Convert a record of schema 1: without its probes, with its points in turns."""
    old = json.loads(data)
    points = [_in_turns(point) for point in old.get("points", ())]
    kept = {name: old[name] for name in old.keys() & Record.model_fields.keys()}
    return {**kept, "trial": old["visit"], "round": old["visit"], "points": points}


def _in_turns(old: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a point of schema 1; its total CPU time is shared out by wall time."""
    turns = list[dict[str, Any]]()
    for start, sample in zip(old["started_ns"], old["samples_ns"], strict=True):
        if not turns or start - turns[-1]["start_ns"] >= 500_000_000:  # of the next turn
            turns.append({"cycle": len(turns) + 1, "start_ns": start, "samples_ns": []})
        turns[-1]["samples_ns"].append(sample)
    if old.get("cpu_ns") is not None:
        share = old["cpu_ns"] / sum(old["samples_ns"])
        for turn in turns:
            turn["cpu_ns"] = round(share * sum(turn["samples_ns"]))
    return {**{name: old[name] for name in Point.model_fields.keys() & old.keys()}, "turns": turns}


def load_records(out: Path, aside: bool = False) -> list[Record]:
    """Return the records of the sweep in folder `out`, by config and trial.

    A damaged one is left out, and logged; `aside` renames it to ``*.invalid``.
    """
    gc.disable()  # records hold no cycles: collections take as long as reading 10,000 records
    try:
        paths = (out / "records").glob("*.json")
        found = [record for path in paths if (record := _load(path, aside))]
    finally:
        gc.freeze()
        gc.enable()
    return sorted(found, key=_order)


def _load(path: Path, aside: bool) -> Record | None:
    try:
        return Record.load(path)
    except DamagedError as error:
        if aside:
            set_aside(path, str(error))
        else:
            _log.warning("%s: left out", error)
        return None


def _order(record: Record) -> tuple[Any, ...]:
    config = (getattr(record.config, name) for name in CONFIG_ORDER)
    return *config, record.host_label or "", record.schema_version, record.trial


def require_one_machine(records: Iterable[Record]) -> None:
    """Raise `RequestError`, with the difference, where `records` come from several machines.

    In a sweep of several hosts (`host_label`) each may be another machine.
    """
    firsts: dict[str | None, Record] = {}
    for record in records:
        first = firsts.setdefault(record.host_label, record)
        differing = first.machine.differs_from(record.machine)
        if len(firsts) > 1 and None in firsts:
            first, differing = firsts[None], "their host"
        if differing:
            raise RequestError(
                f"these are records of several machines: {first.name} and {record.name} differ in "
                f"{differing}; 'scalebench report --any-machine' shows them together"
            )


def conditions(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return the `Record.conditions` of `records`, each with all its known values.

    An environment variable that a record lacks was not set: ``none``.
    """
    found = [record.conditions for record in records]
    names = dict.fromkeys(chain.from_iterable(found))
    values = {name: {one.get(name, "none") for one in found} for name in names}
    return {name: {value for value in each if value} for name, each in values.items()}


def next_trial_number(out: Path, config: Config, host: str = "") -> int:
    """Return the first free trial number of `config` (at `host`, or ``*``) in folder `out`."""
    stem = f"{config.id}-{host}" if host else config.id
    numbers = (path.stem.rpartition("-t")[2] for path in (out / "records").glob(f"{stem}-t*.json"))
    return max((int(number) for number in numbers if number.isdigit()), default=0) + 1
