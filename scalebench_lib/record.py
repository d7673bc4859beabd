"""What a visit found: one JSON file, written once, never changed. It alone means "done"."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scalebench_lib import __version__
from scalebench_lib.config import Config, Visit, visit_name
from scalebench_lib.errors import MeasurementError, ScalebenchError, one_line
from scalebench_lib.estimate import median_interval, percentile
from scalebench_lib.files import DamagedError, sealed, set_aside, unsealed
from scalebench_lib.files import write_atomically as write_atomically
from scalebench_lib.machine import Machine

_COMPARED = ("numpy", "torch", "transformers")
_DECIDING = re.compile(
    "(OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|ATEN|MALLOC|TCMALLOC)_|(LD_PRELOAD|GLIBC_TUNABLES)$"
)
"""Environment variables that decide a process's speed."""

_ALLOCATORS_OWN = ("LD_PRELOAD", "MALLOC_")

HOST_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
"""What a host may be called: it is part of file names."""

KernelKind = Literal["fresh", "warm", "none"]
Status = Literal["ok", "failed", "skipped"]


class Part(BaseModel):
    """A piece of a record: refuses unknown keys, never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Statistics(Part):
    """Raw statistics of a point's samples, in nanoseconds; every sample counts.

    `low` and `high` bound the median with 95 % confidence, where there are samples enough.
    """

    median: float
    low: float | None
    high: float | None
    minimum: int
    mean: float
    maximum: int
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, samples_ns: tuple[int, ...]) -> Self:
        """The statistics of `samples_ns` (at least one)."""
        interval = median_interval(samples_ns)
        return cls(
            median=interval.value,
            low=None if interval.coarse else interval.low,
            high=None if interval.coarse else interval.high,
            minimum=min(samples_ns),
            mean=sum(samples_ns) / len(samples_ns),
            maximum=max(samples_ns),
            p90=percentile(samples_ns, 90),
            p99=percentile(samples_ns, 99),
        )


class Point(Part):
    """A config at one thread count: every timed pass, in nanoseconds, in the order measured.

    A sample is one pass, or the mean of `passes_per_sample` timed at once. `started_ns` are the
    samples' starts since the visit's first, the probes the machine's speed right before and
    after each; `warmup_ns` are passes that do not count. `spent_s` is what the point cost in
    all, and `stopped_by` which limit ended it.
    """

    threads: Annotated[int, Field(ge=1)]
    cores: Annotated[float, Field(gt=0)]
    cpus: tuple[int, ...]
    pinned: bool
    samples_ns: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    started_ns: tuple[int, ...]
    probe_before_ns: tuple[int, ...] = ()
    probe_after_ns: tuple[int, ...] = ()
    passes_per_sample: Annotated[int, Field(ge=1)] = 1
    warmup_ns: tuple[int, ...]
    spent_s: float = 0.0
    stopped_by: Literal["target_ci", "max_seconds"]
    statistics: Statistics = Field(default_factory=lambda data: Statistics.of(data["samples_ns"]))

    def __str__(self) -> str:
        found = self.statistics
        bounds = (
            f" ({found.low / 1e6:.4g} … {found.high / 1e6:.4g})" if found.low and found.high else ""
        )
        return (
            f"{self.threads} thread{'s' * (self.threads != 1)} on CPU "
            f"{', '.join(map(str, self.cpus))}{'' if self.pinned else ', unpinned'}: "
            f"median {found.median / 1e6:.4g} ms{bounds} of {len(self.samples_ns)} passes, "
            f"stopped by {self.stopped_by}"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        beside = (self.started_ns, self.probe_before_ns, self.probe_after_ns)
        if any(len(one) not in (0, len(self.samples_ns)) for one in beside):
            raise ValueError("each sample has its start and its probes")
        return self


class Verification(Part):
    """How near the optimized outputs were to `reference`: float64, or eager float32.

    `sqnr_db` is signal over error of the worst of the `items` compared, in dB, at unmasked
    positions; `eager_sqnr_db` that of eager float32. `max_abs_error` is against eager. Records
    before 0.2 have a `tolerance` on that instead.
    """

    max_abs_error: float
    items: int
    sqnr_db: float | None = None
    eager_sqnr_db: float | None = None
    required_db: float | None = None
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    reference: Literal["fp64", "eager"] = "eager"
    batch_size: int | None = None
    note: str | None = None
    tolerance: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the outputs are near enough."""
        return None in (self.sqnr_db, self.required_db) or self.sqnr_db >= self.required_db  # type: ignore[operator]

    @property
    def sliced(self) -> bool:
        """Whether only some items of the batch were compared."""
        return self.batch_size is not None and self.items < self.batch_size

    def __str__(self) -> str:
        largest = f"outputs differ from eager's by at most {self.max_abs_error:.2g}"
        if self.sqnr_db is None:
            return largest
        of = f" of {self.batch_size}" if self.sliced else ""
        against = "eager fp32" if self.eager_sqnr_db is None else "fp64"
        eager = "" if self.eager_sqnr_db is None else f", where eager has {self.eager_sqnr_db:.0f}"
        note = f" ({self.note})" if self.note else ""
        return (
            f"SQNR {self.sqnr_db:.0f} dB against {against}{eager}, at least {self.required_db:.0f} "
            f"asked of {self.precision}, worst of {self.items}{of} items{note}; {largest}"
        )


