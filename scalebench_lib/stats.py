"""Medians of latencies and of ratios from turns, each with a 95 % interval.

A turn is one observation, the logarithm of its median pass: passes within a turn are correlated. A
*part* is an array of logs: a latency's are its trials, a ratio's its blocks. Its variance has two
levels, within a part and between parts (Kalibera and Jones, "Rigorous Benchmarking in Reasonable
Time", ISMM 2013): more turns reduce the first, only more rounds the second. A ratio is of turns of
one cycle, in the same state of the machine: randomized multiple interleaved trials (Abedi and
Brecht, ICPE 2017), duet benchmarking (Bulej et al., ICPE 2020).

Locations are medians, and variances within a part come from the median absolute deviation (MAD): a
few slow turns change neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

CONFIDENCE = 0.95

MIN_TURNS = 6
"""A part with fewer turns has no variance of its own: the MAD of 5 is typically off by half."""

OUTLIER = 1.5
"""A pass is an outlier if it takes more than this many times its point's median in its trial."""

ASSUMED_SPREAD = 0.01
"""Standard deviation of a log between trials, and between blocks, where none was repeated.

Processes differed by 0.8 %; between blocks the ratio of two processes of one config by 1.1 %.
"""

ASSUMED_DF = 4.0
"""Degrees of freedom of `ASSUMED_SPREAD`."""

MIN_DF = 3.0
"""With fewer degrees of freedom a 95 % interval is wider than 3.2 standard errors."""

MAD_EFFICIENCY = 0.37
"""The MAD of n normal values estimates their variance as well as 0.37 n squares do.

With that many degrees of freedom, intervals of 6 to 50 turns hold the median in 95 to 98 % of
cases; with n - 1, those of 6 in 91 %.
"""

_SD_OVER_MAD = 1.4826  # of normal values
_MEDIAN_OVER_MEAN = math.pi / 2  # variance of a median over that of a mean, of normal values
_BATCHES = 20  # of a series, for batch means
_MAX_LOG = 20.0  # larger intervals, beyond a factor of 5e8, are unbounded

TurnLogs = Sequence[np.ndarray]
"""Logs of turn medians, an array for each trial; or their differences, one for each block."""


@dataclass(frozen=True)
class VarianceEstimate:
    """A variance with the degrees of freedom of its estimate; infinitely many where it is known."""

    value: float
    df: float = math.inf

    def __add__(self, other: VarianceEstimate) -> VarianceEstimate:
        """Return the variance of a sum of independent terms, by Satterthwaite."""
        total = self.value + other.value
        if math.isinf(total):
            return VarianceEstimate(total, min(self.df, other.df))
        denominator = self.value**2 / self.df + other.value**2 / other.df
        return VarianceEstimate(total, total**2 / denominator if denominator else math.inf)

    def __mul__(self, factor: float) -> VarianceEstimate:
        return VarianceEstimate(self.value * factor, self.df)

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval, by Student's t."""
        quantile = float(special.stdtrit(self.df, (1 + CONFIDENCE) / 2))
        return quantile * math.sqrt(self.value)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; `variance` is that of its logarithm."""

    value: float
    variance: VarianceEstimate

    @cached_property
    def _factor(self) -> float:
        log = self.variance.half_width
        return math.inf if log > _MAX_LOG else math.exp(log)

    @property
    def low(self) -> float:
        return self.value / self._factor

    @property
    def high(self) -> float:
        return self.value * self._factor

    @property
    def half_width(self) -> float:
        """Half the interval's width over the value, which ``target_ci`` limits."""
        return (self.high - self.low) / 2 / self.value

    @property
    def std_error(self) -> float:
        """Standard error of the logarithm."""
        return math.sqrt(self.variance.value)


How = Literal["paired", "via", "not measured together"]


