"""The results of a sweep: its points with all their trials, the ratio of any two, and the table.

All of it is rebuilt from the records each time. A sweep that was published elsewhere and imported
has no records: it is one file, `Imported`, and the rows of its table are the published ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scalebench_lib.config import DEFAULT_IMAGE_SIZE, Config, base_of
from scalebench_lib.disturbances import Disturbed
from scalebench_lib.errors import RequestError, ScalebenchError, one_line
from scalebench_lib.record import Point, Record, load_records, require_one_machine, write_atomically
from scalebench_lib.stats import (
    MIN_TURNS,
    Interval,
    Parts,
    Ratio,
    Spread,
    Variance,
    by_cycle,
    error,
    outliers,
    paired,
    percentile,
    ratio,
)

FILE = "imported.json"

Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Part(BaseModel):
    """A piece of an import: refuses unknown keys, never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedPoint(Part):
    """A published mean, its words as published; `rows` are the rows of the file behind it.

    `seq_len` is 0 where the file does not tell it.
    """

    model: str
    optimization: str
    smt: bool
    placement: str
    allocator: str
    seq_len: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    cores: Annotated[float, Field(gt=0)]
    pinned: bool
    latency_ms_mean: Milliseconds
    latency_ms_min: Milliseconds | None
    latency_ms_max: Milliseconds | None
    rows: Annotated[int, Field(ge=1)]

    @property
    def config_id(self) -> str:
        """As of a config of ours, though the words may be unknown to us."""
        words = self.model_dump(include=set(Config.model_fields))
        return Config.model_construct(**words).id


class Imported(Part):
    """What a published file holds: its points, where they come from, and what to know of them.

    `machine` is what the importer called it, if anything. Each of `notes` is a sentence.
    """

    file: str
    sha256: str
    imported: datetime
    machine: str | None
    notes: tuple[str, ...]
    points: Annotated[tuple[PublishedPoint, ...], Field(min_length=1)]

    @property
    def machine_name(self) -> str:
        """For the results table: an unknown machine goes by the file's name."""
        return self.machine or Path(self.file).stem

    @property
    def machine_title(self) -> str:
        """For titles and captions."""
        return self.machine or "an unknown machine"

    @property
    def source(self) -> str:
        """Where the numbers come from, for captions."""
        return f"Imported from {self.file}: published means, no intervals · {self.machine_title}"

    def save(self, out: Path) -> None:
        """Write the import into folder `out`, whole or not at all."""
        write_atomically(out / FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, out: Path) -> Self | None:
        """The import in folder `out`, or None; `ScalebenchError` where it is damaged."""
        path = out / FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ScalebenchError(f"{path} is damaged: {one_line(error)}") from None


PointKey = tuple[str, int]
"""A point's name: its records' `point_key` and its thread count."""

_MOST_PAIRS = 1000
"""So many pairs tell the spread of all."""

_TEXT, _COUNT, _NUMBER, _YES_NO = "object", "Int64", "Float64", "boolean"

_TYPES = {
    **dict.fromkeys(("machine", "config_id", "model", "optimization"), _TEXT),
    "smt": _YES_NO,
    **dict.fromkeys(("placement", "allocator", "device"), _TEXT),
    **dict.fromkeys(("seq_len", "image_size", "batch_size", "threads"), _COUNT),
    "cores": _NUMBER,
    "status": _TEXT,
    **dict.fromkeys(("samples", "outliers"), _COUNT),
    **dict.fromkeys(("latency_ms", "latency_ms_low", "latency_ms_high"), _NUMBER),
    **dict.fromkeys(("latency_ms_min", "latency_ms_mean"), _NUMBER),
    **dict.fromkeys(("latency_ms_p90", "latency_ms_p99", "throughput"), _NUMBER),
    **dict.fromkeys(("speedup", "speedup_low", "speedup_high", "scaling"), _NUMBER),
    "paired": _TEXT,
    **dict.fromkeys(("gflops", "peak_fraction"), _NUMBER),
    **dict.fromkeys(("sqnr_db", "max_abs_error"), _NUMBER),
    **dict.fromkeys(("coarse", "pinned"), _YES_NO),
    "cpus_utilized": _NUMBER,
    **dict.fromkeys(("trials", "turns", "shared", "throttled"), _COUNT),
    "stolen": _NUMBER,
    "spent_s": _NUMBER,
    "peak_memory_mb": _NUMBER,
    **dict.fromkeys(("reason", "imported_from"), _TEXT),
    "item": _TEXT,
}