class Setup(Part):
    """Seconds spent before the first sample; what a visit costs beside its measurement."""

    build_s: float
    optimize_s: float
    first_pass_s: float

    def __str__(self) -> str:
        return (
            f"built in {self.build_s:.2g} s, optimized in {self.optimize_s:.2g} s, "
            f"first pass {self.first_pass_s:.2g} s"
        )


class Software(Part):
    """Versions, and what else of the process decides speed: libraries, thread environment."""

    python: str
    scalebench: str
    versions: dict[str, str]
    libraries: dict[str, str] = {}
    environment: dict[str, str] = {}

    @classmethod
    def here(cls, libraries: dict[str, str] | None = None) -> Self:
        """This process's software; `libraries` are what computes inside torch, where known."""
        return cls(
            python=platform.python_version(),
            scalebench=__version__,
            versions={name: version(name) for name in _COMPARED},
            libraries=libraries or {},
            environment={
                name: value
                for name, value in sorted(os.environ.items())
                if value and _DECIDING.match(name)
            },
        )

    def differs_from(self, other: Software, allocator: str = "default") -> str | None:
        """The first difference that makes two sweeps incomparable, or None.

        How an `allocator` is loaded does not count: every visit asks which one it has.
        """
        mine, theirs = (s._deciding(allocator) for s in (self, other))
        for name in sorted(mine | theirs):
            if mine.get(name) != theirs.get(name):
                return f"{name} {mine.get(name)} against {theirs.get(name)}"
        return None

    def _deciding(self, allocator: str) -> dict[str, str]:
        found = {"python": self.python, **self.versions, **self.environment}
        loaded = ("LD_PRELOAD",) if allocator == "default" else _ALLOCATORS_OWN
        return {name: value for name, value in found.items() if not name.startswith(loaded)}