@dataclass(frozen=True)
class Ratio(Interval):
    """One latency over another with its 95 % interval, and how the two were compared.

    ``paired``: turn by turn, in cycles that both took part in; ``via``: both paired with the
    point of config `via`; ``not measured together``: by their latencies.
    """

    how: How = "paired"
    via: str = ""

    @property
    def differs(self) -> bool:
        """True if the interval excludes 1: otherwise no difference was measured."""
        return not self.low <= 1 <= self.high

    @property
    def p_value(self) -> float:
        """The probability of a ratio at least so far from 1, if the true one is 1 (two-sided)."""
        distance = abs(math.log(self.value))
        if not distance:
            return 1.0
        errors = distance / self.std_error if self.std_error else math.inf
        return float(2 * special.stdtr(self.variance.df, -errors))

    @property
    def label(self) -> str:
        """How the two were compared, for tables: ``via none`` names the config between them."""
        return f"via {self.via}" if self.how == "via" else self.how

    def times(self, other: Ratio, via: str) -> Ratio:
        """Return the product of ratios a / `via` and `via` / b, whose errors are independent."""
        return Ratio(self.value * other.value, self.variance + other.variance, "via", via)


@dataclass(frozen=True)
class VarianceComponents:
    """The variance `within` parts too short for their own, and that `between` parts."""

    within: VarianceEstimate
    between: VarianceEstimate
    assumed: bool

    @classmethod
    def of(cls, points: Iterable[TurnLogs], contrasts: float) -> VarianceComponents:
        """Pool the parts of many points, or of many pairs of points.

        `contrasts` is the number of independent comparisons, summed over rounds: points measured
        at the same time, or in one process, vary together from round to round. The degrees of
        freedom are this number times the share of parts that repeat an earlier one.
        """
        points = [parts for parts in points if parts]
        within = _pooled_within([part for parts in points for part in parts if part.size > 1])
        repeated = sum(len(parts) - 1 for parts in points)
        if not repeated:
            return cls(within, VarianceEstimate(ASSUMED_SPREAD**2, ASSUMED_DF), assumed=True)
        df = contrasts * repeated / sum(map(len, points))
        return cls(within, _moderated(_between(points, within), df), assumed=False)


def median_variance(parts: TurnLogs, components: VarianceComponents) -> VarianceEstimate:
    """Return the variance of the median over all turns of `parts`.

    pi/2 s^2 / turns + b^2 / parts; of unequal length, Kish's effective number of parts.
    """
    turns = sum(part.size for part in parts)
    long = [part for part in parts if part.size >= MIN_TURNS]
    short = turns - sum(part.size for part in long)
    noise = sum((_within(part) * part.size for part in long), components.within * short)
    parts_in_effect = turns**2 / sum(part.size**2 for part in parts)
    return noise * (_MEDIAN_OVER_MEAN / turns**2) + components.between * (1 / parts_in_effect)


