"""The headline: a point's latency at the machine's reference speed, with an honest interval.

The probes beside each sample tell how slow the machine was then. A sample is brought to the
reference speed by ``(probe / reference) ** -exponent``. The exponent is learned from the sweep
itself: the slope of log latency on log probe within points, pooled over points that behave
alike and shrunk towards `PRIOR_EXPONENT`, so that points with few samples lean on the others.

All arrays are one entry a sample; times are in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import special

from scalebench_lib.estimate import CONFIDENCE, MEDIAN_OVER_MEAN, PRIOR_EXPONENT
from scalebench_lib.grouped import Groups

Key = TypeVar("Key", bound=Hashable)

PRIOR_SD = 0.05
"""How far exponents of machines and models were seen to lie from the prior."""

LONG_NS = 3e9
"""Probes beside a pass this long know half of what happened in it; the exponent shrinks so."""

SAMPLES_PER_FACT = 8
"""Samples of one moment tell the same: so many of them count as one when a slope is learned."""

LEAST_SPREAD = 0.005
"""Samples are never taken to be more exact than this: two alike are no proof of a slope."""

FAR = 0.2
"""At this log slowness a sample counts half: the further it is corrected, the less it says."""

SPIKE_SPREADS = 5.0
SPIKE_LEAST = 0.06
"""A sample is far out when it lies so many spreads, and so much, above its point's middle."""

RARE = 0.1
ROW = 9
MOST = 0.8
"""What is far out is disturbed where it is rare, no more than this share of its point's samples;
or where most of so many in a row are far out: that comes from outside. What is often slow in
between is the model's own way: inference engines may have two speeds."""

VISIT_SD = 0.012
VISIT_FREEDOM = 6
"""Prior of the difference between visits that probes leave: its size, and its weight."""


@dataclass(frozen=True)
class PointSamples:
    """All samples of a point over its visits. `probe` is nan where there was none.

    Points of one `kind` lend each other their exponent and spread.
    """

    kind: Hashable
    latency: np.ndarray
    probe: np.ndarray
    visit: np.ndarray
    reference: float

    @property
    def slowness(self) -> np.ndarray:
        """Log of the machine's slowness beside each sample; 0 at the reference speed."""
        log = np.log(self.probe / self.reference)
        return np.where(np.isfinite(log), log, 0.0)


@dataclass(frozen=True)
class Headline:
    """Latency at the reference speed with its 95 % interval; which samples were disturbed.

    `error` is the standard error of its logarithm, known with `freedom` degrees.
    """

    value: float
    low: float
    high: float
    error: float
    freedom: float
    exponent: float
    disturbed: np.ndarray