COLUMNS = tuple(_TYPES)
"""The columns of the results table, in order."""

_ORDER = [
    *("model", "seq_len", "image_size", "optimization", "smt", "allocator"),
    *("batch_size", "threads"),
]
_NS_PER_MS = 1e6

_Trials = Sequence[tuple[Record, Point]]
_Group = tuple[Config, str | None]


@dataclass(frozen=True, eq=False)
class MeasuredPoint:
    """A point with all its trials; `parts` are the logs of its turns' medians, trial by trial."""

    trials: _Trials
    parts: Parts
    spread: Spread

    @property
    def config(self) -> Config:
        """What was measured."""
        return self.trials[0][0].config

    @property
    def threads(self) -> int:
        """On how many threads."""
        return self.trials[0][1].threads

    @property
    def host_label(self) -> str | None:
        """The host, where a sweep compares several."""
        return self.trials[0][0].host_label

    @cached_property
    def samples_ns(self) -> np.ndarray:
        """Every sample of every trial, in the order made."""
        every = chain.from_iterable(point.samples_ns for _, point in self.trials)
        return np.fromiter(every, float)

    @cached_property
    def outlier(self) -> np.ndarray:
        """Which samples are more than 1.5 times the median of their trial."""
        return np.concatenate([outliers(point.samples_ns) for _, point in self.trials])

    @cached_property
    def latency(self) -> Interval:
        """The median of all samples in ns, with its 95 % interval: of these rounds."""
        return Interval.around(float(np.median(self.samples_ns)), error(self.parts, self.spread))

    @property
    def std_error(self) -> float:
        """Standard error of the latency's logarithm."""
        return self.latency.std_error

    @property
    def df(self) -> float:
        """Degrees of freedom of the standard error."""
        return self.latency.df

    @property
    def half_width(self) -> float:
        """Half the latency's interval over the latency."""
        return self.latency.half_width

    @property
    def turns(self) -> int:
        """Of all trials."""
        return sum(len(point.turns) for _, point in self.trials)

    @property
    def coarse(self) -> bool:
        """Whether it has fewer than 6 turns."""
        return self.turns < MIN_TURNS

    @property
    def spent_s(self) -> float:
        """Seconds that its turns took."""
        return sum(point.spent_s for _, point in self.trials)

    @property
    def cpus_utilized(self) -> float:
        """CPU time / wall time of all samples; NaN where it is not known."""
        points = [point for _, point in self.trials]
        wall = sum(point.wall_ns for point in points)
        return sum(point.cpus_utilized * point.wall_ns for point in points) / wall

    @cached_property
    def group(self) -> _Group:
        """What it is compared within."""
        return self.config.group, self.host_label

    @cached_property
    def by_block(self) -> dict[str, np.ndarray]:
        """The logs of its turns by block, each by cycle."""
        turns: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for (record, point), logs in zip(self.trials, self.parts, strict=True):
            cycles, values = turns[_block(record, point)]
            cycles += [turn.cycle for turn in point.turns]
            values += logs.tolist()
        return {block: by_cycle(*found) for block, found in turns.items()}


def _block(record: Record, point: Point) -> str:
    """With whom the point's turns can be paired: a trial alone is a block of its own.

    Records of schema 1 took no turns, not even between thread counts.
    """
    if record.schema_version == 1:
        return f"{record.name} {point.threads}"
    return record.block or record.name