class Record(Part):
    """The result of one visit: what, when, where, with what, and every sample.

    `item` is what one of the batch is: ``16 tokens``. `flops` are those of one pass of the batch.
    `peak_gflops` is what the machine itself reaches in a large matrix product, by thread count
    and type (``fp32``, ``bf16``). `engine` is what ran the model: its ``name``, ``version``,
    ``precision``, and what else decides its speed. In a sweep of several hosts `host` names the
    one that measured; with `any_host` they were alike, and count as one machine.
    """

    schema_version: Literal[1] = 1
    config: Config
    config_id: str
    visit: Annotated[int, Field(ge=1)]
    status: Status
    reason: str | None = None
    started: datetime
    finished: datetime
    machine: Machine
    host: Annotated[str, Field(pattern=HOST_NAME)] | None = None
    any_host: bool = False
    software: Software
    kernel: KernelKind = "fresh"
    item: str | None = None
    verification: Verification | None = None
    setup: Setup | None = None
    peak_memory_bytes: int | None = None
    flops: int | None = None
    probe_version: int | None = None
    peak_gflops: dict[int, dict[str, float]] = {}
    engine: dict[str, str] = {}
    points: tuple[Point, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.config_id != self.config.id:
            raise ValueError(f"config_id {self.config_id!r} is not this config's")
        if (self.status == "ok") != bool(self.points):
            raise ValueError("points belong to status 'ok', and to it alone")
        return self

    @classmethod
    def without_points(
        cls,
        visit: Visit,
        machine: Machine,
        status: Status,
        reason: str,
        started: datetime,
        kernel: KernelKind = "fresh",
    ) -> Self:
        """The record of a visit that never came to measure: failed, or skipped."""
        return cls(
            config=visit.config,
            config_id=visit.config.id,
            visit=visit.number,
            status=status,
            reason=reason,
            started=started,
            finished=datetime.now(UTC),
            machine=machine,
            software=Software.here(),
            kernel=kernel,
        )

    def require_ok(self) -> None:
        """Raise `MeasurementError` with the reason unless the visit succeeded."""
        if self.status != "ok":
            raise MeasurementError(self.reason)

    @property
    def name(self) -> str:
        """The stem of the record's file."""
        return visit_name(self.config_id, self.host, self.visit)

    @property
    def place(self) -> str | None:
        """The host whose numbers these are, where a sweep compares several."""
        return None if self.any_host else self.host

    @property
    def machine_name(self) -> str:
        """What tables call the machine: its name, and its `place`'s."""
        return f"{self.machine.name}-{self.place}" if self.place else self.machine.name

    @property
    def pooled_as(self) -> str:
        """What visits of the same thing share: config id and `place`."""
        return f"{self.config_id}@{self.place}" if self.place else self.config_id

    def __str__(self) -> str:
        lines = [f"{self.config}: {self.reason or self.status}", *map(str, self.points)]
        if self.verification:
            lines.append(str(self.verification))
        if self.setup:
            lines.append(str(self.setup))
        return "\n".join(lines)

    def save(self, folder: Path) -> Path:
        """Write ``folder/<name>.json`` whole or not at all; never over an existing record.

        Its last line is the SHA-256 digest of the lines before it, by which damage is noticed.
        """
        target = folder / f"{self.name}.json"
        if target.exists():
            raise ScalebenchError(f"{target} exists, and a record is never changed")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, sealed(json.dumps(self.model_dump(mode="json"), indent=1)))
        return target

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a record; `ScalebenchError` names the file and what is wrong."""
        try:
            record = cls.model_validate_json(unsealed(path.read_bytes()))
        except OSError as error:
            raise ScalebenchError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            raise DamagedError(f"{path.name} is damaged: {one_line(error)}") from None
        except DamagedError as error:
            raise DamagedError(f"{path.name} is damaged: {error}") from None
        ending = record.name.removeprefix(record.config_id)
        if not (path.stem.startswith(record.config_id) and path.stem.endswith(ending)):
            raise DamagedError(f"{path.name} is damaged: it holds {record.name}")
        return record


def load_records(out: Path) -> list[Record]:
    """All records of the sweep in folder `out`, by config and visit.

    A damaged one is set aside, to be measured again; a line on the log says so.
    """
    records = filter(None, map(_load_or_set_aside, (out / "records").glob("*.json")))
    return sorted(records, key=lambda r: (*_size_order(r.config), r.place or "", r.visit))


def _load_or_set_aside(path: Path) -> Record | None:
    try:
        return Record.load(path)
    except DamagedError as error:
        set_aside(path, str(error))
        return None


def _size_order(config: Config) -> tuple[Any, ...]:
    return (
        config.model,
        config.seq_len,
        config.image_size,
        config.optimization,
        config.smt,
        config.allocator,
        config.batch_size,
    )


def next_visit(out: Path, config: Config, host: str = "") -> int:
    """The first visit number of `config` (at `host`) that has no record in folder `out`.

    ``*`` means all hosts together.
    """
    numbers = _visits(out, f"{config.id}-{host}" if host else config.id)
    return max(numbers, default=0) + 1


def _visits(out: Path, stem: str) -> Iterator[int]:
    for path in (out / "records").glob(f"{stem}-v*.json"):
        number = path.stem.rpartition("-v")[2]
        if number.isdigit():
            yield int(number)
