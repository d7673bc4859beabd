"""The points of a sweep: all visits of a point together, and their headlines."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from scalebench_lib.config import Config
from scalebench_lib.headline import Headline, PointSamples, headlines
from scalebench_lib.record import Point, Record
from scalebench_lib.reference import Reference

MOMENT_NS = 300_000_000
MOMENT_PASSES = 10
"""A machine keeps its speed for longer than this, or so many passes: probes that close together
are averaged. The two beside a long pass say little of what happened in it."""

Key = tuple[str, int]
"""A point's name: config id (with its place, in a sweep of several) and thread count."""


@dataclass
class Pooled:
    """A point with all its visits, and what they say together. Times are in ns."""

    config: Config
    threads: int
    visits: list[tuple[Record, Point]] = field(default_factory=list)
    headline: Headline | None = None

    @property
    def place(self) -> str | None:
        """Of a sweep of several hosts, the one that this point is of."""
        return self.visits[0][0].place

    @property
    def samples_ns(self) -> np.ndarray:
        """Every sample of every visit."""
        return np.concatenate([point.samples_ns for _, point in self.visits]).astype(float)

    @property
    def spent_s(self) -> float:
        """What the point has cost so far."""
        return sum(point.spent_s for _, point in self.visits)

    @property
    def cpus_utilized(self) -> float:
        """CPU time / wall time of all visits; NaN where it is not known."""
        points = [point for _, point in self.visits]
        wall = sum(point.wall_ns for point in points)
        return sum(point.cpus_utilized * point.wall_ns for point in points) / wall

    @property
    def half_width(self) -> float:
        """Half the headline's interval over the headline: what ``target_ci`` asks about."""
        found = self.headline
        return float("inf") if found is None else (found.high - found.low) / 2 / found.value


def pool(records: Iterable[Record], reference: Reference | None = None) -> dict[Key, Pooled]:
    """Pool the visits in `records` into points, each with its headline at `reference` speed.

    Without a `reference` the records' own is taken.
    """
    records = list(records)
    return pool_together([(records, reference or Reference.of(records))])[0]


def pool_together(
    sides: Iterable[tuple[Iterable[Record], Reference]],
) -> list[dict[Key, Pooled]]:
    """Pool each of `sides`, records and their reference, by itself; headlines learn from all.

    So sweeps that are compared are corrected by the same exponents.
    """
    found, known = [], list[float]()
    for records, reference in sides:
        found.append(gathered(records))
        keys = [Reference.key(one.config, one.threads, one.place) for one in found[-1].values()]
        known += [reference.probe_ns.get(key, np.nan) for key in keys]
    points = [point for side in found for point in side.values()]
    every = headlines(dict(enumerate(_samples(points, known)))) if points else {}
    for point, headline in zip(points, every.values(), strict=True):
        point.headline = headline
    return found


def gathered(records: Iterable[Record]) -> dict[Key, Pooled]:
    """The visits of each point together, without a headline."""
    pooled: dict[Key, Pooled] = {}
    for record in records:
        for point in record.points:
            key = (record.pooled_as, point.threads)
            if key not in pooled:
                pooled[key] = Pooled(record.config, point.threads)
            pooled[key].visits.append((record, point))
    return pooled


def _samples(points: Sequence[Pooled], references: Sequence[float]) -> Iterator[PointSamples]:
    """The samples of each of `points`, and what was beside them."""
    visits = [visit for point in points for visit in point.visits]
    sizes = [len(point.samples_ns) for _, point in visits]
    latency = _flat((point.samples_ns for _, point in visits), float)
    probe = _probes([point for _, point in visits])
    visit = np.repeat([record.visit for record, _ in visits], sizes)
    ends = np.cumsum([sum(len(one.samples_ns) for _, one in point.visits) for point in points])
    split = (np.split(each, ends[:-1]) for each in (latency, probe, visit))
    for point, reference, ns, probes, numbers in zip(points, references, *split, strict=True):
        kind = (*_kind(point.config, point.threads), point.place)
        yield PointSamples(kind, ns, probes, numbers, reference)


def _probes(points: Sequence[Point]) -> np.ndarray:
    """The probe time beside each sample: the geometric mean of those around that moment."""
    probed = [point for point in points if point.probe_before_ns]
    before = _flat((point.probe_before_ns for point in probed), float)
    after = _flat((point.probe_after_ns for point in probed), float)
    smooth = _over_moments((np.log(before) + np.log(after)) / 2, probed)
    has_probe = np.repeat(
        [bool(point.probe_before_ns) for point in points],
        [len(point.samples_ns) for point in points],
    )
    found = np.full(has_probe.size, np.nan)
    found[has_probe] = np.exp(smooth)
    return found


def _over_moments(values: np.ndarray, points: Sequence[Point]) -> np.ndarray:
    """The mean of the `values` around each one's moment, in its own visit of a point."""
    if not values.size:
        return values
    starts, base = _flat((point.started_ns for point in points), np.int64), values.mean()
    passes = _flat((point.samples_ns for point in points), np.int64)
    moment = np.maximum(MOMENT_NS, MOMENT_PASSES * passes)
    apart = int(starts.max()) + 2 * int(moment.max()) + 1  # points follow each other, moments apart
    clock = starts + apart * np.repeat(np.arange(len(points)), [len(p.samples_ns) for p in points])
    first = np.searchsorted(clock, clock - moment)
    last = np.searchsorted(clock, clock + moment, side="right")
    sums = np.concatenate([[0.0], np.cumsum(values - base)])
    means: np.ndarray = base + (sums[last] - sums[first]) / (last - first)
    return means


def _flat(tuples: Iterable[tuple[int, ...]], kind: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(tuples), kind)


def _kind(config: Config, threads: int) -> tuple[Hashable, ...]:
    """Points of one kind feel a slow machine alike: what runs, and on how many threads."""
    return (
        config.model,
        config.seq_len,
        config.image_size,
        config.optimization,
        config.smt,
        config.allocator,
        threads,
    )