class Results:
    """The points of a sweep, by key, and how they compare; of an import the table alone."""

    def __init__(self, records: Sequence[Record], imported: Imported | None = None) -> None:
        self.records = list(records)
        self.imported = imported
        self.points = _measured(self.records)
        self._spreads: dict[tuple[bool, bool], Spread] = {}

    @classmethod
    def of(cls, records: Iterable[Record]) -> Results:
        """The results of `records`."""
        return cls(list(records))

    @classmethod
    def load(cls, out: Path, any_machine: bool = False) -> Results:
        """The results of the sweep in folder `out`.

        Raises `RequestError` where there is none, or, but for `any_machine`, one of several
        machines.
        """
        imported = Imported.load(out)
        if imported:
            return cls([], imported)
        records = load_records(out)
        if not records:
            raise RequestError(
                f"{out} holds no records: measure first, with 'scalebench sweep {out}'"
            )
        if not any_machine:
            require_one_machine(records)
        return cls(records)

    @property
    def assumed_spread(self) -> bool:
        """Whether the spread from process to process is assumed: no trial was repeated."""
        return any(point.spread.assumed for point in self.points.values())

    def ratio(self, one: PointKey, other: PointKey) -> Ratio:
        """The latency of point `one` over that of `other`.

        Paired by their turns where they met in a block; else via their group's base, where both
        met it at its best thread count; else from their latencies.
        """
        if one == other:
            return Ratio.around(1.0, Variance(0.0))
        found = self._paired(one, other) or self._via_base(one, other)
        return found or self._apart(one, other)

    def speedup(self, key: PointKey) -> Ratio | None:
        """The base's latency, at its best thread count, over this; None where it failed."""
        base = self.base(key)
        return base and self.ratio(base, key)

    def scaling(self, key: PointKey) -> Ratio | None:
        """The latency of the point's config on one thread over this; None without one."""
        single = (key[0], 1)
        return self.ratio(single, key) if single in self.points else None

    def base(self, key: PointKey) -> PointKey | None:
        """The base of the group of `key` at its best thread count, None where it failed."""
        return self._bases[self.points[key].group]

    def best_threads(self, point_key: str) -> PointKey | None:
        """The point of the lowest latency among those of a config, None where it has none."""
        return self._best.get(point_key)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a point; `COLUMNS` says which columns.

        Times are in ms, throughput in inferences/s, gflops in GFLOP/s. ``speedup`` is over the
        base at its best thread count, ``paired`` says how the two were compared, ``scaling`` is
        over the config's own one thread. ``peak_fraction`` is the share of the machine's peak in
        the config's own type; ``cpus_utilized`` is CPU time / wall time. Of the ``turns``
        ``shared`` were (`Point.shared`), a quota stopped the process in ``throttled`` periods, and
        the hypervisor took the share ``stolen``, 0 to 1, of the CPU time. A config that failed or
        was skipped, and never succeeded, is one row with its reason and no thread count.
        """
        if self.imported:
            return _table(_published_row(self.imported, one) for one in self.imported.points)
        peaks, measured = _peaks(self.records), {name for name, _ in self.points}
        missing = {r.point_key: r for r in self.records if r.point_key not in measured}
        rows = ({**_row(p, peaks), **self._compared(key)} for key, p in self.points.items())
        return _table(chain(rows, map(_missing_row, missing.values())))

    def _compared(self, key: PointKey) -> dict[str, Any]:
        speedup, scaling = self.speedup(key), self.scaling(key)
        return {
            "speedup": speedup and speedup.value,
            "speedup_low": speedup and speedup.low,
            "speedup_high": speedup and speedup.high,
            "paired": speedup.label if speedup else "",
            "scaling": scaling and scaling.value,
        }

    @cached_property
    def _best(self) -> dict[str, PointKey]:
        best: dict[str, PointKey] = {}
        for key, point in self.points.items():
            kept = best.setdefault(key[0], key)
            if point.latency.value < self.points[kept].latency.value:
                best[key[0]] = key
        return best

    @cached_property
    def _bases(self) -> dict[_Group, PointKey | None]:
        configs: dict[_Group, dict[Config, str]] = defaultdict(dict)
        for record in self.records:
            group = (record.config.group, record.host_label)
            configs[group][record.config] = record.point_key
        return {group: self._best.get(each[base_of(each)]) for group, each in configs.items()}

    def _paired(self, one: PointKey, other: PointKey) -> Ratio | None:
        a, b = self.points[one], self.points[other]
        parts = paired(a.by_block, b.by_block)
        if not parts:
            return None
        return ratio(parts, self._spread(a.group == b.group, a.threads == b.threads))

    def _via_base(self, one: PointKey, other: PointKey) -> Ratio | None:
        base = self.base(one)
        if base is None or base != self.base(other) or base in (one, other):
            return None
        first, second = self._paired(one, base), self._paired(base, other)
        name = self.points[base].config.optimization
        return first.times(second, name) if first and second else None

    def _apart(self, one: PointKey, other: PointKey) -> Ratio:
        a, b = self.points[one].latency, self.points[other].latency
        variance = a.variance + b.variance
        return Ratio.around(
            a.value / b.value, variance, "not measured together", assumed=self.assumed_spread
        )

    def _spread(self, same_group: bool, same_threads: bool) -> Spread:
        """The spread of pairs of one kind: from block to block those of one thread count, and
        those of one group, differ less."""
        kind = (same_group, same_threads)
        if kind not in self._spreads:
            contrasts = self._contrasts(*kind)
            self._spreads[kind] = Spread.of(list(self._pairs(*kind)), contrasts)
        return self._spreads[kind]

    def _pairs(self, same_group: bool, same_threads: bool) -> Iterator[Parts]:
        """The differences of pairs of one kind: of all, or of many taken at random."""
        points = list(self.points.values())
        groups = {point.group: number for number, point in enumerate(points)}
        of, threads = ([groups[p.group] for p in points], [p.threads for p in points])
        one, other = np.triu_indices(len(points), 1)
        alike = [np.take(values, one) == np.take(values, other) for values in (of, threads)]
        chosen = np.flatnonzero((alike[0] == same_group) & (alike[1] == same_threads))
        if chosen.size > _MOST_PAIRS:
            chosen = np.random.default_rng(0).choice(chosen, _MOST_PAIRS, replace=False)
        for a, b in zip(one[chosen], other[chosen], strict=True):
            yield paired(points[a].by_block, points[b].by_block)

    def _contrasts(self, same_group: bool, same_threads: bool) -> int:
        """How many independent comparisons of a kind the blocks hold.

        A process has its own speed: trials less 1, those of each group by themselves. A state of
        the machine changes all pairs of two thread counts together: thread counts less 1.
        """
        members: dict[tuple[str, _Group | None], set[tuple[str, int]]] = defaultdict(set)
        for key, point in self.points.items():
            for block in point.by_block:
                apart = point.group if same_group and same_threads else None
                members[block, apart].add(key)
        return sum(len({key[not same_threads] for key in keys}) - 1 for keys in members.values())


def twins(one: Results, other: Results) -> dict[PointKey, Ratio]:
    """The latency of each point of `one` over its twin's in `other`, where the two met.

    Of two sweeps whose trials shared their blocks, as of two environments.
    """
    parts = {
        key: paired(point.by_block, other.points[key].by_block)
        for key, point in one.points.items()
        if key in other.points
    }
    parts = {key: each for key, each in parts.items() if each}
    met = {(block, key[0]) for key in parts for block in one.points[key].by_block}
    spread = Spread.of(list(parts.values()), len(met))
    return {key: ratio(each, spread) for key, each in parts.items()}


def results_table(records: Iterable[Record]) -> pd.DataFrame:
    """The results table of `records`."""
    return Results.of(records).table


def _measured(records: Iterable[Record]) -> dict[PointKey, MeasuredPoint]:
    trials: dict[PointKey, list[tuple[Record, Point]]] = defaultdict(list)
    for record in records:
        for point in record.points:
            trials[record.point_key, point.threads].append((record, point))
    parts = {
        key: [np.log([turn.median_ns for turn in point.turns]) for _, point in each]
        for key, each in trials.items()
    }
    # All points of a block meet the same minutes, and differ from round to round together.
    minutes = {record.block or record.name for each in trials.values() for record, _ in each}
    spread = Spread.of(parts.values(), len(minutes))
    return {key: MeasuredPoint(each, parts[key], spread) for key, each in trials.items()}


def _table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(_TYPES)
    return table.sort_values(_ORDER, ignore_index=True)


_Peaks = dict[tuple[str, str], float]


def _threads_name(config: Config, threads: int, host: str | None) -> str:
    """What decides the machine's peak: ``2``, ``2 smt``, ``2 interleave``, ``2 @host``."""
    words = [str(threads), "smt" * config.smt, config.placement.replace("sequential", "")]
    return " ".join(filter(None, [*words, f"@{host}" if host else ""]))


