"""The results table: one row a point, all its visits pooled; rebuilt from the records each time.

A sweep that was imported has no records: its rows are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.errors import RequestError
from scalebench_lib.estimate import ENOUGH_FOR_RANKS, percentile
from scalebench_lib.imported import Imported, PublishedPoint
from scalebench_lib.pool import Pooled, pool
from scalebench_lib.record import Record, load_records
from scalebench_lib.reference import Reference, reference_for, require_one_machine
from scalebench_lib.words import DEFAULT_IMAGE_SIZE

_TEXT, _COUNT, _NUMBER, _YES_NO = "object", "Int64", "Float64", "boolean"

_TYPES = {
    **dict.fromkeys(("machine", "config_id", "model", "optimization"), _TEXT),
    "smt": _YES_NO,
    **dict.fromkeys(("placement", "allocator", "device"), _TEXT),
    **dict.fromkeys(("seq_len", "image_size", "batch_size", "threads"), _COUNT),
    "cores": _NUMBER,
    "status": _TEXT,
    **dict.fromkeys(("samples", "disturbed"), _COUNT),
    **dict.fromkeys(("latency_ms", "latency_ms_low", "latency_ms_high"), _NUMBER),
    **dict.fromkeys(("latency_ms_raw", "latency_ms_min", "latency_ms_mean"), _NUMBER),
    **dict.fromkeys(("latency_ms_p90", "latency_ms_p99", "throughput", "gflops"), _NUMBER),
    **dict.fromkeys(("peak_fraction", "exponent"), _NUMBER),
    **dict.fromkeys(("sqnr_db", "max_abs_error"), _NUMBER),
    **dict.fromkeys(("coarse", "pinned"), _YES_NO),
    "cpus_utilized": _NUMBER,
    "visits": _COUNT,
    "spent_s": _NUMBER,
    "peak_memory_mb": _NUMBER,
    **dict.fromkeys(("reason", "imported_from"), _TEXT),
    "item": _TEXT,
}

COLUMNS = tuple(_TYPES)
"""The columns of the results table, in order."""

_NS_PER_MS = 1e6


def results_table(records: Iterable[Record], reference: Reference | None = None) -> pd.DataFrame:
    """Pool the visits in `records` into one row a point; `COLUMNS` says which columns.

    Times are in ms, throughput in inferences/s, gflops in GFLOP/s. ``latency_ms`` is the
    headline: at `reference` speed, by default the records' own; ``latency_ms_raw`` is the plain
    median; ``peak_fraction`` is the share of the machine's peak in the config's own type;
    ``cpus_utilized`` is CPU time / wall time. A config that failed or was skipped, and never
    succeeded, is one row with its reason and no thread count.
    """
    records = list(records)
    pooled = pool(records, reference)
    measured = {name for name, _ in pooled}
    peaks = _peaks(records)
    rows = [_row(point, peaks) for point in pooled.values()]
    rows += [
        _missing_row(record)
        for record in {r.pooled_as: r for r in records if r.pooled_as not in measured}.values()
    ]
    return _table(rows)


def imported_table(imported: Imported) -> pd.DataFrame:
    """The results table of published points: ``latency_ms`` is their mean, without an interval.

    What only samples can tell is empty; ``imported_from`` names the file.
    """
    return _table([_published_row(imported, point) for point in imported.points])


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)
    return table.sort_values(
        [
            "model",
            "seq_len",
            "image_size",
            "optimization",
            "smt",
            "allocator",
            "batch_size",
            "threads",
        ],
        ignore_index=True,
    )


def load_results(out: Path, any_machine: bool = False) -> pd.DataFrame:
    """The results table of the sweep in folder `out`.

    Raises `RequestError` where there is none, or, but for `any_machine`, one of several machines.
    """
    imported = Imported.load(out)
    if imported:
        return imported_table(imported)
    records = load_records(out)
    if not records:
        raise RequestError(f"{out} holds no records: measure first, with 'scalebench sweep {out}'")
    if not any_machine:
        require_one_machine(records)
    return results_table(records, reference_for(out, records))


Peaks = dict[tuple[str, str], float]


def _peaks(records: Iterable[Record]) -> Peaks:
    """The machine's best GFLOP/s by placement of threads and type, over the whole sweep."""
    peaks: Peaks = {}
    for record in records:
        for threads, by_type in record.peak_gflops.items():
            for dtype, gflops in by_type.items():
                key = (Reference.key(record.config, threads, record.place), dtype)
                peaks[key] = max(gflops, peaks.get(key, 0.0))
    return peaks


def _row(pooled: Pooled, peaks: Peaks) -> dict[str, Any]:
    (record, point), samples = pooled.visits[0], pooled.samples_ns / _NS_PER_MS
    headline = pooled.headline
    assert headline is not None  # noqa: S101 - every point that was pooled has one
    latency = headline.value / _NS_PER_MS
    flops = next((record.flops for record, _ in pooled.visits if record.flops), None)
    gflops = flops / headline.value if flops else None
    name = Reference.key(pooled.config, pooled.threads, pooled.place)
    peak = peaks.get((name, record.engine.get("precision", "fp32")))
    return {
        **_identity(record),
        **_verified([visited for visited, _ in pooled.visits]),
        "threads": pooled.threads,
        "cores": point.cores,
        "samples": len(samples),
        "disturbed": int(headline.disturbed.sum()),
        "latency_ms": latency,
        "latency_ms_low": headline.low / _NS_PER_MS,
        "latency_ms_high": headline.high / _NS_PER_MS,
        "coarse": len(samples) < ENOUGH_FOR_RANKS,
        "latency_ms_raw": float(np.median(samples)),
        "latency_ms_min": float(samples.min()),
        "latency_ms_mean": float(samples.mean()),
        "latency_ms_p90": percentile(samples, 90),
        "latency_ms_p99": percentile(samples, 99),
        "throughput": pooled.config.batch_size / latency * 1e3,
        "gflops": gflops,
        "peak_fraction": gflops / peak if gflops and peak else None,
        "exponent": headline.exponent,
        "pinned": all(point.pinned for _, point in pooled.visits),
        "cpus_utilized": pooled.cpus_utilized,
        "visits": len(pooled.visits),
        "spent_s": pooled.spent_s,
    }


def _verified(records: Iterable[Record]) -> dict[str, float | None]:
    """The worst of the visits; an SQNR against eager stands only where there is none to fp64."""
    found = [record.verification for record in records if record.verification]
    best = [one for one in found if one.reference == "fp64"] or found
    sqnr = [one.sqnr_db for one in best if one.sqnr_db is not None]
    return {
        "sqnr_db": min(sqnr, default=None),
        "max_abs_error": max((one.max_abs_error for one in found), default=None),
    }


def _missing_row(record: Record) -> dict[str, Any]:
    return {**_identity(record), "samples": 0, "disturbed": 0, "visits": 0}


def _published_row(imported: Imported, point: PublishedPoint) -> dict[str, Any]:
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
        "visits": point.rows,
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
