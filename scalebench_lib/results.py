"""The results of a sweep: its points with all their trials, the ratio of any two, and the table.

They are computed from the records at each load, or, for an imported sweep, from its ``results.csv``
and its source (`Imported`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import ValidationError

from scalebench_lib import stats
from scalebench_lib.config import AXES, DEFAULTS, Config, StrictModel, base_of
from scalebench_lib.disturbances import DisturbanceCounts
from scalebench_lib.errors import RequestError, ScalebenchError, validation_message
from scalebench_lib.operators import SHARES
from scalebench_lib.record import (
    CONFIG_ORDER,
    Point,
    Record,
    Setup,
    config_key,
    load_records,
    require_one_machine,
)

if TYPE_CHECKING:
    import pandas as pd  # takes as long to import as all else: only where a table is made

CSV, FILE = "results.csv", "source.json"
"""The table of a sweep; the source of an imported one."""

EAGER = "none"
RATIOS = ("speedup", "same_threads", "scaling")
"""A point's ratios: over eager at its best thread count, over eager at the same thread count, and
over its own config at one thread. Each is the other's latency over the point's."""

_RATIO_PARTS = ("", "_low", "_high", "_paired")
RATIO_COLUMNS = tuple(f"{name}{part}" for name in RATIOS for part in _RATIO_PARTS)

_TEXT, _COUNT, _NUMBER, _FLAG = "object", "Int64", "Float64", "boolean"
_DTYPES = {bool: _FLAG, int: _COUNT, str: _TEXT}
_AXIS_TYPES = {name: _DTYPES[type(value)] for name, value in DEFAULTS.items()}
_SCHEMA = (
    ("machine config_id model", _TEXT),
    *sorted(_AXIS_TYPES.items(), key=lambda column: column[1] == _COUNT),
    ("threads", _COUNT),
    ("cores", _NUMBER),
    ("status", _TEXT),
    ("samples outliers", _COUNT),
    ("latency_ms latency_ms_low latency_ms_high latency_ms_min latency_ms_mean", _NUMBER),
    ("latency_ms_p90 latency_ms_p99 throughput", _NUMBER),
    ("speedup speedup_low speedup_high scaling", "float64"),
    ("paired", _TEXT),
    ("gflops peak_fraction bandwidth_fraction sqnr_db max_abs_error", _NUMBER),
    ("coarse pinned", _FLAG),
    ("cpus_utilized", _NUMBER),
    ("trials turns shared throttled", _COUNT),
    ("stolen spent_s peak_memory_mb resident_memory_mb", _NUMBER),
    ("build_s optimize_s optimize_anew_s first_pass_s", _NUMBER),
    (" ".join([*SHARES.values(), "profiled_ms"]), _NUMBER),
    ("reason imported_from item", _TEXT),
)
_CSV_TYPES = {name: dtype for names, dtype in _SCHEMA for name in names.split()}
_RATIO_TYPES = {name: _TEXT if name.endswith("_paired") else "float64" for name in RATIO_COLUMNS}
_TYPES = {**_CSV_TYPES, **_RATIO_TYPES}

COLUMNS = tuple(_CSV_TYPES)
"""The columns of ``results.csv``, in order."""

_NS_PER_MS = 1e6
_MAX_PAIRS = 1000  # over as many pairs of points, taken at random, variances are pooled

PointKey = tuple[str, int]
"""A point's name: its records' `config_key` and its thread count."""

Row = Mapping[Any, Any]
"""A row of the results table."""

_Trials = Sequence[tuple[Record, Point]]
_Group = tuple[Config, str | None]


class Imported(StrictModel):
    """The source of an imported sweep: the published `file`, and `notes` on it, a sentence each.

    `machine` is the importer's name for it, if any; `points` is the number of rows; `together` are
    the runs of several ``instances`` at once, with the mean of the slowest, ``latency_ms``.
    """

    file: str
    sha256: str
    imported: datetime
    machine: str | None
    points: int
    notes: tuple[str, ...]
    together: tuple[dict[str, Any], ...] = ()

    @property
    def source(self) -> str:
        machine = self.machine or "an unknown machine"
        return f"Imported from {self.file}: published means, no intervals · {machine}"

    @classmethod
    def load(cls, out: Path) -> Self | None:
        """Read the source of the import in folder `out`, if it is one.

        Raises `RequestError` for one of an older scalebench, `ScalebenchError` for a damaged one.
        """
        if (out / "imported.json").exists():
            raise RequestError(
                f"{out} was imported by an older scalebench: import its file again, with "
                "'scalebench import', into a new folder"
            )
        path = out / FILE
        try:
            return cls.model_validate_json(path.read_bytes()) if path.exists() else None
        except OSError as error:
            raise ScalebenchError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            raise ScalebenchError(f"{path} is damaged: {validation_message(error)}") from None


@dataclass(frozen=True, eq=False)
class PublishedPoint:
    """A row of an import: a mean in ns, without an interval, and without turns to pair."""

    row: Row
    config: Config
    threads: int
    latency: stats.Interval
    logs_by_block: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return the point of a row; its config may have unknown names."""
        names = {name: row[name] for name in ("model", *AXES)}
        latency = stats.Interval(row["latency_ms"] * _NS_PER_MS, stats.VarianceEstimate(math.nan))
        return cls(row, Config.model_construct(**names), int(row["threads"]), latency)

    @cached_property
    def group(self) -> _Group:
        return self.config.group, None


