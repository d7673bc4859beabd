"""Medians, intervals and percentiles."""

import numpy as np
import pytest

from scalebench_lib.estimate import median_interval, percentile, pooled_spread


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """At least 95 % of the time, whatever the distribution: here a skewed one."""
    random = np.random.default_rng(0)
    for count in (6, 9, 30, 101):
        hits = 0
        for _ in range(1000):
            interval = median_interval(random.lognormal(0, 0.5, count))
            hits += interval.low <= 1.0 <= interval.high
        assert hits >= 930


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_than_six_samples_are_coarse(count: int) -> None:
    """No order statistics of five samples hold the median with 95 % confidence."""
    assert median_interval(range(1, count + 1)).coarse
    assert not median_interval(range(1, 7)).coarse


def test_few_samples_lean_on_the_spread_of_others() -> None:
    """With a pooled spread the interval of three samples is useful, and around the median."""
    interval = median_interval([99, 100, 101], spread=0.02)
    assert interval.coarse
    assert interval.value == 100
    assert 0.02 < interval.half_width < 0.04


def test_one_sample_alone_says_nothing_of_its_error() -> None:
    """Its interval is everything."""
    assert median_interval([5.0]).half_width == float("inf")


def test_no_samples_are_an_error() -> None:
    """There is no median of nothing."""
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


def test_the_pooled_spread_is_that_within_points() -> None:
    """However far apart the points are."""
    random = np.random.default_rng(1)
    points = [level * np.exp(random.normal(0, 0.03, 20)) for level in (1, 100, 10_000)]
    assert pooled_spread(points) == pytest.approx(0.03, rel=0.25)


def test_too_few_samples_pool_to_nothing() -> None:
    """Three points of two samples have three degrees of freedom."""
    assert pooled_spread([[1, 2], [1, 2], [1, 2]]) is None


def test_percentiles_need_samples_beyond_them() -> None:
    """The 90th needs 10 samples, the 99th 100."""
    assert percentile(range(9), 90) is None
    assert percentile(range(10), 90) == pytest.approx(8.1)
    assert percentile(range(99), 99) is None
    assert percentile(range(100), 99) is not None
