"""The points of a sweep: all visits of a point together, and their headlines."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

from scalebench_lib.config import Config
from scalebench_lib.headline import Headline, PointSamples, headlines
from scalebench_lib.record import Point, Record
from scalebench_lib.reference import Reference

MOMENT_NS = 0.3e9
"""A machine keeps its speed for longer than this: probes that close together are averaged."""

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
    def half_width(self) -> float:
        """Half the headline's interval over the headline: what ``target_ci`` asks about."""
        found = self.headline
        return float("inf") if found is None else (found.high - found.low) / 2 / found.value

    def _samples(self, reference: float) -> PointSamples:
        counts = [len(point.samples_ns) for _, point in self.visits]
        return PointSamples(
            kind=(*_kind(self.config, self.threads), self.place),
            latency=self.samples_ns,
            probe=np.concatenate([_probes(point) for _, point in self.visits]),
            visit=np.repeat([record.visit for record, _ in self.visits], counts),
            reference=reference,
        )


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
    found, samples = [], dict[Hashable, PointSamples]()
    for side, (records, reference) in enumerate(sides):
        found.append(_gathered(records))
        for key, point in found[-1].items():
            name = Reference.key(point.config, point.threads, point.place)
            samples[side, key] = point._samples(reference.probe_ns.get(name, np.nan))
    for (side, key), headline in headlines(samples).items() if samples else ():  # type: ignore[misc]
        found[side][key].headline = headline
    return found


def _gathered(records: Iterable[Record]) -> dict[Key, Pooled]:
    pooled: dict[Key, Pooled] = {}
    for record in records:
        for point in record.points:
            empty = Pooled(record.config, point.threads)
            key = (record.pooled_as, point.threads)
            pooled.setdefault(key, empty).visits.append((record, point))
    return pooled


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


def _probes(point: Point) -> np.ndarray:
    """The probe time beside each sample: the geometric mean of those around that moment."""
    if not point.probe_before_ns:
        return np.full(len(point.samples_ns), np.nan)
    beside = np.array([point.probe_before_ns, point.probe_after_ns], dtype=float)
    logs, starts = np.log(beside).mean(axis=0), np.asarray(point.started_ns, dtype=float)
    first = np.searchsorted(starts, starts - MOMENT_NS)
    last = np.searchsorted(starts, starts + MOMENT_NS, side="right")
    sums = np.concatenate([[0.0], np.cumsum(logs)])
    smooth: np.ndarray = np.exp((sums[last] - sums[first]) / (last - first))
    return smooth
