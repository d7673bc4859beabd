"""Two ways to measure the same thing, taking turns of a second or few.

So a machine that slows down for a while slows both alike. Tables have a row a point, with the
columns batch_size, threads, ratio, low, high: that of raw medians, and its 95 % interval.
`seconds` are those of a visit, the time in which it stands still included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from scalebench_lib.estimate import median_interval
from scalebench_lib.record import Record
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.trust.bench import Bench, two_counts
from scalebench_lib.turns import Worker, in_turns


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
    batch_sizes: Iterable[int], seconds: float = 60.0, model: str = "bert"
) -> dict[str, pd.DataFrame]:
    """Medians of the timing loop over those of a ``bare`` loop, and of torch's own ``timer``.

    The three take turns in one process a batch size, for about `seconds` together. A turn's median
    is held against those of the turns right after it.
    """
    rows: dict[str, list[dict[str, float]]] = {"bare": [], "timer": []}
    for batch_size in batch_sizes:
        found = _bare(model, batch_size, seconds / (1 + len(rows)) / len(two_counts()))
        for (threads, ratios), (name, table) in product(found.items(), rows.items()):
            ratio, low, high, _ = median_interval(ratios[name])
            where = {"batch_size": batch_size, "threads": threads}
            table.append({**where, "ratio": ratio, "low": low, "high": high})
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def _bare(model: str, batch_size: int, seconds: float) -> dict[int, dict[str, list[float]]]:
    threads = ",".join(map(str, two_counts()))
    command = [sys.executable, "-m", "scalebench_lib.measure.bare"]
    arguments = [model, str(batch_size), threads, str(seconds)]
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True)  # noqa: S603
    return {int(count): times for count, times in json.loads(done.stdout).items()}
