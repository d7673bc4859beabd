"""Two ways to measure the same thing, taking turns of a second or few.

So a machine that slows down for a while slows both alike. Tables have a row a point, with the
columns batch_size, threads, ratio, low, high: a ratio of medians, and its 95 % interval.
`seconds` are those of a visit, the time in which it stands still included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.estimate import median_interval
from scalebench_lib.machine import Machine
from scalebench_lib.record import Record
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.trust.bench import Bench, two_counts
from scalebench_lib.turns import Started, Worker, in_turns


def _slice_s(batch_size: int) -> float:
    """Some ten passes of BERT-base: the one that a slice's end cuts must not be the median."""
    return max(1.0, batch_size / 4)


def _compared(ours: Iterable[float], theirs: Iterable[float]) -> dict[str, float]:
    """The ratio of two medians, with the 95 % interval that their samples alone give."""
    one, other = median_interval(list(ours)), median_interval(list(theirs))
    ratio = one.value / other.value
    low, high = ratio * one.low / one.value, ratio * one.high / one.value
    reach = np.hypot(np.log(high / low), np.log(other.high / other.low)) / 2
    return {"ratio": ratio, "low": ratio * np.exp(-reach), "high": ratio * np.exp(reach)}


def _samples(record: Record, threads: int) -> tuple[int, ...]:
    return next(point.samples_ns for point in record.points if point.threads == threads)


def against_itself(bench: Bench, batch_sizes: Iterable[int], seconds: float = 40.0) -> pd.DataFrame:
    """A/A: the same config in two visits of `seconds` that take turns; their ratio should be 1."""
    counts = two_counts()
    sides = {"one": (bench, counts), "other": (bench, counts)}
    return _visits_in_turns(sides, batch_sizes, seconds)


def warm_against_fresh(
    bench: Bench, batch_sizes: Iterable[int], seconds: float = 40.0
) -> pd.DataFrame:
    """Forked kernels over kernels started afresh."""
    counts = two_counts()
    with Kernels(warm=False) as fresh:
        sides = {"warm": (bench, counts), "fresh": (Bench(bench.folder, fresh), counts)}
        return _visits_in_turns(sides, batch_sizes, seconds)


def one_process_or_many(
    bench: Bench, batch_sizes: Iterable[int], seconds: float = 40.0
) -> pd.DataFrame:
    """All thread counts in one process, over a process for one of them."""
    tables = []
    for threads in two_counts():
        sides = {"together": (bench, two_counts()), "alone": (bench, (threads,))}
        tables.append(_visits_in_turns(sides, batch_sizes, seconds))
    return pd.concat(tables, ignore_index=True)


def _visits_in_turns(
    sides: Mapping[str, tuple[Bench, Sequence[int]]],
    batch_sizes: Iterable[int],
    seconds: float,
    **config: Any,
) -> pd.DataFrame:
    rows = []
    for batch_size in batch_sizes:
        workers = {
            name: _visitor(bench, name, threads, seconds, batch_size=batch_size, **config)
            for name, (bench, threads) in sides.items()
        }
        one, other = in_turns(workers, _slice_s(batch_size)).values()
        for threads in sides[list(sides)[1]][1]:
            where = {"batch_size": batch_size, "threads": threads}
            rows.append({**where, **_compared(_samples(one, threads), _samples(other, threads))})
    return pd.DataFrame(rows)


def _visitor(
    bench: Bench, name: str, threads: Sequence[int], seconds: float, **config: Any
) -> Worker:
    each = seconds / len(threads)
    return lambda started: bench.visit(threads, each, name, started, **config)


def against_bare_loop(
    bench: Bench, batch_sizes: Iterable[int], seconds: float = 60.0
) -> dict[str, pd.DataFrame]:
    """Recorded raw medians over those of a bare ``loop``, and of torch's own ``timer``.

    A visit takes turns with a bare process for each of its thread counts.
    """
    rows: dict[str, list[dict[str, float]]] = {"loop": [], "timer": []}
    for batch_size in batch_sizes:
        record, bare = _beside_bare(bench, batch_size, seconds)
        for threads, (name, table) in product(bare, rows.items()):
            ours = [sample / 1e6 for sample in _samples(record, threads)]
            where = {"batch_size": batch_size, "threads": threads}
            table.append({**where, **_compared(ours, bare[threads][name])})
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def _beside_bare(
    bench: Bench, batch_size: int, seconds: float
) -> tuple[Record, dict[int, dict[str, list[float]]]]:
    with ExitStack() as stack:
        bare = {n: stack.enter_context(_Bare(batch_size, n)) for n in two_counts()}
        enough = threading.Event()

        work = _visitor(bench, "bare", two_counts(), seconds, batch_size=batch_size)

        def visit(started: Started) -> Any:
            try:
                return work(started)
            finally:
                enough.set()

        workers = {str(n): one.until(enough) for n, one in bare.items()}
        found = in_turns({"visit": visit, **workers}, _slice_s(batch_size))
        return found["visit"], {n: found[str(n)] for n in bare}


class _Bare:
    """A process of `measure.bare`, warmed up. A context manager."""

    def __init__(self, batch_size: int, threads: int) -> None:
        cpus = Machine.here().cpus_for(threads, smt=False, placement="sequential")
        arguments = [str(batch_size), ",".join(map(str, cpus))]
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "scalebench_lib.measure.bare", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None  # noqa: S101 - asked for above
        self.process.stdout.readline()

    def __enter__(self) -> _Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def until(self, enough: threading.Event) -> Worker:
        """Loop until `enough`, then return the times in ms by name."""

        def work(started: Started) -> dict[str, list[float]]:
            started(self.process.pid)
            enough.wait()
            self.process.terminate()
            found: dict[str, list[float]] = json.loads(self.process.communicate()[0])
            return found

        return work
