"""What the experiments have shown: tables of ratios, and verdicts against a bar.

A table has one row a point or pair of points: ``name``, ``error`` (the logarithm of what was found
over what should be), and, where there is an interval, ``ratio``, ``low``, ``high``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import log

import numpy as np
import pandas as pd

from scalebench_lib.record import Point, Turn
from scalebench_lib.results import MeasuredPoint, PointKey, Results, twins
from scalebench_lib.stats import Ratio
from scalebench_lib.text import pluralize
from scalebench_lib.validation.experiments import LAYERS, is_hogged

LEAST_INSIDE = 0.85
"""Of 95 % intervals: 41 of 48 hold what they should, or fewer only once in 400 times."""


MOST_WRONG = 0.05


@dataclass(frozen=True)
class Verdict:
    """Whether a claim `holds`, and the figures that say so."""

    claim: str
    holds: bool
    figures: str

    def __str__(self) -> str:
        return f"{self.claim}: {'holds' if self.holds else 'does not hold'}. {self.figures}."


def judge(claim: str, table: pd.DataFrame, median: float, worst: float) -> Verdict:
    """Hold the errors of `table` against the bars `median` and `worst`, shares of 1.

    Where the table has intervals, `LEAST_INSIDE` of them must leave no error either.
    """
    errors = np.abs(table["error"])
    figures = (
        f"{errors.median():.1%} apart in the median of {len(table)} (bar {median:.1%}), "
        f"{errors.max():.1%} at worst (bar {worst:.0%}: {table['name'][errors.idxmax()]})"
    )
    holds = errors.median() <= median and errors.max() <= worst
    if "inside" in table:
        inside = int(table["inside"].sum())
        figures += f"; {inside} of {len(table)} intervals hold it (bar {LEAST_INSIDE:.0%})"
        holds = holds and inside >= LEAST_INSIDE * len(table)
    return Verdict(claim, bool(holds), figures)


def between(one: Results, other: Results) -> pd.DataFrame:
    """The latency of each point of `one` over its twin's in `other`; it should be 1."""
    found = twins(one, other)
    rows = [_row(_name(one.points[key]), ratio, 1.0) for key, ratio in found.items()]
    return pd.DataFrame(rows)


def odd_against_even(results: Results) -> pd.DataFrame:
    """Ratios within groups from odd cycles, against those from even ones."""
    odd, even = (_turns_where(results, partial(_in_every_other, rest)) for rest in (1, 0))
    return _pairs_against(odd, even)


def sweep_against_sweep(one: Results, other: Results) -> pd.DataFrame:
    """Ratios within groups of one sweep, against those of another."""
    return _pairs_against(one, other)


def hogged_against_quiet(results: Results) -> pd.DataFrame:
    """Ratios of one thread count within groups, from all cycles against the quiet ones."""
    quiet = _turns_where(results, lambda turn: not is_hogged(turn.cycle))
    return _pairs_against(results, quiet, same_threads=True)


def hogged_estimates(results: Results) -> pd.DataFrame:
    """By point: the mean and the median of all cycles, over those of the quiet ones, less 1."""
    quiet = _turns_where(results, lambda turn: not is_hogged(turn.cycle)).points
    rows = [
        {
            "name": _name(point),
            "mean": point.samples_ns.mean() / quiet[key].samples_ns.mean() - 1,
            "median": point.latency.value / quiet[key].latency.value - 1,
        }
        for key, point in results.points.items()
    ]
    return pd.DataFrame(rows)


def told_hogged(results: Results) -> Verdict:
    """Whether the turns that the hog disturbed are told as shared, and the quiet ones are not.

    Only points on all CPUs must meet it: one thread may have the other CPU to itself. A twentieth
    of either may be told wrongly.
    """
    told, missed, wrong, quiet = 0, 0, 0, 0
    most = max(point.threads for point in results.points.values())
    for measured in results.points.values():
        for _, point in measured.trials:
            for turn, shared in zip(point.turns, point.shared, strict=True):
                hogged = is_hogged(turn.cycle) and point.threads == most
                told += bool(hogged and shared)
                missed += bool(hogged and not shared)
                quiet += not is_hogged(turn.cycle)
                wrong += bool(shared and not is_hogged(turn.cycle))
    holds = missed <= MOST_WRONG * (told + missed) and wrong <= MOST_WRONG * quiet
    figures = (
        f"{told} of {told + missed} disturbed turns are told (bar {1 - MOST_WRONG:.0%}), and "
        f"{wrong} of {quiet} quiet ones (bar {MOST_WRONG:.0%})"
    )
    return Verdict("Turns that lost their CPU are told", holds, figures)