@dataclass(frozen=True, eq=False)
class MeasuredPoint:
    """A point with all its trials, and the logs of its turns' medians, an array a trial."""

    trials: _Trials
    logs_by_trial: stats.TurnLogs
    components: stats.VarianceComponents

    @property
    def config(self) -> Config:
        return self.trials[0][0].config

    @property
    def threads(self) -> int:
        return self.trials[0][1].threads

    @property
    def key(self) -> PointKey:
        return self.trials[0][0].config_key, self.threads

    @cached_property
    def group(self) -> _Group:
        return _group_of(self.trials[0][0])

    @cached_property
    def samples_ns(self) -> np.ndarray:
        return np.concatenate([np.array(point.samples_ns, float) for _, point in self.trials])

    @cached_property
    def outlier(self) -> np.ndarray:
        return np.concatenate([stats.outliers(point.samples_ns) for _, point in self.trials])

    @cached_property
    def latency(self) -> stats.Interval:
        """The median of all samples in ns, with its 95 % interval over these rounds."""
        variance = stats.median_variance(self.logs_by_trial, self.components)
        return stats.Interval(float(np.median(self.samples_ns)), variance)

    @cached_property
    def logs_by_block(self) -> dict[str, np.ndarray]:
        """The logs of its turns by block, each by cycle; a trial alone is a block of its own."""
        cycles, logs = defaultdict[str, list[int]](list), defaultdict[str, list[float]](list)
        for (record, point), found in zip(self.trials, self.logs_by_trial, strict=True):
            block = record.block or record.name
            if record.schema_version == 1:  # not even its thread counts took turns
                block = f"{record.name} {point.threads}"
            cycles[block] += [turn.cycle for turn in point.turns]
            logs[block] += found.tolist()
        return {block: stats.by_cycle(cycles[block], logs[block]) for block in cycles}


def _group_of(record: Record) -> _Group:
    return record.config.group, record.host_label


def no_sweep_message(out: Path, lacking: str) -> str:
    """Return that folder `out` has none of what is `lacking`, and the sweeps that may be meant."""
    around = [path for path in (out, *out.parents) if _is_sweep(path)]
    if out not in around and around:
        return f"{out} is no sweep: did you mean {around[0]}?"
    where, trouble = (out, "is no sweep") if out.exists() else (out.parent, "does not exist")
    paths = (*where.glob("*"), *where.glob("*/*"))
    if names := sorted(str(path.relative_to(where)) for path in paths if _is_sweep(path)):
        return f"{out} {trouble}; sweeps in {where}: {', '.join(names)}"
    trouble = f"holds no {lacking}" if out.exists() else trouble
    return f"{out} {trouble}: measure first, with 'scalebench sweep {out}'"


def _is_sweep(folder: Path) -> bool:
    return (folder / "records").is_dir() or (folder / FILE).exists()


