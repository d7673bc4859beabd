"""The headline: a point's latency at the machine's reference speed, with an honest interval.

The probes beside each sample tell how slow the machine was then. A sample is brought to the
reference speed by ``(probe / reference) ** -exponent``. The exponent is learned from the sweep
itself: the slope of log latency on log probe within points, pooled over points that behave
alike and shrunk towards `PRIOR_EXPONENT`, so that points with few samples lean on the others.

All arrays are one entry a sample; times are in nanoseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scalebench_lib.estimate import CONFIDENCE, MEDIAN_OVER_MEAN, PRIOR_EXPONENT

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
"""A sample is disturbed when it lies so many spreads, and so much, above its point's middle."""

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

    @property
    def weight(self) -> np.ndarray:
        """What each sample counts: less when the machine was far from its reference speed."""
        far: np.ndarray = np.clip(self.slowness, 0.0, None) / FAR
        return 1.0 / (1.0 + far**2)

    @property
    def attenuation(self) -> float:
        """How much less the probes know of a long pass."""
        return float(1 / (1 + np.median(self.latency) / LONG_NS))


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


@dataclass(frozen=True)
class _Slope:
    """An exponent and its standard error."""

    value: float
    error: float


def headlines(points: Mapping[Hashable, PointSamples]) -> dict[Hashable, Headline]:
    """The headline of every point of a sweep, all at once: they learn from each other."""
    keep = {key: np.ones(point.latency.size, dtype=bool) for key, point in points.items()}
    for _ in range(3):  # the slope without spikes, the spikes without the slope
        slopes = _slopes(points, keep)
        rest = {key: _corrected(point, slopes[point.kind]) for key, point in points.items()}
        keep = _undisturbed(points, rest)
    between = _between_visits(points, rest, keep)
    within = _pooled_within(points, rest, keep)
    return {
        key: _headline(point, slopes[point.kind], rest[key], keep[key], between, within[point.kind])
        for key, point in points.items()
    }


def _corrected(point: PointSamples, slope: _Slope) -> np.ndarray:
    """Log latency at the reference speed."""
    logs: np.ndarray = np.log(point.latency)
    return logs - slope.value * point.attenuation * point.slowness


def _slopes(
    points: Mapping[Hashable, PointSamples], keep: Mapping[Hashable, np.ndarray]
) -> dict[Hashable, _Slope]:
    """The exponent of each kind, shrunk towards that of all, and that towards the prior."""
    sums: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for key, point in points.items():
        sums[point.kind] += _moments(point, keep[key])
    overall = _shrunk(np.sum(list(sums.values()), axis=0), _Slope(PRIOR_EXPONENT, PRIOR_SD))
    return {kind: _shrunk(each, _Slope(overall.value, PRIOR_SD)) for kind, each in sums.items()}


def _moments(point: PointSamples, keep: np.ndarray) -> np.ndarray:
    x, y = point.attenuation * point.slowness[keep], np.log(point.latency[keep])
    x, y = x - x.mean(), y - y.mean()
    return np.array([x @ x, x @ y, y @ y, keep.sum() - 1])


def _shrunk(moments: np.ndarray, prior: _Slope) -> _Slope:
    xx, xy, yy, freedom = moments
    free = xy / xx if xx > 0 else prior.value
    noise = SAMPLES_PER_FACT * (max(yy - free * xy, 0.0) / max(freedom, 1) + LEAST_SPREAD**2)
    precision = xx / noise + prior.error**-2
    value = (xy / noise + prior.value * prior.error**-2) / precision
    return _Slope(float(value), float(precision**-0.5))


def _undisturbed(
    points: Mapping[Hashable, PointSamples], rest: Mapping[Hashable, np.ndarray]
) -> dict[Hashable, np.ndarray]:
    """Samples that are not far above their point's middle; the lower half says where that is.

    So up to half of the samples may be disturbed without moving the middle with them.
    """
    spreads: dict[Hashable, list[tuple[float, int]]] = defaultdict(list)
    for key, point in points.items():
        low, quarter = np.quantile(rest[key], (0.05, 0.25))
        spreads[point.kind].append(((quarter - low) / _QUARTER_TO_LOW, rest[key].size))
    keep = {}
    for key, point in points.items():
        values, weights = zip(*spreads[point.kind], strict=True)
        spread = float(np.average(values, weights=weights))
        middle = np.quantile(rest[key], 0.25) + _MIDDLE_TO_QUARTER * spread
        keep[key] = rest[key] <= middle + max(SPIKE_SPREADS * spread, SPIKE_LEAST)
    return keep


_MIDDLE_TO_QUARTER = float(stats.norm.ppf(0.75))
_QUARTER_TO_LOW = float(stats.norm.ppf(0.95) - stats.norm.ppf(0.75))
"""Distances between quantiles of normal noise, in standard deviations."""


def _visit_medians(
    point: PointSamples, rest: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each visit's median at the reference speed, and its weight: no visit outweighs the rest."""
    chosen = [keep & (point.visit == visit) for visit in np.unique(point.visit[keep])]
    medians = np.array([_weighted_median(rest[one], point.weight[one]) for one in chosen])
    weights = np.array([point.weight[one].sum() for one in chosen])
    return medians, np.minimum(weights, np.median(weights))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    ranks = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(weights.sum() / 2, ranks, values[order]))


def _between_visits(
    points: Mapping[Hashable, PointSamples],
    rest: Mapping[Hashable, np.ndarray],
    keep: Mapping[Hashable, np.ndarray],
) -> tuple[float, float]:
    """Variance of visits' medians around their point's, pooled over all points; its freedom."""
    total, freedom = VISIT_FREEDOM * VISIT_SD**2, float(VISIT_FREEDOM)
    for key, point in points.items():
        medians, _ = _visit_medians(point, rest[key], keep[key])
        total += float(((medians - medians.mean()) ** 2).sum())
        freedom += medians.size - 1
    return total / freedom, freedom


def _pooled_within(
    points: Mapping[Hashable, PointSamples],
    rest: Mapping[Hashable, np.ndarray],
    keep: Mapping[Hashable, np.ndarray],
) -> dict[Hashable, float]:
    """Variance of samples within points of a kind."""
    sums: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for key, point in points.items():
        values = rest[key][keep[key]]
        sums[point.kind] += (((values - values.mean()) ** 2).sum(), values.size - 1)
    return {kind: total / max(freedom, 1) for kind, (total, freedom) in sums.items()}


def _headline(
    point: PointSamples,
    slope: _Slope,
    rest: np.ndarray,
    keep: np.ndarray,
    between: tuple[float, float],
    within: float,
) -> Headline:
    medians, weights = _visit_medians(point, rest, keep)
    middle = float(np.average(medians, weights=weights))
    slowness = np.average(point.slowness[keep], weights=point.weight[keep])
    correction = point.attenuation * slowness * slope.error
    visits = weights.sum() ** 2 / (weights**2).sum()
    # The spread of visits' medians holds that of their samples, unless those were few.
    sampling = max(between[0] / visits, MEDIAN_OVER_MEAN**2 * within / keep.sum())
    error = float(np.sqrt(sampling + correction**2))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, between[1])) * error
    value = float(np.exp(middle))
    return Headline(
        value=value,
        low=value * float(np.exp(-reach)),
        high=value * float(np.exp(reach)),
        error=error,
        freedom=between[1],
        exponent=slope.value * point.attenuation,
        disturbed=~keep,
    )
