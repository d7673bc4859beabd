"""What disturbed the turns of a sweep: counted by point, and said where it matters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Self

from scalebench_lib.record import Point, Record
from scalebench_lib.text import pluralize

MANY_SHARED = 0.1
"""Share of all turns from which on it is said that they were shared: some are on any machine."""

HALF = 0.5
"""A median holds as long as less than this of a point's turns is shared."""

MANY_THROTTLED = 0.01
"""Throttled periods a turn from which on they are said: a quota that fits stops nobody."""

MUCH_STOLEN = 0.02
"""Stolen share of CPU time from which on it is said: as much as points are to be known to."""


@dataclass(frozen=True)
class Disturbed:
    """How a point's `turns` were disturbed; None: not known.

    `shared` of them were (`Point.shared`), a quota stopped the process in `throttled` periods, and
    the hypervisor took the share `stolen`, 0 to 1, of the CPU time that its CPUs had.
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


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def disturbances(records: Iterable[Record]) -> list[str]:
    """What disturbed the sweep of `records`, and what to do; a sentence each, where it matters."""
    records = list(records)
    points: dict[str, list[Point]] = defaultdict(list)
    for record in records:
        for point in record.points:
            host = f" on {record.host_label}" if record.host_label else ""
            points[f"{record.config}, {pluralize(point.threads, 'thread')}{host}"].append(point)
    found = {name: Disturbed.of(each) for name, each in points.items()}
    total = Disturbed.of(chain.from_iterable(points.values()))
    told = (_shared(found, total), _throttled(found, total), _stolen(found, total))
    return [*chain.from_iterable(told), *_governors(records)]


_Found = Mapping[str, Disturbed]


def _shared(found: _Found, total: Disturbed) -> Iterator[str]:
    shares = {name: (one.shared or 0) / one.turns for name, one in found.items()}
    shared, lost = total.shared or 0, sum(share >= HALF for share in shares.values())
    if shared > MANY_SHARED * total.turns or lost:
        worst = max(shares, key=shares.__getitem__)
        more = (
            f"not so at {pluralize(lost, 'point')}, so measure anew, into another folder, when "
            "nothing else runs"
        )
        yield (
            f"Something else was computing here: {shared} of {pluralize(total.turns, 'turn')} were "
            f"shared, the most at {worst} ({found[worst].shared} of {found[worst].turns}). A "
            "median holds with less than half of its point's turns shared (see results.csv): "
            f"{more if lost else 'so do all here'}."
        )


def _throttled(found: _Found, total: Disturbed) -> Iterator[str]:
    if (total.throttled or 0) > MANY_THROTTLED * total.turns:
        worst = max(found, key=lambda name: (found[name].throttled or 0) / found[name].turns)
        yield (
            f"A CPU quota stopped passes in {pluralize(total.throttled or 0, 'period')} of "
            f"{pluralize(total.turns, 'turn')}, the most at {worst}: raise the quota, or use fewer "
            "threads; the mean, not the median, is what such a point sustains."
        )


def _stolen(found: _Found, total: Disturbed) -> Iterator[str]:
    if (total.stolen or 0) > MUCH_STOLEN:
        worst = max(found, key=lambda name: found[name].stolen or 0)
        yield (
            f"The hypervisor took {_percent(total.stolen)} of the CPU time for other guests, the "
            f"most at {worst} ({_percent(found[worst].stolen)}): latencies are those of a shared "
            "host; measure at another hour, or on a host of its own."
        )


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.1f} %"


def _governors(records: Iterable[Record]) -> Iterator[str]:
    """Of trials in which it changed; another one from trial to trial is in the provenance."""
    changed = [record for record in records if record.governor_after]
    if changed:
        first = changed[0]
        yield (
            f"The CPUs' governor changed during {pluralize(len(changed), 'trial')}, such as that "
            f"of {first.config}, from {first.machine.governor} to {first.governor_after}: set one "
            "that stays, such as performance, and measure anew."
        )
