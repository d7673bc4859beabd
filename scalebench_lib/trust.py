"""Small experiments that show how far the numbers can be trusted; `notebooks/trust.ipynb` tells.

Each returns a tidy table, one row an observation. What is compared runs in turn, so that a
machine that slows down for a while slows both sides alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure.timing import Series, TimingLoop
from scalebench_lib.notebook import NOTEBOOKS, OUTPUTS
from scalebench_lib.pool import pool
from scalebench_lib.record import Record, next_visit
from scalebench_lib.reference import Reference
from scalebench_lib.results import load_results
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.runner import Job

NO_EARLY_STOP = 1e-6
"""A ``target_ci`` that nothing reaches: the visit takes all of its time."""

HOGS = {
    "cpu": "while True: pass",
    "memory": "import numpy as np\na = np.ones(1 << 26)\nwhile True: b = a.copy()",
}
"""Neighbours that disturb a measurement, as Python programs."""


@dataclass
class Bench:
    """Visits into `folder`, made on purpose rather than by a sweep."""

    folder: Path
    kernels: Kernels

    def visit(self, threads: Iterable[int], seconds: float, **config: Any) -> Record:
        """Measure one config for `seconds` a point; raises `MeasurementError` if it fails."""
        number = next_visit(self.folder, Config(**config))
        parameters = {
            **config,
            "threads": list(threads),
            "max_seconds": seconds,
            "target_ci": NO_EARLY_STOP,
            "out": str(self.folder),
            "visit": number,
        }
        name = f"{Config(**config).id}-v{number}"
        self.kernels.run(
            NOTEBOOKS / "measure.ipynb", self.folder / "notebooks" / f"{name}.ipynb", parameters
        )
        return Record.load(self.folder / "records" / f"{name}.json")


def raw_ms(record: Record) -> dict[int, float]:
    """The plain medians of a visit in ms, by thread count."""
    return {point.threads: point.statistics.median / 1e6 for point in record.points}


def against_bare_loop(
    bench: Bench, batch_sizes: Iterable[int], turns: int, seconds: float = 2.0
) -> pd.DataFrame:
    """Our recorded raw median against a bare loop and ``torch.utils.benchmark``, in turn.

    Columns: batch_size, threads, turn, ours, loop, timer; in ms.
    """
    counts = Machine.here().thread_counts("auto")[:2]
    rows = []
    for turn in range(turns):
        for batch_size in batch_sizes:
            ours = raw_ms(bench.visit(counts, seconds, batch_size=batch_size))
            for threads in counts:
                bare = _bare(batch_size, threads, seconds)
                where = {"batch_size": batch_size, "threads": threads, "turn": turn}
                rows.append({**where, "ours": ours[threads], **bare})
    return pd.DataFrame(rows)


def _bare(batch_size: int, threads: int, seconds: float) -> dict[str, float]:
    cpus = Machine.here().cpus_for(threads, smt=False, placement="sequential")
    arguments = [str(batch_size), ",".join(map(str, cpus)), str(seconds)]
    command = [sys.executable, "-m", "scalebench_lib.measure.bare", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(run.stdout)
    return found


def ratios(table: pd.DataFrame, ours: str, theirs: str, by: list[str]) -> pd.DataFrame:
    """The ratio of medians over all turns for each point, and the ratios' spread over turns."""
    groups = table.groupby(by)
    each = (table[ours] / table[theirs]).groupby([table[name] for name in by])
    return pd.DataFrame(
        {
            "ratio": groups[ours].median() / groups[theirs].median(),
            "lowest turn": each.min(),
            "highest turn": each.max(),
        }
    ).reset_index()


def null_cost_us(repeats: int = 25) -> float:
    """Microseconds that the timing loop adds to each sample, with a model that does nothing."""

    def nothing(_: int = 0) -> None:
        return None

    loop = TimingLoop(nothing, nothing, nothing, (1,), NO_EARLY_STOP, 0.0)
    costs = []
    for _ in range(repeats):
        start = time.perf_counter()
        count = loop.stretch(Series(threads=1))
        costs.append((time.perf_counter() - start) / count)
    return float(np.median(costs)) * 1e6