class Results:
    """The points of a sweep, by key, their ratios, and its table; an import has the table alone."""

    def __init__(
        self,
        records: Iterable[Record],
        imported: Imported | None = None,
        published: Iterable[Row] = (),
    ) -> None:
        self.records = list(records)
        self.imported = imported
        self.points = _points_of(self.records)
        means = [PublishedPoint.of(row) for row in published]
        self._compared: dict[PointKey, MeasuredPoint | PublishedPoint] = dict(self.points)
        self._compared |= {(mean.config.id, mean.threads): mean for mean in means}
        self._components = cache(self._pooled_components)

    @classmethod
    def load(cls, out: Path, any_machine: bool = False) -> Results:
        """Return the results of the sweep in folder `out`.

        Raises `RequestError` where it holds none, or, unless `any_machine`, those of several
        machines; `ScalebenchError` for a damaged import.
        """
        if imported := Imported.load(out):
            return cls([], imported, _published_rows(out / CSV))
        if not (records := load_records(out)):
            raise RequestError(no_sweep_message(out, "records"))
        if not any_machine:
            require_one_machine(records)
        return cls(records)

    @property
    def assumed_spread(self) -> bool:
        """True if the variance between processes is assumed: no trial was repeated."""
        return any(point.components.assumed for point in self.points.values())

    @property
    def rarely_repeated(self) -> bool:
        """True if so few trials were repeated that intervals are wide for want of them."""
        return any(point.components.between.df < stats.MIN_DF for point in self.points.values())

    def ratio(self, one: PointKey, other: PointKey) -> stats.Ratio:
        """Return the latency of point `one` over that of `other`.

        Paired by cycle if they took turns in a block; else via their group's base, if both are
        paired with it at its best thread count; else from their latencies.
        """
        if one == other:
            how: stats.How = "not measured together" if self.imported else "paired"
            return stats.Ratio(1.0, stats.VarianceEstimate(0.0), how)
        found = self._paired(one, other) or self._via_base(one, other)
        return found or stats.unpaired(self._compared[one].latency, self._compared[other].latency)

    def row_ratio(self, one: Row, other: Row) -> stats.Ratio:
        """Return the latency of row `one` of the table over that of row `other`."""
        return self.ratio(self._key_of(one), self._key_of(other))

    def base(self, key: PointKey) -> PointKey | None:
        """Return the base of the group of `key` at its best thread count, None if it failed."""
        return self._fastest.get(self._base_name(self._compared[key].group))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a point: the columns of ``results.csv`` but ``paired``, and `RATIO_COLUMNS`.

        Times are in ms, throughput in inferences/s, of a decoder in tokens/s, gflops in GFLOP/s.
        ``latency_ms_min``, ``_p90`` and ``_p99`` are empty where samples are means of several
        passes. ``speedup`` and ``same_threads`` are over eager, empty in a group without it,
        ``scaling`` over the config's own one thread; ``…_paired`` is how the two were compared.
        ``is_base`` are the rows of eager on the default allocator with SMT off. ``peak_fraction``
        is the share of the machine's peak in the config's own type, ``bandwidth_fraction`` that of
        its rate of reading memory, of weights and cache once a pass; ``cpus_utilized`` is CPU
        time / wall time. ``shared`` counts the shared turns (`Point.shared`), ``throttled`` the
        periods in which a quota stopped the process; ``stolen`` is the hypervisor's share of the
        CPU time. A config that failed or was skipped, and never succeeded, is one row with its
        reason and no thread count.
        """
        import pandas as pd

        peaks, compared = _peaks(self.records), self._compared.items()
        rows = [{**_row(point, peaks), **self._ratios(key)} for key, point in compared]
        missing = {r.config_key: r for r in self.records if r.config_key not in self._fastest}
        rows += [_missing_row(record) for record in missing.values()]
        table = pd.DataFrame(rows, columns=list(_TYPES)).astype(_TYPES)
        eager = [group for group, base in self._bases.items() if base.optimization == EAGER]
        names = set(map(self._base_name, eager))
        is_base = (self._name_of(row) in names for row in table.to_dict("records"))
        table["is_base"] = np.fromiter(is_base, bool)
        table = table.sort_values([*CONFIG_ORDER, "threads"], ignore_index=True)
        return table.drop(columns="paired")

    @property
    def csv(self) -> pd.DataFrame:
        """The table of ``results.csv``, with `COLUMNS`; ``paired`` is of ``speedup``."""
        return self.table.assign(paired=self.table["speedup_paired"])[list(COLUMNS)]

    @property
    def machines(self) -> list[str]:
        """The machines' titles: ``AMD EPYC, 16 cores, 32 threads``."""
        if self.imported:
            return [self.imported.machine or "an unknown machine"]
        return list(dict.fromkeys(record.machine.title for record in self.records))

    @property
    def dates(self) -> str:
        """The day of the measurement, or the first and the last."""
        if self.imported:
            return f"not known; imported {self.imported.imported.date().isoformat()}"
        days = sorted({record.started.date().isoformat() for record in self.records})
        return " to ".join(dict.fromkeys((days[0], days[-1])))

    @property
    def source(self) -> str:
        """The machines and dates of the measurement, for captions."""
        if self.imported:
            return self.imported.source
        return f"{'; '.join(self.machines)} · {self.dates}"

    @property
    def why_no_smt(self) -> str | None:
        """Why nothing was measured with SMT on, if so."""
        if self.table["smt"].any():
            return None
        if self.imported:
            return "Nothing with hyper-threading (SMT) was published in this file."
        if any(record.machine.has_smt for record in self.records):
            return "Hyper-threading (SMT) was not measured in this sweep."
        return "This machine has no hyper-threading (SMT), so there is nothing with it on."

    @cached_property
    def _hosts(self) -> dict[str, str | None]:
        """The host by ``machine`` of the table."""
        return {record.machine_name: record.host_label for record in self.records}

    def _key_of(self, row: Row) -> PointKey:
        return self._name_of(row), int(row["threads"])

    def _name_of(self, row: Row) -> str:
        return config_key(row["config_id"], self._hosts.get(row["machine"]))

    @cached_property
    def _fastest(self) -> dict[str, PointKey]:
        """The point of the lowest latency of each config."""
        ordered = sorted(self._compared, key=lambda key: self._compared[key].latency.value)
        return {key[0]: key for key in reversed(ordered)}

    @cached_property
    def _bases(self) -> dict[_Group, Config]:
        """The base of each group, which may have failed."""
        configs: dict[_Group, list[Config]] = defaultdict(list)
        for record in self.records:
            configs[_group_of(record)].append(record.config)
        for point in self._compared.values():
            configs[point.group].append(point.config)
        return {group: base_of(each) for group, each in configs.items()}

    def _base_name(self, group: _Group) -> str:
        return config_key(self._bases[group].id, group[1])

    def _paired(self, one: PointKey, other: PointKey) -> stats.Ratio | None:
        a, b = self._compared[one], self._compared[other]
        parts = stats.paired_differences(a.logs_by_block, b.logs_by_block)
        if not parts:
            return None
        return stats.paired_ratio(
            parts, self._components(a.group == b.group, a.threads == b.threads)
        )

    def _via_base(self, one: PointKey, other: PointKey) -> stats.Ratio | None:
        base = self.base(one)
        if base is None or base != self.base(other) or base in (one, other):
            return None
        first, second = self._paired(one, base), self._paired(base, other)
        name = self._compared[base].config.optimization
        return first.times(second, name) if first and second else None

    def _pooled_components(self, *kind: bool) -> stats.VarianceComponents:
        """Pool the pairs of one kind: of the same group, of the same thread count, or not.

        From block to block, pairs of one thread count, or of one group, vary less.
        """
        return stats.VarianceComponents.of(self._pairs(*kind), self._contrasts(*kind))

    def _pairs(self, same_group: bool, same_threads: bool) -> Iterator[stats.TurnLogs]:
        """Yield the differences of all pairs of one kind, or of `_MAX_PAIRS` taken at random."""
        points = list(self.points.values())
        numbers = {point.group: number for number, point in enumerate(points)}
        groups = np.array([numbers[point.group] for point in points])
        threads = np.array([point.threads for point in points])
        alike = (groups[:, None] == groups) == same_group
        alike &= (threads[:, None] == threads) == same_threads
        chosen = np.flatnonzero(np.triu(alike, 1))
        if chosen.size > _MAX_PAIRS:
            chosen = np.random.default_rng(0).choice(chosen, _MAX_PAIRS, replace=False)
        for one, other in zip(*np.divmod(chosen, len(points)), strict=True):
            yield stats.paired_differences(points[one].logs_by_block, points[other].logs_by_block)

    def _contrasts(self, same_group: bool, same_threads: bool) -> int:
        """Return the number of independent comparisons of a kind in the blocks.

        Each process has its own speed: trials less 1, in each group. A state of the machine changes
        all pairs of two thread counts together: thread counts less 1.
        """
        members: dict[tuple[str, _Group | None], set[str | int]] = defaultdict(set)
        for key, point in self.points.items():
            for block in point.logs_by_block:
                apart = point.group if same_group and same_threads else None
                members[block, apart].add(key[not same_threads])
        return sum(len(each) - 1 for each in members.values())

    def _ratios(self, key: PointKey) -> dict[str, Any]:
        """Return the cells of `RATIO_COLUMNS`, without those over points that were not measured."""
        others: dict[str, PointKey | None] = {"scaling": (key[0], 1)}
        group = self._compared[key].group
        if self._bases[group].optimization == EAGER:
            same_threads = (self._base_name(group), key[1])
            others |= {"speedup": self.base(key), "same_threads": same_threads}
        cells: dict[str, Any] = {}
        for name, other in others.items():
            if other in self._compared:
                found = self.ratio(other, key)
                values = (found.value, found.low, found.high, found.label)
                cells |= zip((f"{name}{part}" for part in _RATIO_PARTS), values, strict=True)
        return cells


