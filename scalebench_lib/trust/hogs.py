"""What a neighbour on the machine does to the numbers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.pool import Key, Pooled, pool_together
from scalebench_lib.record import Record
from scalebench_lib.reference import Reference
from scalebench_lib.trust.bench import Bench, two_counts

HOGS = {
    "cpu": "while True: pass",
    "memory": "import numpy as np\na = np.ones(1 << 26)\nwhile True: b = a.copy()",
}
"""Neighbours that disturb a measurement, as Python programs."""


@contextmanager
def hog(kind: str, after_s: float) -> Iterator[None]:
    """Run the program `kind` of `HOGS` on the first CPU, `after_s` seconds from now."""
    stop, died = threading.Event(), list[bool]()
    cpu = Machine.here().cpus_for(1, smt=False, placement="sequential")[0]
    pin = f"import os\nos.sched_setaffinity(0, [{cpu}])\n"

    def run() -> None:
        if not stop.wait(after_s):
            process = subprocess.Popen([sys.executable, "-c", pin + HOGS[kind]])  # noqa: S603
            stop.wait()
            died.append(process.poll() is not None)
            process.kill()
            process.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if died != [False]:
        raise MeasurementError(f"the {kind} hog did not run: the visit was over, or it crashed")


def under_hogs(bench: Bench, seconds: float = 8.0) -> dict[str, Record]:
    """The same visit quiet, and with each of `HOGS` started in the middle."""
    counts = two_counts()
    visits = {"quiet": bench.visit(counts, seconds, batch_size=4)}
    for kind in HOGS:
        with hog(kind, after_s=2 + seconds * len(counts) / 2):
            visits[kind] = bench.visit(counts, seconds, batch_size=4)
    return visits


def _pooled(visits: dict[str, Record]) -> dict[str, dict[Key, Pooled]]:
    """The points of each visit, at the quiet one's reference speed: they are to be compared."""
    reference = Reference.of([visits["quiet"]])
    points = pool_together([([record], reference) for record in visits.values()])
    return dict(zip(visits, points, strict=True))


def hogs_table(visits: dict[str, Record]) -> pd.DataFrame:
    """What a hog did to the mean, the raw median and the headline: change against quiet."""
    found, rows = _pooled(visits), []
    for kind, points in found.items():
        for (_, threads), point in points.items():
            quiet = next(p for (_, t), p in found["quiet"].items() if t == threads)
            assert point.headline is not None and quiet.headline is not None  # noqa: PT018, S101
            rows.append(
                {
                    "hog": kind,
                    "threads": threads,
                    "mean": point.samples_ns.mean() / quiet.samples_ns.mean() - 1,
                    "raw median": np.median(point.samples_ns) / np.median(quiet.samples_ns) - 1,
                    "headline": point.headline.value / quiet.headline.value - 1,
                    "disturbed": point.headline.disturbed.mean(),
                }
            )
    return pd.DataFrame(rows)


def passes(visits: dict[str, Record]) -> pd.DataFrame:
    """Every pass of these visits. Columns: hog, threads, seconds, latency_ms, disturbed."""
    tables = []
    for kind, points in _pooled(visits).items():
        for point in points.values():
            assert point.headline is not None  # noqa: S101
            columns = {
                "seconds": np.array(point.visits[0][1].started_ns) / 1e9,
                "latency_ms": point.samples_ns / 1e6,
                "disturbed": point.headline.disturbed,
            }
            tables.append(pd.DataFrame({"hog": kind, "threads": point.threads, **columns}))
    return pd.concat(tables, ignore_index=True)