def paired_differences(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Return the differences of turns in the same cycle, an array for each block of both.

    Both map a block to logs by cycle, NaN without a turn (`by_cycle`).
    """
    differences = []
    for block in one:
        if block in other:
            cycles = min(one[block].size, other[block].size)
            apart = one[block][:cycles] - other[block][:cycles]
            differences.append(apart[np.isfinite(apart)])
    return [part for part in differences if part.size]


def by_cycle(cycles: Sequence[int], logs: Sequence[float]) -> np.ndarray:
    """Return the `logs` of turns indexed by their cycle, NaN without a turn.

    Several in one cycle, such as those of a config that is in a block twice, become their median.
    """
    of, values = np.array(cycles), np.array(logs, float)
    found = np.full(max(cycles) + 1, np.nan)
    for cycle in set(cycles):
        found[cycle] = _median(values[of == cycle])
    return found


def paired_ratio(parts: TurnLogs, components: VarianceComponents) -> Ratio:
    """Return the ratio of two points from the differences of their turns, an array a block."""
    value = math.exp(_median(np.concatenate(parts)))
    return Ratio(value, median_variance(parts, components))


def unpaired(one: Interval, other: Interval) -> Ratio:
    """Return the ratio of two latencies whose errors are independent."""
    variance = one.variance + other.variance
    return Ratio(one.value / other.value, variance, "not measured together")


def turns_interval(turn_medians_ns: ArrayLike) -> Interval:
    """Return the median over the turns of one trial, with the interval from these turns alone.

    The interval is unbounded below `MIN_TURNS` turns.
    """
    logs = np.log(np.asarray(turn_medians_ns, dtype=float))
    noise = _within(logs) if logs.size >= MIN_TURNS else VarianceEstimate(math.inf, 1)
    return Interval(math.exp(_median(logs)), noise * (_MEDIAN_OVER_MEAN / logs.size))


def outliers(samples: ArrayLike) -> np.ndarray:
    """Return which samples of one trial take more than `OUTLIER` times their median."""
    values = np.asarray(samples, dtype=float)
    far: np.ndarray = values > OUTLIER * _median(values)
    return far


def percentile(samples: ArrayLike, q: float) -> float | None:
    """Return the q-th percentile of single passes, or None for too few passes.

    MLPerf's bound for early stopping: with 99 % confidence at least 2 passes lie beyond it. The
    90th needs 64 passes, the 99th 662.
    """
    values = np.asarray(samples, dtype=float)
    return float(np.percentile(values, q)) if supports_percentile(values.size, q) else None


def supports_percentile(count: int, q: float) -> bool:
    """Return whether `count` samples have a q-th percentile, by the same bound."""
    return bool(special.bdtr(1, count, 1 - q / 100) <= 0.01)


def percentile_interval(series: ArrayLike, q: float) -> tuple[float, float, float]:
    """Return the q-th percentile of a correlated `series` and its 95 % interval.

    The interval is of order statistics. The variance of the share below the percentile is that of
    20 batch means, at least that of independent values.
    """
    values, share = np.asarray(series, dtype=float), q / 100
    value, batches = _quantile(values, share), min(_BATCHES, values.size)
    below = [float(np.mean(part <= value)) for part in np.array_split(values, batches)]
    correlated = float(np.var(below, ddof=1)) / batches
    independent = share * (1 - share) / values.size
    reach = VarianceEstimate(max(correlated, independent), batches - 1).half_width
    high = _quantile(values, share + reach) if share + reach < 1 else math.inf
    return value, _quantile(values, max(share - reach, 0.0)), high


def _quantile(values: np.ndarray, share: float) -> float:
    """Return an order statistic, also of infinite values."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def _median(values: np.ndarray) -> float:
    """Return the median; for short arrays numpy takes five times as long."""
    ordered, half = values.copy(), values.size // 2
    ordered.sort()
    return float(ordered[half] + ordered[-half - 1]) / 2


def _within(part: np.ndarray) -> VarianceEstimate:
    """Return the variance within a part, from its MAD."""
    deviation = _median(np.abs(part - _median(part)))
    return VarianceEstimate((_SD_OVER_MAD * deviation) ** 2, MAD_EFFICIENCY * (part.size - 1))


def _pooled_within(parts: TurnLogs) -> VarianceEstimate:
    """Return the variance within parts of any length, from differences of turns half a part apart.

    The MAD of a few turns would be too small; that of their differences is not.
    """
    if not parts:
        return VarianceEstimate(ASSUMED_SPREAD**2, ASSUMED_DF)
    apart = [part[part.size // 2 :] - part[: -(part.size // 2)] for part in parts]
    differences = np.abs(np.concatenate(apart))
    deviation = _median(differences)
    return VarianceEstimate((_SD_OVER_MAD * deviation) ** 2 / 2, MAD_EFFICIENCY * differences.size)


def _between(points: Sequence[TurnLogs], within: VarianceEstimate) -> float:
    """Return the variance of parts' medians around their point's, less that from within parts."""
    squares, df = 0.0, 0
    for parts in points:
        if len(parts) > 1:
            medians = [_median(part) for part in parts]
            own = [_within(part) if part.size >= MIN_TURNS else within for part in parts]
            noise = [each.value / part.size for each, part in zip(own, parts, strict=True)]
            expected = _MEDIAN_OVER_MEAN * sum(noise) / len(parts)
            squares += (len(parts) - 1) * (float(np.var(medians, ddof=1)) - expected)
            df += len(parts) - 1
    return max(squares / df, 0.0)


def _moderated(variance: float, df: float) -> VarianceEstimate:
    """Return a variance of `df` contrasts, raised towards the assumed one where that is larger.

    The assumed one counts as one more contrast: two rounds of one block give only one, whose
    estimate is 0 in a third of all cases.
    """
    moderated = (df * variance + ASSUMED_SPREAD**2) / (df + 1)
    return VarianceEstimate(max(variance, moderated), df + 1)
