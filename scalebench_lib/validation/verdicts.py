"""The results of the experiments: measured over expected values, and verdicts against a bar.

Each function returns intervals by the name of a point or pair of points, of values that should
be 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import log
from statistics import median

from scalebench_lib.record import Point, Turn
from scalebench_lib.results import MeasuredPoint, Results, paired_ratio_by_point
from scalebench_lib.stats import Interval
from scalebench_lib.text import pluralize
from scalebench_lib.validation.experiments import is_hog_cycle

MIN_INSIDE = 0.85
"""Share of 95 % intervals that are to hold 1: 41 of 48 do, or fewer only once in 400 times."""

MAX_WRONG = 0.05
"""Share of turns that may be taken for shared, or for undisturbed, wrongly."""

Found = Mapping[str, Interval]
Turns = tuple[Turn, ...]


def judge(claim: str, found: Found, typical: float, worst: float) -> str:
    """Compare the errors of `found` with the bars for their median and for the worst, shares of 1.

    `MIN_INSIDE` of the intervals must hold 1, too.
    """
    errors = {name: abs(log(one.value)) for name, one in found.items()}
    middle, far = median(errors.values()), max(errors, key=lambda name: errors[name])
    inside = sum(one.low <= 1 <= one.high for one in found.values())
    holds = middle <= typical and errors[far] <= worst and inside >= MIN_INSIDE * len(found)
    return _verdict(
        claim,
        holds,
        f"{middle:.1%} apart in the median of {len(found)} (bar {typical:.1%}), "
        f"{errors[far]:.1%} at worst (bar {worst:.0%}: {far}); "
        f"{inside} of {len(found)} intervals hold it (bar {MIN_INSIDE:.0%})",
    )


def _verdict(claim: str, holds: bool, figures: str) -> str:
    return f"{claim}: {'holds' if holds else 'does not hold'}. {figures}."


def point_ratios(one: Results, other: Results) -> Found:
    """Latencies of `one` over those of `other`, which took turns with it."""
    return {
        _name(one.points[key]): ratio for key, ratio in paired_ratio_by_point(one, other).items()
    }


def ratios_of_ratios(one: Results, other: Results, same_threads: bool = False) -> Found:
    """Ratios of points of one batch size from `one`, over those from `other`."""
    found = {}
    for (a, p), (b, q) in combinations(one.points.items(), 2):
        alike = p.config.batch_size == q.config.batch_size
        if alike and (p.threads == q.threads or not same_threads):
            ratio, expected = one.ratio(a, b), other.ratio(a, b)
            apart = Interval(ratio.value / expected.value, ratio.variance + expected.variance)
            found[" / ".join(dict.fromkeys((_name(p), _name(q))))] = apart
    return found


def odd_and_even_turns(results: Results) -> tuple[Results, Results]:
    """The first, third, fifth … turn of every trial; and the others."""
    first = _with_turns(results, lambda turns: turns[::2])
    return first, _with_turns(results, lambda turns: turns[1::2])


def without_hog(results: Results) -> Results:
    """The turns in which no hog ran."""
    return _with_turns(results, lambda turns: [t for t in turns if not is_hog_cycle(t.cycle)])


def _with_turns(results: Results, choose: Callable[[Turns], Sequence[Turn]]) -> Results:
    """The results of those turns alone that `choose` returns of each trial's."""

    def chosen(point: Point) -> Point:
        # Made anew: a copy would keep the samples that the point has cached.
        return Point(**point.model_dump(exclude={"turns"}), turns=tuple(choose(point.turns)))

    return Results(
        record.model_copy(update={"points": tuple(map(chosen, record.points))})
        for record in results.records
    )


def judge_shared_marks(results: Results) -> str:
    """Judge whether the turns that the hog disturbed are marked as shared, and no others.

    Only points on all CPUs must meet it: one thread may have another CPU to itself.
    """
    most = max(threads for _, threads in results.points)
    marks: dict[bool, list[bool]] = {True: [], False: []}
    for point in (point for measured in results.points.values() for _, point in measured.trials):
        for turn, shared in zip(point.turns, point.shared, strict=True):
            if point.threads == most or not is_hog_cycle(turn.cycle):
                marks[is_hog_cycle(turn.cycle)].append(bool(shared))
    (hogged, found), (quiet, wrong) = ((len(marks[k]), sum(marks[k])) for k in (True, False))
    holds = found >= (1 - MAX_WRONG) * hogged and wrong <= MAX_WRONG * quiet
    return _verdict(
        "Turns that lost their CPU are marked",
        holds,
        f"{found} of {hogged} disturbed turns are marked (bar {1 - MAX_WRONG:.0%}), and "
        f"{wrong} of {quiet} quiet ones (bar {MAX_WRONG:.0%})",
    )


def _name(point: MeasuredPoint) -> str:
    config = point.config
    return f"{config.optimization}, batch {config.batch_size}, {pluralize(point.threads, 'thread')}"