def against_bare(recorded: Results, bare: Results) -> pd.DataFrame:
    """The latency of the model with a layer less over that of the whole one, recorded, against
    the same ratio of bare loops; points of one batch size and thread count."""
    rows = []
    for pair in combinations(recorded.points, 2):
        whole, less = sorted(pair, key=lambda key: recorded.points[key].config.model not in LAYERS)
        a, b = recorded.points[whole], recorded.points[less]
        if a.config.batch_size == b.config.batch_size and a.threads == b.threads:
            found, true = recorded.ratio(less, whole), bare.ratio(less, whole)
            rows.append({**_row(_name(a), found, true.value), "bare": true.value})
    return pd.DataFrame(rows)


def by_place(one: Results, other: Results) -> pd.DataFrame:
    """How far a point is from its twin, by the place of its trial in the block.

    ``first`` and ``last`` to be set up, the ``largest`` in memory, and ``other`` trials.
    """
    trials = [points.trials[0][0] for points in one.points.values()]
    places = {
        max(trials, key=lambda record: record.resident_bytes or 0).config_id: "largest",
        max(trials, key=lambda record: record.started).config_id: "last",
        min(trials, key=lambda record: record.started).config_id: "first",
    }
    rows = [
        {"place": places.get(key[0], "other"), "error": log(ratio.value)}
        for key, ratio in twins(one, other).items()
    ]
    errors = pd.DataFrame(rows).groupby("place")["error"]
    found = errors.agg(points="size", median="median", worst=lambda e: e.abs().max())
    return found.reset_index()


def states(results: Results) -> pd.DataFrame:
    """The machine's speed by cycle: the median over the points of a turn over its point's median.

    Columns ``block``, ``minute`` (since the first turn), ``speed`` (below 1: slower), ``threads``.
    """
    rows = []
    for point in results.points.values():
        for record, of in point.trials:
            for turn in of.turns:
                speed = point.latency.value / turn.median_ns
                at = (record.block, turn.cycle, turn.start_ns, point.threads, speed)
                rows.append(at)
    table = pd.DataFrame(rows, columns=["block", "cycle", "start_ns", "threads", "speed"])
    table["minute"] = (table["start_ns"] - table["start_ns"].min()) / 60e9
    by = table.groupby(["block", "cycle", "threads"], as_index=False)
    return by.agg(minute=("minute", "median"), speed=("speed", "median"))


def _in_every_other(rest: int, turn: Turn) -> bool:
    return turn.cycle % 2 == rest


def _pairs_against(one: Results, other: Results, same_threads: bool = False) -> pd.DataFrame:
    rows = []
    for a, b in _pairs(one, same_threads):
        if a in other.points and b in other.points:
            name = f"{_name(one.points[a])} / {_name(one.points[b])}"
            found, true = one.ratio(a, b), other.ratio(a, b)
            apart = log(found.value / true.value)
            reach = (found.variance + true.variance).half_width
            rows.append({"name": name, "error": apart, "inside": abs(apart) <= reach})
    return pd.DataFrame(rows)


def _pairs(results: Results, same_threads: bool) -> Iterator[tuple[PointKey, PointKey]]:
    """The pairs of points of a group."""
    for one, other in combinations(results.points.items(), 2):
        alike = one[1].group == other[1].group
        if alike and (not same_threads or one[1].threads == other[1].threads):
            yield one[0], other[0]


def _turns_where(results: Results, wanted: Callable[[Turn], bool]) -> Results:
    """The results of those turns alone."""
    return Results.of(
        record.model_copy(update={"points": tuple(_only(point, wanted) for point in record.points)})
        for record in results.records
    )


def _only(point: Point, wanted: Callable[[Turn], bool]) -> Point:
    # Made anew: a copy would keep the samples that the point has cached.
    values = {name: getattr(point, name) for name in Point.model_fields}
    return Point(**{**values, "turns": tuple(filter(wanted, point.turns))})


def _row(name: str, found: Ratio, true: float) -> dict[str, object]:
    return {
        "name": name,
        "ratio": found.value,
        "low": found.low,
        "high": found.high,
        "error": log(found.value / true),
        "inside": found.low <= true <= found.high,
    }


def _name(point: MeasuredPoint) -> str:
    config = point.config
    return f"{config.optimization}, batch {config.batch_size}, {pluralize(point.threads, 'thread')}"
