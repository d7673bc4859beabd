"""What a visit found: one JSON file, written once, never changed. It alone means "done"."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from scalebench_lib.config import Config, Visit, visit_name
from scalebench_lib.errors import MeasurementError, ScalebenchError, one_line
from scalebench_lib.estimate import median_interval, percentile
from scalebench_lib.files import DamagedError, sealed, set_aside, unsealed
from scalebench_lib.files import write_atomically as write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.numerals import counted, number
from scalebench_lib.software import Software as Software
from scalebench_lib.verification import Verification as Verification
from scalebench_lib.words import Words

KernelKind = Literal["fresh", "warm", "none"]
Status = Literal["ok", "failed", "skipped"]


class Statistics(Words):
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


class Point(Words):
    """A config at one thread count: every timed pass, in nanoseconds, in the order measured.

    A sample is one pass, or the mean of `passes_per_sample` timed at once. `started_ns` are the
    samples' starts since the visit's first, the probes the machine's speed right before and
    after each; `warmup_ns` are passes that do not count. `cpu_ns` is the CPU time of the samples,
    of all threads together; `spent_s` what the point cost in all, and `stopped_by` which limit
    ended it.
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
    cpu_ns: Annotated[int, Field(ge=0)] | None = None
    spent_s: float = 0.0
    stopped_by: Literal["target_ci", "max_seconds"]
    statistics: Statistics = Field(default_factory=lambda data: Statistics.of(data["samples_ns"]))

    def __str__(self) -> str:
        found = self.statistics
        bounds = (
            f" ({number(found.low / 1e6, 4)} … {number(found.high / 1e6, 4)})"
            if found.low and found.high
            else ""
        )
        return (
            f"{counted(self.threads, 'thread')} on CPU "
            f"{', '.join(map(str, self.cpus))}{'' if self.pinned else ', unpinned'}: "
            f"median {number(found.median / 1e6, 4)} ms{bounds} of {len(self.samples_ns)} passes, "
            f"{'' if self.cpu_ns is None else f'CPU time / wall time {self.cpus_utilized:.2f}, '}"
            f"stopped by {self.stopped_by}"
        )

    @property
    def wall_ns(self) -> int:
        """The time of all samples."""
        return sum(self.samples_ns) * self.passes_per_sample

    @property
    def cpus_utilized(self) -> float:
        """CPU time / wall time of the samples, NaN where it is not known: threads at work."""
        return math.nan if self.cpu_ns is None else self.cpu_ns / self.wall_ns

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = {len(self.started_ns), len(self.probe_before_ns), len(self.probe_after_ns)}
        if sizes - {0, len(self.samples_ns)}:
            raise ValueError("each sample has its start and its probes")
        return self


class Setup(Words):
    """Seconds spent before the first sample; what a visit costs beside its measurement."""

    build_s: float
    optimize_s: float
    first_pass_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.build_s + self.optimize_s + self.first_pass_s

    def __str__(self) -> str:
        return (
            f"built in {self.build_s:.2g} s, optimized in {self.optimize_s:.2g} s, "
            f"first pass {self.first_pass_s:.2g} s"
        )


class Record(Words):
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
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] | None = None
    any_host: bool = False
    software: Software
    kernel: KernelKind = "fresh"
    item: str | None = None
    verification: Verification | None = None
    setup: Setup | None = None
    peak_memory_bytes: int | None = None
    flops: int | None = None
    probe_version: int | None = None
    peak_gflops: dict[int, dict[str, float]] = Field(default={})
    engine: dict[str, str] = Field(default={})
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
    from scalebench_lib import cache  # it is made of records

    return sorted(
        cache.read(out, _load), key=lambda r: (*_size_order(r.config), r.place or "", r.visit)
    )


def _load(path: Path) -> Record | None:
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
