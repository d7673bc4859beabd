"""From samples to numbers: medians with intervals, and percentiles that the samples support.

All functions take samples of one unit and return that unit. Nothing here knows of files,
machines or plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

CONFIDENCE = 0.95

MIN_SAMPLES = 3
"""No point has fewer: a median of two is a mean, and one slow pass would be half of it."""

MIN_LONG_SAMPLES = 2
LONG_SAMPLE_NS = 1e9
"""Passes of seconds average the noise within them: two are enough, and a third costs much."""

PRIOR_EXPONENT = 0.55
"""Log latency rises by this much of the log of the probe beside it, on the machines seen so far."""

ENOUGH_FOR_RANKS = 6
"""No order statistics of fewer samples hold the median with 95 % confidence."""

MEDIAN_OVER_MEAN = float(np.sqrt(np.pi / 2))
"""Standard error of a median over that of a mean, for normal noise."""


class Interval(NamedTuple):
    """A median and its 95 % interval; `coarse` when it rests on fewer than 6 samples."""

    value: float
    low: float
    high: float
    coarse: bool

    @property
    def half_width(self) -> float:
        """Half the interval's width over the median: what ``target_ci`` asks about."""
        return (self.high - self.low) / 2 / self.value


def enough_samples(samples_ns: Sequence[float]) -> bool:
    """Whether a point may stop: the minimum number of samples wins over a time limit."""
    if len(samples_ns) < MIN_LONG_SAMPLES:
        return False
    return len(samples_ns) >= MIN_SAMPLES or min(samples_ns) >= LONG_SAMPLE_NS


def steadied(samples: ArrayLike, probes: ArrayLike) -> np.ndarray:
    """Samples as they would be had every probe been the median one: for decisions underway."""
    values, beside = np.asarray(samples, dtype=float), np.asarray(probes, dtype=float)
    slowness: np.ndarray = beside / np.median(beside)
    return values * slowness**-PRIOR_EXPONENT


@lru_cache(maxsize=4096)
def _ranks(count: int) -> tuple[int, int] | None:
    """0-based ranks of the order statistics that hold the median with 95 % confidence."""
    below = special.bdtr(np.arange(count // 2 + 1), count, 0.5)
    low = int((2 * below <= 1 - CONFIDENCE).sum()) - 1
    return (low, count - 1 - low) if low >= 0 else None


def median_interval(samples: ArrayLike) -> Interval:
    """The median of `samples` with its distribution-free 95 % interval (order statistics).

    Fewer than 6 samples have none: theirs comes from their own spread, and is `coarse`.
    Raises ValueError for no samples.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    if not ordered.size:
        raise ValueError("no samples")
    median, ranks = float(np.median(ordered)), _ranks(ordered.size)
    if ranks:
        return Interval(median, float(ordered[ranks[0]]), float(ordered[ranks[1]]), coarse=False)
    reach = float(np.exp(_coarse_reach(ordered)))
    return Interval(median, median / reach, median * reach, coarse=True)


def _coarse_reach(ordered: np.ndarray) -> float:
    if ordered.size < 2:
        return float("inf")
    quantile = float(special.stdtrit(ordered.size - 1, (1 + CONFIDENCE) / 2))
    width = float(np.std(np.log(ordered), ddof=1))
    return quantile * MEDIAN_OVER_MEAN * width / float(np.sqrt(ordered.size))


def percentile(samples: ArrayLike, q: float) -> float | None:
    """The q-th percentile, or None where fewer than one sample in 1/(1 - q) lies beyond it.

    The 90th needs 10 samples, the 99th 100.
    """
    values = np.asarray(samples, dtype=float)
    supported = values.size * (100 - q) >= 100
    return float(np.percentile(values, q)) if supported else None
