"""From samples to numbers: medians with intervals, and percentiles that the samples support.

All functions take samples of one unit and return that unit. Nothing here knows of files,
machines or plots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95

MIN_SAMPLES = 3
"""No point has fewer: a median of two is a mean, and one slow pass would be half of it."""

MEDIAN_OVER_MEAN = float(np.sqrt(np.pi / 2))
"""Standard error of a median over that of a mean, for normal noise."""


class Interval(NamedTuple):
    """A median and its 95 % interval; `coarse` when it leans on the spread of other points."""

    value: float
    low: float
    high: float
    coarse: bool

    @property
    def half_width(self) -> float:
        """Half the interval's width over the median: what ``target_ci`` asks about."""
        return (self.high - self.low) / 2 / self.value


@lru_cache(maxsize=4096)
def _ranks(count: int) -> tuple[int, int] | None:
    """0-based ranks of the order statistics that hold the median with 95 % confidence."""
    low = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5)) - 1
    while low + 1 <= count // 2 and 2 * stats.binom.cdf(low + 1, count, 0.5) <= 1 - CONFIDENCE:
        low += 1
    return (low, count - 1 - low) if low >= 0 else None


def median_interval(samples: ArrayLike, spread: float | None = None) -> Interval:
    """The median of `samples` with its 95 % interval.

    From 6 samples on the interval is distribution-free (order statistics). Below that no such
    interval exists: then it comes from `spread`, the standard deviation of log samples pooled
    over like points (`pooled_spread`), or from the samples' own, and is `coarse`.

    Raises ValueError for no samples.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    if not ordered.size:
        raise ValueError("no samples")
    median = float(np.median(ordered))
    ranks = _ranks(ordered.size)
    if ranks:
        return Interval(median, float(ordered[ranks[0]]), float(ordered[ranks[1]]), coarse=False)
    reach = np.exp(_coarse_reach(ordered, spread))
    return Interval(median, float(median / reach), float(median * reach), coarse=True)


def _coarse_reach(ordered: np.ndarray, spread: float | None) -> float:
    if spread is None and ordered.size < 2:
        return float("inf")
    own = stats.t.ppf((1 + CONFIDENCE) / 2, max(ordered.size - 1, 1))
    quantile, width = (
        (float(own), float(np.std(np.log(ordered), ddof=1)))
        if spread is None
        else (float(stats.norm.ppf((1 + CONFIDENCE) / 2)), spread)
    )
    return quantile * MEDIAN_OVER_MEAN * width / float(np.sqrt(ordered.size))


def pooled_spread(points: Iterable[Sequence[float]]) -> float | None:
    """Standard deviation of log samples within points, pooled over points of 2 or more samples.

    None where fewer than 6 degrees of freedom are to be had: that few say nothing of spread.
    """
    logs = [np.log(np.asarray(samples, dtype=float)) for samples in points if len(samples) > 1]
    freedom = sum(log.size - 1 for log in logs)
    if freedom < 6:
        return None
    return float(np.sqrt(sum(((log - log.mean()) ** 2).sum() for log in logs) / freedom))


def percentile(samples: ArrayLike, q: float) -> float | None:
    """The q-th percentile, or None where fewer than one sample in 1/(1 - q) lies beyond it.

    The 90th needs 10 samples, the 99th 100.
    """
    values = np.asarray(samples, dtype=float)
    supported = values.size * (100 - q) >= 100
    return float(np.percentile(values, q)) if supported else None