def _peaks(records: Iterable[Record]) -> _Peaks:
    """The machine's best GFLOP/s by placement of threads and type, over the whole sweep."""
    peaks: _Peaks = {}
    for record in records:
        for threads, by_type in record.peak_gflops.items():
            for dtype, gflops in by_type.items():
                key = (_threads_name(record.config, threads, record.host_label), dtype)
                peaks[key] = max(gflops, peaks.get(key, 0.0))
    return peaks


def _row(measured: MeasuredPoint, peaks: _Peaks) -> dict[str, Any]:
    record, point = measured.trials[0]
    latency = measured.latency.value / _NS_PER_MS
    flops = next((record.flops for record, _ in measured.trials if record.flops), None)
    gflops = flops / measured.latency.value if flops else None
    name = _threads_name(measured.config, measured.threads, measured.host_label)
    peak = peaks.get((name, record.engine.get("precision", "fp32")))
    return {
        **_identity(record),
        **_verified([record for record, _ in measured.trials]),
        **_times_ms(measured),
        "threads": measured.threads,
        "cores": point.cores,
        "outliers": int(measured.outlier.sum()),
        "coarse": measured.coarse,
        "throughput": measured.config.batch_size / latency * 1e3,
        "gflops": gflops,
        "peak_fraction": gflops / peak if gflops and peak else None,
        "pinned": all(point.pinned for _, point in measured.trials),
        "cpus_utilized": measured.cpus_utilized,
        "trials": len(measured.trials),
        **asdict(Disturbed.of(point for _, point in measured.trials)),
        "spent_s": measured.spent_s,
    }


