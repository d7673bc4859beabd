"""Disturbances of turns: counted by point, and reported where they matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Self

from scalebench_lib.record import Point, Record
from scalebench_lib.text import pluralize

# What is below these is not reported.
MANY_SHARED = 0.1  # of all turns: some are shared on any machine
HALF = 0.5  # of a point's turns: with fewer shared its median holds
MANY_THROTTLED = 0.01  # periods a turn: there are none where the quota suffices
MUCH_STOLEN = 0.02  # of the CPU time: as much as points are to be known to


@dataclass(frozen=True)
class DisturbanceCounts:
    """How a point's `turns` were disturbed; None: not known.

    `shared` counts the shared ones (`Point.shared`), `throttled` the periods in which a quota
    stopped the process; `stolen` is the hypervisor's share, 0 to 1, of its CPUs' time.
    """

    turns: int
    shared: int | None
    throttled: int | None
    stolen: float | None

    @classmethod
    def of(cls, points: Iterable[Point]) -> Self:
        """Add up the turns of `points`: those of one in all its trials, or of a sweep."""
        points = list(points)
        turns = [turn for point in points for turn in point.turns]
        stolen_ns = _sum(turn.stolen_ns for turn in turns)
        cpu_ns = sum(point.wall_ns * point.threads for point in points)
        return cls(
            turns=len(turns),
            shared=_sum(chain.from_iterable(point.shared for point in points)),
            throttled=_sum(turn.throttled for turn in turns),
            stolen=None if stolen_ns is None else stolen_ns / cpu_ns,
        )

    @property
    def shared_share(self) -> float:
        return (self.shared or 0) / max(self.turns, 1)

    @property
    def throttled_rate(self) -> float:
        """Periods a turn."""
        return (self.throttled or 0) / max(self.turns, 1)


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def disturbance_sentences(records: Iterable[Record]) -> Iterator[str]:
    """Yield what disturbed the sweep of `records`, and what to do, a sentence each."""
    records, trials = list(records), defaultdict[str, list[Point]](list)
    for record in records:
        host = f" on {record.host_label}" if record.host_label else ""
        for point in record.points:
            trials[f"{record.config}, {pluralize(point.threads, 'thread')}{host}"].append(point)
    points = {name: DisturbanceCounts.of(each) for name, each in trials.items()}
    total = DisturbanceCounts.of(chain.from_iterable(trials.values()))
    yield from _shared(total, points)
    yield from _throttled(total, points)
    yield from _stolen(total, points)
    yield from _governors(records)


def _shared(total: DisturbanceCounts, points: Mapping[str, DisturbanceCounts]) -> Iterator[str]:
    unsure = sum(one.shared_share >= HALF for one in points.values())
    if total.shared_share > MANY_SHARED or unsure:
        worst, most = max(points.items(), key=lambda item: item[1].shared_share)
        anew = "so measure anew, into another folder, when nothing else runs"
        holds = f"not so at {pluralize(unsure, 'point')}, {anew}" if unsure else "so do all here"
        yield (
            f"Something else was computing here: it shared {total.shared} of "
            f"{pluralize(total.turns, 'turn')}, the most at {worst} ({most.shared} of "
            f"{most.turns}). A median holds if less than half of the turns of its point were "
            f"shared (results.csv): {holds}."
        )


def _throttled(total: DisturbanceCounts, points: Mapping[str, DisturbanceCounts]) -> Iterator[str]:
    if total.throttled_rate > MANY_THROTTLED:
        worst = max(points, key=lambda name: points[name].throttled_rate)
        yield (
            f"A CPU quota stopped passes in {pluralize(total.throttled or 0, 'period')} of "
            f"{pluralize(total.turns, 'turn')}, the most at {worst}: raise the quota, or use fewer "
            "threads; the mean, not the median, is what such a point sustains."
        )


def _stolen(total: DisturbanceCounts, points: Mapping[str, DisturbanceCounts]) -> Iterator[str]:
    if (total.stolen or 0) > MUCH_STOLEN:
        stolen = {name: one.stolen or 0.0 for name, one in points.items()}
        worst = max(stolen, key=stolen.__getitem__)
        yield (
            f"The hypervisor took {100 * (total.stolen or 0):.1f} % of the CPU time for other "
            f"guests, the most at {worst} ({100 * stolen[worst]:.1f} %): latencies are those of a "
            "shared host; measure at another hour, or on a host of its own."
        )


def _governors(records: Iterable[Record]) -> Iterator[str]:
    """Report governors that changed within a trial; from trial to trial the provenance has them."""
    if changed := [record for record in records if record.governor_after]:
        first = changed[0]
        yield (
            f"The CPUs' governor changed during {pluralize(len(changed), 'trial')}, such as that "
            f"of {first.config}, from {first.machine.governor} to {first.governor_after}: set one "
            "that stays, such as performance, and measure anew."
        )