class _Samples:
    """All samples of a sweep, point after point: what is asked of them again and again.

    `weight` is what a sample counts: less when the machine was far from its reference speed.
    `attenuation` is how much less the probes know of a point's long passes, and `known` what they
    know of each sample's slowness; `kinds` are the points' kinds.
    """

    def __init__(self, points: Collection[PointSamples]) -> None:
        sizes = [point.latency.size for point in points]
        self.points = Groups.one_after_the_other(sizes)
        numbers = {kind: number for number, kind in enumerate({p.kind: 0 for p in points})}
        self.kinds = Groups(np.array([numbers[p.kind] for p in points]), len(numbers))
        latency = np.concatenate([point.latency for point in points])
        self.log = np.log(latency)
        slowness = np.concatenate([point.slowness for point in points])
        self.weight = 1 / (1 + (np.clip(slowness, 0, None) / FAR) ** 2)
        self.attenuation = 1 / (1 + self.points.median(latency) / LONG_NS)
        self.known = self.attenuation[self.points.of] * slowness
        names, visit = np.unique(np.concatenate([p.visit for p in points]), return_inverse=True)
        self._visit, self._visits = self.points.of * names.size + visit, names.size

    def in_a_row(self, values: np.ndarray) -> np.ndarray:
        """The mean of `values` over each sample and those before it, or after it: the larger.

        At most `ROW` samples of its own visit of a point.
        """
        starts = np.diff(self._visit, prepend=-1) != 0
        begins, run = np.flatnonzero(starts), np.cumsum(starts) - 1
        ends, here = np.append(begins[1:], values.size), np.arange(values.size)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        first, last = np.maximum(here + 1 - ROW, begins[run]), np.minimum(here + ROW, ends[run])
        before = (sums[here + 1] - sums[first]) / (here + 1 - first)
        after = (sums[last] - sums[here]) / (last - here)
        larger: np.ndarray = np.maximum(before, after)
        return larger

    def visits(self, keep: np.ndarray) -> tuple[Groups, Groups]:
        """Of the samples that are kept: to which visit each belongs; to which point that does."""
        found, number = np.unique(self._visit[keep], return_inverse=True)
        return Groups(number, found.size), Groups(found // self._visits, self.points.count)


@dataclass(frozen=True)
class _Slope:
    """An exponent and its standard error, of all kinds or one of each."""

    value: Any
    error: Any


def headlines(points: Mapping[Key, PointSamples]) -> dict[Key, Headline]:
    """The headline of every point of a sweep, all at once: they learn from each other."""
    if not points:
        return {}
    samples = _Samples(points.values())
    keep = np.ones(samples.log.size, dtype=bool)
    for _ in range(3):  # the slope without spikes, the spikes without the slope
        slope = _slopes(samples, keep)
        rest = samples.log - slope.value[samples.points.of] * samples.known
        keep = _undisturbed(samples, rest)
    return dict(zip(points, _headlines(samples, slope, rest, keep), strict=True))


def _slopes(samples: _Samples, keep: np.ndarray) -> _Slope:
    """Each point's exponent: its kind's, shrunk towards that of all, and that to the prior."""
    kept = samples.points.chosen(keep)
    x, y = kept.less_mean(samples.known[keep]), kept.less_mean(samples.log[keep])
    moments = [kept.sum(x * x), kept.sum(x * y), kept.sum(y * y), kept.size - 1]
    of_kinds = np.array([samples.kinds.sum(each) for each in moments])
    overall = _shrunk(of_kinds.sum(axis=1), _Slope(PRIOR_EXPONENT, PRIOR_SD))
    found, of = _shrunk(of_kinds, _Slope(overall.value, PRIOR_SD)), samples.kinds.of
    return _Slope(found.value[of], found.error[of])


def _shrunk(moments: np.ndarray, prior: _Slope) -> _Slope:
    xx, xy, yy, freedom = moments
    free = np.where(xx > 0, xy / np.where(xx > 0, xx, 1), prior.value)
    left = np.clip(yy - free * xy, 0, None) / np.clip(freedom, 1, None)
    noise = SAMPLES_PER_FACT * (left + LEAST_SPREAD**2)
    precision = xx / noise + prior.error**-2
    return _Slope((xy / noise + prior.value * prior.error**-2) / precision, precision**-0.5)


def _undisturbed(samples: _Samples, rest: np.ndarray) -> np.ndarray:
    """Samples that are not far out; or are so often, among others that are not."""
    far = _far_out(samples, rest)
    alone = far & (samples.in_a_row(far) < MOST)
    own = alone & (samples.points.mean(alone) > RARE)[samples.points.of]
    keep: np.ndarray = ~far | own
    return keep


def _far_out(samples: _Samples, rest: np.ndarray) -> np.ndarray:
    """Samples far above their point's middle; the lower half says where that is.

    So up to half of the samples may be far out without moving the middle with them.
    """
    points, kinds = samples.points, samples.kinds
    low, quarter = points.quantiles(rest, 0.05, 0.25)
    spread = kinds.mean((quarter - low) / _QUARTER_TO_LOW, weights=points.size)[kinds.of]
    middle = quarter + _MIDDLE_TO_QUARTER * spread
    limit = middle + np.maximum(SPIKE_SPREADS * spread, SPIKE_LEAST)
    far: np.ndarray = rest > limit[points.of]
    return far


_MIDDLE_TO_QUARTER = float(special.ndtri(0.75))
_QUARTER_TO_LOW = float(special.ndtri(0.95) - special.ndtri(0.75))
"""Distances between quantiles of normal noise, in standard deviations."""


def _headlines(
    samples: _Samples, slope: _Slope, rest: np.ndarray, keep: np.ndarray
) -> list[Headline]:
    kept, weight, rest = samples.points.chosen(keep), samples.weight[keep], rest[keep]
    of_visits, visits = samples.visits(keep)
    medians, weights = of_visits.weighted_median(rest, weight), of_visits.sum(weight)
    weights = np.minimum(weights, visits.median(weights)[visits.of])  # none outweighs the rest
    value = np.exp(visits.mean(medians, weights))
    between, freedom = _between_visits(visits, medians)
    effective = visits.sum(weights) ** 2 / visits.sum(weights**2)
    # The spread of visits' medians holds that of their samples, unless those were few.
    within = MEDIAN_OVER_MEAN**2 * _within(samples.kinds, kept, rest) / kept.size
    correction = kept.mean(samples.known[keep], weight) * slope.error
    error = np.sqrt(np.maximum(between / effective, within) + correction**2)
    reach = np.exp(float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error)
    columns = (value, value / reach, value * reach, error, slope.value * samples.attenuation)
    rows = np.transpose(columns).tolist()
    return [
        Headline(found, low, high, spread, freedom, exponent, disturbed)
        for (found, low, high, spread, exponent), disturbed in zip(
            rows, samples.points.split(~keep), strict=True
        )
    ]


def _between_visits(visits: Groups, medians: np.ndarray) -> tuple[float, float]:
    """Variance of visits' medians around their point's, pooled over all points; its freedom."""
    freedom = float(VISIT_FREEDOM + (visits.size - 1).sum())
    squares = float((visits.less_mean(medians) ** 2).sum())
    return (VISIT_FREEDOM * VISIT_SD**2 + squares) / freedom, freedom


def _within(kinds: Groups, kept: Groups, rest: np.ndarray) -> np.ndarray:
    """Variance of samples within points of each point's kind."""
    squares = kinds.sum(kept.sum(kept.less_mean(rest) ** 2))
    variance: np.ndarray = squares / np.maximum(kinds.sum(kept.size - 1), 1)
    of_points: np.ndarray = variance[kinds.of]
    return of_points