def _times_ms(measured: MeasuredPoint) -> dict[str, Any]:
    samples = measured.samples_ns / _NS_PER_MS
    single = all(point.passes_per_sample == 1 for _, point in measured.trials)
    return {
        "samples": samples.size,
        "latency_ms": measured.latency.value / _NS_PER_MS,
        "latency_ms_low": measured.latency.low / _NS_PER_MS,
        "latency_ms_high": measured.latency.high / _NS_PER_MS,
        "latency_ms_min": float(samples.min()),
        "latency_ms_mean": float(samples.mean()),
        "latency_ms_p90": percentile(samples, 90) if single else None,
        "latency_ms_p99": percentile(samples, 99) if single else None,
    }


def _verified(records: Iterable[Record]) -> dict[str, float | None]:
    """The worst of the trials; an SQNR against eager stands only where there is none to fp64."""
    found = [record.verification for record in records if record.verification]
    best = [one for one in found if one.reference == "fp64"] or found
    sqnr = [one.sqnr_db for one in best if one.sqnr_db is not None]
    return {
        "sqnr_db": min(sqnr, default=None),
        "max_abs_error": max((one.max_abs_error for one in found), default=None),
    }


def _missing_row(record: Record) -> dict[str, Any]:
    return {**_identity(record), "samples": 0, "outliers": 0, "trials": 0, "turns": 0, "paired": ""}


def _published_row(imported: Imported, point: PublishedPoint) -> dict[str, Any]:
    """A published mean as the row of a point; what only samples can tell is empty."""
    return {
        **point.model_dump(),
        "machine": imported.machine_name,
        "config_id": point.config_id,
        "device": "cpu",
        "image_size": DEFAULT_IMAGE_SIZE,  # as of every model that takes none
        "item": f"{point.seq_len} tokens" if point.seq_len else "",
        "status": "ok",
        "latency_ms": point.latency_ms_mean,
        "coarse": False,
        "throughput": point.batch_size / point.latency_ms_mean * 1e3,
        "paired": "",
        "trials": point.rows,
        "imported_from": imported.file,
    }


def _identity(record: Record) -> dict[str, Any]:
    config = record.config.model_dump(exclude={"weights", "seed"})
    peak = record.peak_memory_bytes
    return {
        **config,
        "machine": record.machine_name,
        "config_id": record.config_id,
        "item": record.item or record.config.item,
        "status": record.status,
        "reason": record.reason,
        "peak_memory_mb": None if peak is None else peak / 1e6,
    }