def paired_ratio_by_point(one: Results, other: Results) -> dict[PointKey, stats.Ratio]:
    """Return the latency of each point of `one` over that of the same point in `other`.

    They are paired by cycle: only points that took turns in a common block have one.
    """
    parts = {
        key: found
        for key, point in one.points.items()
        if key in other.points
        if (found := stats.paired_differences(point.logs_by_block, other.points[key].logs_by_block))
    }
    met = {(block, key[0]) for key in parts for block in one.points[key].logs_by_block}
    components = stats.VarianceComponents.of(parts.values(), len(met))
    return {key: stats.paired_ratio(each, components) for key, each in parts.items()}


def _points_of(records: Iterable[Record]) -> dict[PointKey, MeasuredPoint]:
    trials: dict[PointKey, list[tuple[Record, Point]]] = defaultdict(list)
    for record in records:
        for point in record.points:
            trials[record.config_key, point.threads].append((record, point))
    parts = {
        key: [np.log([turn.median_ns for turn in point.turns]) for _, point in each]
        for key, each in trials.items()
    }
    # Points of one block are measured at the same time, and vary together from round to round.
    blocks = {record.block or record.name for each in trials.values() for record, _ in each}
    components = stats.VarianceComponents.of(parts.values(), len(blocks))
    return {key: MeasuredPoint(each, parts[key], components) for key, each in trials.items()}