def one_process_or_many(bench: Bench, turns: int, seconds: float = 2.0) -> pd.DataFrame:
    """All thread counts in one process, against a process for each. In ms."""
    counts = Machine.here().thread_counts("auto")[:2]
    rows = []
    for turn in range(turns):
        together = raw_ms(bench.visit(counts, seconds))
        for threads in counts:
            alone = raw_ms(bench.visit([threads], seconds))[threads]
            rows.append(
                {"threads": threads, "turn": turn, "together": together[threads], "alone": alone}
            )
    return pd.DataFrame(rows)


def warm_or_fresh(bench: Bench, turns: int, seconds: float = 2.0) -> pd.DataFrame:
    """Forked kernels against kernels started afresh: latency in ms, and seconds beside sampling."""
    fresh = Bench(bench.folder, Kernels(warm=False))
    rows = []
    for turn in range(turns):
        for kind, one in (("warm", bench), ("fresh", fresh)):
            start = time.perf_counter()
            record = one.visit(Machine.here().thread_counts("auto")[:1], seconds)
            wall, point = time.perf_counter() - start, record.points[0]
            latency = point.statistics.median / 1e6
            rest = {"latency_ms": latency, "beside_s": wall - point.spent_s}
            rows.append({"turn": turn, "kind": kind, "kernel": record.kernel, **rest})
    return pd.DataFrame(rows)


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
    counts = Machine.here().thread_counts("auto")[:2]
    visits = {"quiet": bench.visit(counts, seconds, batch_size=4)}
    for kind in HOGS:
        with hog(kind, after_s=2 + seconds * len(counts) / 2):
            visits[kind] = bench.visit(counts, seconds, batch_size=4)
    return visits


def hogs_table(visits: dict[str, Record]) -> pd.DataFrame:
    """What a hog did to the mean, the raw median and the headline: change against quiet."""
    reference = Reference.of([visits["quiet"]])
    found = {kind: pool([record], reference) for kind, record in visits.items()}
    rows = []
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


def sweeps(folder: Path, times: int, kernels: Kernels, **axes: Any) -> list[pd.DataFrame]:
    """The same sweep `times` times, one after another; their results tables."""
    tables = []
    for number in range(1, times + 1):
        job = Job.prepare(Sweep(**axes), folder / f"sweep-{number}")
        job.run(lambda _: None, kernels)
        tables.append(load_results(job.out))
    return tables


def differences(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """How far the points of each pair of sweeps differ, and whether their intervals agree.

    Columns: pair, config_id, threads, headline and raw (relative differences), compatible.
    """
    rows = []
    for (i, one), (j, other) in combinations(enumerate(tables, 1), 2):
        both = one.merge(other, on=["config_id", "threads"], suffixes=("_1", "_2"))
        for row in both.to_dict("records"):
            apart = abs(_log(row, "latency_ms"))
            rows.append(
                {
                    "pair": f"{i}–{j}",
                    "config_id": row["config_id"],
                    "threads": row["threads"],
                    "headline": apart,
                    "raw": abs(_log(row, "latency_ms_raw")),
                    "compatible": apart <= np.hypot(_reach(row, "_1"), _reach(row, "_2")),
                }
            )
    return pd.DataFrame(rows)


def _log(row: Mapping[Any, Any], column: str) -> float:
    return float(np.log(row[f"{column}_1"] / row[f"{column}_2"]))


def _reach(row: Mapping[Any, Any], side: str) -> float:
    return float(np.log(row[f"latency_ms_high{side}"] / row[f"latency_ms{side}"]))


def new_folder(out: str) -> Path:
    """Folder `out`, or the first of ``outputs/trust-1``, ``-2`` … that does not exist yet."""
    numbers = (OUTPUTS / f"trust-{number}" for number in count(1))
    return Path(out) if out else next(folder for folder in numbers if not folder.exists())
