"""The results table: one row a point, all its visits pooled; rebuilt from the records each time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.estimate import median_interval, percentile, pooled_spread
from scalebench_lib.record import Point, Record, load_records

_TEXT, _COUNT, _NUMBER, _YES_NO = "object", "Int64", "Float64", "boolean"

_TYPES = {
    **dict.fromkeys(("machine", "config_id", "model", "optimization"), _TEXT),
    "smt": _YES_NO,
    **dict.fromkeys(("placement", "allocator", "device"), _TEXT),
    **dict.fromkeys(("seq_len", "batch_size", "threads"), _COUNT),
    "cores": _NUMBER,
    "status": _TEXT,
    **dict.fromkeys(("samples", "disturbed"), _COUNT),
    **dict.fromkeys(("latency_ms", "latency_ms_low", "latency_ms_high"), _NUMBER),
    **dict.fromkeys(("latency_ms_raw", "latency_ms_min", "latency_ms_mean"), _NUMBER),
    **dict.fromkeys(("latency_ms_p90", "latency_ms_p99", "throughput", "gflops"), _NUMBER),
    **dict.fromkeys(("coarse", "pinned"), _YES_NO),
    "visits": _COUNT,
    "peak_memory_mb": _NUMBER,
    "reason": _TEXT,
}

COLUMNS = tuple(_TYPES)
"""The columns of the results table, in order."""

_NS_PER_MS = 1e6


@dataclass
class _Pooled:
    """A point's samples over all its visits."""

    record: Record
    point: Point
    samples_ms: list[float] = field(default_factory=list)
    pinned: bool = True
    visits: int = 0

    def add(self, record: Record, point: Point) -> None:
        self.samples_ms += [ns / _NS_PER_MS for ns in point.samples_ns]
        self.pinned &= point.pinned
        self.visits += 1


def results_table(records: Iterable[Record]) -> pd.DataFrame:
    """Pool the visits in `records` into one row a point; `COLUMNS` says which columns.

    Times are in ms, throughput in inferences/s, gflops in GFLOP/s. A config that failed or was
    skipped, and never succeeded, is one row with its reason and no thread count.
    """
    records = list(records)
    pooled = _pool(records)
    spreads = _spreads(pooled.values())
    measured = {point.record.config_id for point in pooled.values()}
    rows = [_row(point, spreads[_kind(point.record.config)]) for point in pooled.values()]
    rows += [
        _missing_row(record)
        for record in {r.config_id: r for r in records if r.config_id not in measured}.values()
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)
    return table.sort_values(
        ["model", "seq_len", "optimization", "smt", "batch_size", "threads"], ignore_index=True
    )


def load_results(out: Path) -> pd.DataFrame:
    """The results table of the sweep in folder `out`; `RequestError` where there is none."""
    records = load_records(out)
    if not records:
        raise RequestError(f"{out} holds no records: measure first, with 'scalebench sweep {out}'")
    return results_table(records)


def _pool(records: Iterable[Record]) -> dict[tuple[str, int], _Pooled]:
    pooled: dict[tuple[str, int], _Pooled] = {}
    for record in records:
        for point in record.points:
            key = (record.config_id, point.threads)
            pooled.setdefault(key, _Pooled(record, point)).add(record, point)
    return pooled


def _kind(config: Config) -> tuple[Any, ...]:
    """Points of one kind are alike enough to lend each other their spread."""
    return config.model, config.seq_len, config.optimization, config.smt


def _spreads(points: Iterable[_Pooled]) -> dict[tuple[Any, ...], float | None]:
    kinds: dict[tuple[Any, ...], list[list[float]]] = defaultdict(list)
    for point in points:
        kinds[_kind(point.record.config)].append(point.samples_ms)
    return {kind: pooled_spread(samples) for kind, samples in kinds.items()}


def _row(pooled: _Pooled, spread: float | None) -> dict[str, Any]:
    record, samples = pooled.record, pooled.samples_ms
    headline = median_interval(samples, spread)
    flops = record.flops
    return {
        **_identity(record),
        "threads": pooled.point.threads,
        "cores": pooled.point.cores,
        "samples": len(samples),
        "disturbed": 0,
        "latency_ms": headline.value,
        "latency_ms_low": headline.low,
        "latency_ms_high": headline.high,
        "coarse": headline.coarse,
        "latency_ms_raw": headline.value,
        "latency_ms_min": min(samples),
        "latency_ms_mean": sum(samples) / len(samples),
        "latency_ms_p90": percentile(samples, 90),
        "latency_ms_p99": percentile(samples, 99),
        "throughput": record.config.batch_size / headline.value * 1e3,
        "gflops": None if flops is None else flops / headline.value / 1e6,
        "pinned": pooled.pinned,
        "visits": pooled.visits,
    }


def _missing_row(record: Record) -> dict[str, Any]:
    return {**_identity(record), "samples": 0, "disturbed": 0, "visits": 0}


def _identity(record: Record) -> dict[str, Any]:
    config = record.config.model_dump(exclude={"weights", "seed"})
    peak = record.peak_memory_bytes
    return {
        **config,
        "machine": record.machine.name,
        "config_id": record.config_id,
        "status": record.status,
        "reason": record.reason,
        "peak_memory_mb": None if peak is None else peak / 1e6,
    }