def _published_rows(path: Path) -> Sequence[Row]:
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=_CSV_TYPES, keep_default_na=False, na_values=[""])
        if not {"config_id", "threads", "latency_ms"} <= set(table):
            raise ValueError("it lacks columns")
        lacking = {name: DEFAULTS.get(name) for name in COLUMNS if name not in table}  # if older
        return table.assign(**lacking)[list(COLUMNS)].fillna({"item": ""}).to_dict("records")
    except (OSError, ValueError) as error:
        raise ScalebenchError(f"{path} is damaged: {' '.join(str(error).split())}") from None


_Peaks = dict[tuple[Any, ...], float]


def _peaks(records: Iterable[Record]) -> _Peaks:
    """Return the machine's best GFLOP/s by placement of threads and type, and its best GB/s of
    ``read``, over the whole sweep."""
    peaks: _Peaks = defaultdict(lambda: math.nan)
    for record in records:
        for threads, by_type in record.peak_gflops.items():
            rates = by_type | {"read": record.read_gb_per_s.get(threads, math.nan)}
            for name, rate in rates.items():
                key = _peak_key(record, threads, name)
                peaks[key] = float(np.fmax(rate, peaks[key]))
    return peaks


def _peak_key(record: Record, threads: int, dtype: str) -> tuple[Any, ...]:
    return threads, record.config.smt, record.config.placement, record.host_label, dtype


