"""Medians, intervals and percentiles."""

import numpy as np
import pytest

from scalebench_lib.estimate import (
    PRIOR_EXPONENT,
    enough_samples,
    median_interval,
    percentile,
    steadied,
)


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


def test_one_sample_alone_says_nothing_of_its_error() -> None:
    """Its interval is everything."""
    assert median_interval([5.0]).half_width == float("inf")


def test_no_samples_are_an_error() -> None:
    """There is no median of nothing."""
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


@pytest.mark.parametrize(
    ("samples", "enough"),
    [([], False), ([1e6] * 2, False), ([1e6] * 3, True), ([2e9], False), ([2e9] * 2, True)],
)
def test_three_samples_are_enough_and_two_of_seconds(samples: list, enough: bool) -> None:
    """Whatever the time limit says."""
    assert enough_samples(samples) is enough


def test_samples_are_steadied_by_their_probes() -> None:
    """A machine that is slower by p slows the model by p to the prior exponent."""
    probes = np.array([1.0, 1.0, 1.0, 1.3, 1.3])
    samples = 100 * probes**PRIOR_EXPONENT
    assert steadied(samples, probes) == pytest.approx(100)


def test_percentiles_need_samples_beyond_them() -> None:
    """The 90th needs 10 samples, the 99th 100."""
    assert percentile(range(9), 90) is None
    assert percentile(range(10), 90) == pytest.approx(8.1)
    assert percentile(range(99), 99) is None
    assert percentile(range(100), 99) is not None