def _row(measured: MeasuredPoint | PublishedPoint, peaks: _Peaks) -> Row:
    if isinstance(measured, PublishedPoint):
        return measured.row
    records, points = zip(*measured.trials, strict=True)
    latency, samples_ms = measured.latency, measured.samples_ns / _NS_PER_MS
    single = all(point.passes_per_sample == 1 for point in points)
    wall_ns = sum(point.wall_ns for point in points)
    disturbed = DisturbanceCounts.of(points)
    return {
        **_identity(records[0]),
        **_verified(records),
        **_memory(records),
        **_setup_times([record.setup for record in records if record.setup]),
        **_rates(measured, peaks),
        **_shares(measured),
        "threads": measured.threads,
        "cores": points[0].cores,
        "samples": samples_ms.size,
        "outliers": int(measured.outlier.sum()),
        "latency_ms": latency.value / _NS_PER_MS,
        "latency_ms_low": latency.low / _NS_PER_MS,
        "latency_ms_high": latency.high / _NS_PER_MS,
        "latency_ms_min": samples_ms.min() if single else None,
        "latency_ms_mean": samples_ms.mean(),
        "latency_ms_p90": stats.percentile(samples_ms, 90) if single else None,
        "latency_ms_p99": stats.percentile(samples_ms, 99) if single else None,
        "coarse": disturbed.turns < stats.MIN_TURNS,
        "pinned": all(point.pinned for point in points),
        "cpus_utilized": sum(point.cpus_utilized * point.wall_ns for point in points) / wall_ns,
        "trials": len(records),
        **asdict(disturbed),
        "spent_s": sum(point.spent_s for point in points),
    }


def _rates(measured: MeasuredPoint, peaks: _Peaks) -> Row:
    """Return the items/s, the GFLOP/s, and the shares of the machine's own peaks; NaN: unknown."""
    record, latency_ns = measured.trials[0][0], measured.latency.value
    gflops = next((r.flops for r, _ in measured.trials if r.flops), math.nan) / latency_ns
    peak = peaks[_peak_key(record, measured.threads, record.engine.get("precision", "fp32"))]
    read = peaks[_peak_key(record, measured.threads, "read")]
    return {
        "throughput": measured.config.batch_size / (latency_ns / _NS_PER_MS) * 1e3,
        "gflops": gflops,
        "peak_fraction": gflops / peak,
        "bandwidth_fraction": (record.bytes_to_read or math.nan) / latency_ns / read,
    }


def _verified(records: Iterable[Record]) -> Row:
    """Return the worst errors of the trials; an SQNR against eager only without one to fp64."""
    found = [record.verification for record in records if record.verification]
    best = [one for one in found if one.reference == "fp64"] or found
    sqnr = [one.sqnr_db for one in best if one.sqnr_db is not None]
    errors = [one.max_abs_error for one in found]
    return {"sqnr_db": min(sqnr, default=None), "max_abs_error": max(errors, default=None)}


def _memory(records: Iterable[Record]) -> Row:
    """Return the memory of trials that found their export on disk; of all, where none did."""
    records = list(records)
    used = [one for one in records if not (one.setup and one.setup.exported)] or records
    peaks = [one.peak_memory_bytes / 1e6 for one in used if one.peak_memory_bytes]
    resident = [one.resident_bytes / 1e6 for one in used if one.resident_bytes]
    return {"peak_memory_mb": max(peaks, default=None), "resident_memory_mb": _median(resident)}


def _setup_times(setups: Sequence[Setup]) -> Row:
    """Return medians of the times, of trials with a cached export and of those that exported."""
    return {
        "build_s": _median(one.build_s for one in setups),
        "optimize_s": _median(one.ready_s for one in setups if not one.exported),
        "optimize_anew_s": _median(one.ready_s for one in setups if one.exported),
        "first_pass_s": _median(one.first_pass_s for one in setups),
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _shares(measured: MeasuredPoint) -> Row:
    """Return the shares of the operators in a pass, if this thread count was profiled."""
    for record, _ in measured.trials:
        if (found := record.operators) and found.threads == measured.threads:
            shares = {SHARES[kind]: share for kind, share in found.shares.items()}
            return {**shares, "profiled_ms": found.wall_ns / found.passes / _NS_PER_MS}
    return {}


def _missing_row(record: Record) -> dict[Any, Any]:
    """Return the row of a config that never succeeded."""
    nothing = dict.fromkeys(("samples", "outliers", "trials", "turns"), 0)
    return {**_identity(record), **_memory([record]), **nothing}


def _identity(record: Record) -> Row:
    return {
        **record.config.model_dump(include=set(AXES) | {"model"}),
        "machine": record.machine_name,
        "config_id": record.config_id,
        "item": record.item or record.config.item,
        "status": record.status,
        "reason": record.reason,
    }
