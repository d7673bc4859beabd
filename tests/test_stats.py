"""Statistics: medians, and intervals that hold the truth on machines of every kind."""

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest

from scalebench_lib import stats
from scalebench_lib.results import Results
from scalebench_lib.stats import (
    ASSUMED_SPREAD,
    MIN_TURNS,
    Ratio,
    VarianceComponents,
    VarianceEstimate,
    by_cycle,
    median_variance,
    outliers,
    paired_differences,
    paired_ratio,
    percentile,
    turns_interval,
)
from tests import simulated

SEEDS = 12


def coverage(kind: Callable, same_threads: bool, rounds: int = 2, cycles: int = 15) -> float:
    """The share of ratios whose interval holds the true one, over many sweeps."""
    held = []
    for seed in range(SEEDS):
        made = simulated.sweep(kind, seed, rounds, cycles)
        results = Results(made.records)
        for one, other in made.pairs:
            if (one[1] == other[1]) == same_threads:
                found = results.ratio(one, other)
                held.append(found.low <= made.true_ratio(one, other) <= found.high)
    return float(np.mean(held))


@pytest.mark.parametrize("kind", simulated.MACHINES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("same_threads", [True, False], ids=["one count", "different counts"])
def test_intervals_of_ratios_hold_the_truth(kind: Callable, same_threads: bool) -> None:
    """They do so in nine of ten cases at least."""
    assert coverage(kind, same_threads) >= 0.9


@pytest.mark.parametrize("kind", [simulated.steps, simulated.states])
def test_so_they_do_of_more_rounds(kind: Callable) -> None:
    assert coverage(kind, same_threads=True, rounds=3, cycles=10) >= 0.9
    assert coverage(kind, same_threads=False, rounds=3, cycles=10) >= 0.9


def test_pairs_do_not_notice_what_all_points_share() -> None:
    """Steps of 25 % leave a ratio as exact as no steps; the latencies' ratios are no help."""
    errors: dict[str, list[float]] = {"steady": [], "steps": [], "medians": []}
    for seed in range(SEEDS):
        for kind in (simulated.steady, simulated.steps):
            made = simulated.sweep(kind, seed, cycles=8)
            results = Results(made.records)
            for one, other in made.pairs:
                true = made.true_ratio(one, other)
                errors[kind.__name__].append(abs(math.log(results.ratio(one, other).value / true)))
                if kind is simulated.steps:
                    a, b = (results.points[key].latency.value for key in (one, other))
                    errors["medians"].append(abs(math.log(a / b / true)))
    steady, steps, medians = (np.median(errors[name]) for name in ("steady", "steps", "medians"))
    assert steps < 1.3 * steady
    assert steps < 0.8 * medians


def test_a_latency_knows_of_the_minutes_between_rounds() -> None:
    """On a machine with steps its interval is as wide as rounds differ, however many turns."""
    held, widths = [], []
    for seed in range(20):
        made = simulated.sweep(simulated.steps, seed)
        for key, point in Results(made.records).points.items():
            held.append(point.latency.low <= made.true_latency_ns(key) <= point.latency.high)
            widths.append(point.latency.half_width)
    assert np.mean(held) >= 0.8
    assert np.median(widths) > 0.05


def test_turns_of_a_trial_hold_their_median() -> None:
    random = np.random.default_rng(0)
    for count in (6, 9, 30):
        found = [turns_interval(np.exp(random.normal(0, 0.02, count))) for _ in range(1500)]
        assert 0.935 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 0.985


@pytest.mark.parametrize("count", [1, 2, MIN_TURNS - 1])
def test_few_turns_alone_say_nothing_of_their_error(count: int) -> None:
    found = turns_interval([5.0] * count)
    assert found.half_width == math.inf
    assert (found.value, found.low) == (pytest.approx(5), 0)


def test_equal_turns_have_no_width() -> None:
    assert turns_interval([7.0] * 10).half_width == 0
    parts = [np.zeros(10), np.zeros(10)]
    found = paired_ratio(parts, VarianceComponents.of([parts], 1))
    assert (found.value, found.p_value) == (1, 1)
    assert math.isfinite(found.half_width)


def test_degrees_of_freedom_are_added_by_satterthwaite() -> None:
    """Equal variances of 4 and 4 have 8; what is known for certain adds none of its own."""
    assert VarianceEstimate(1.0, 4) + VarianceEstimate(1.0, 4) == VarianceEstimate(2.0, 8)
    assert (VarianceEstimate(1.0, 4) + VarianceEstimate(0.0, 1)).df == pytest.approx(4)
    assert (VarianceEstimate(1.0, 4) + VarianceEstimate(1.0)).df == pytest.approx(16)
    assert VarianceEstimate(0.0) + VarianceEstimate(0.0) == VarianceEstimate(0.0)
    assert VarianceEstimate(1.0, 4) + VarianceEstimate(math.inf, 1) == VarianceEstimate(math.inf, 1)
    assert VarianceEstimate(1.0, 4) * 3 == VarianceEstimate(3.0, 4)


def test_the_error_of_a_median_is_of_two_levels() -> None:
    random = np.random.default_rng(1)
    parts = [random.normal(0, 0.02, 400) for _ in range(2)]
    components = VarianceComponents(
        VarianceEstimate(1.0), VarianceEstimate(0.03**2, 5), assumed=False
    )
    expected = math.pi / 2 * 0.02**2 / 800 + 0.03**2 / 2
    assert median_variance(parts, components).value == pytest.approx(expected, rel=0.02)
    assert median_variance(parts, components).df == pytest.approx(5, rel=0.1)


def test_parts_of_unequal_length_count_as_fewer() -> None:
    """One turn beside a hundred adds nothing to what one block knows."""
    components = VarianceComponents(VarianceEstimate(0.0), VarianceEstimate(1e-4, 5), assumed=False)
    lopsided = median_variance([np.zeros(100), np.zeros(1)], components).value
    assert lopsided == pytest.approx(1e-4, rel=0.03)
    assert median_variance([np.zeros(50), np.zeros(50)], components).value == pytest.approx(0.5e-4)


@pytest.mark.parametrize("turns", [2, 3, 4, 5])
def test_short_parts_borrow_the_noise_of_all(turns: int) -> None:
    random = np.random.default_rng(2)
    points = [[random.normal(0, 0.02, turns)] for _ in range(400)]
    components = VarianceComponents.of(points, 400)
    assert math.sqrt(components.within.value) == pytest.approx(0.02, rel=0.1)
    (short,) = points[0]
    assert median_variance([short], components).value == pytest.approx(
        math.pi / 2 * components.within.value / turns + components.between.value
    )


def test_the_spread_between_parts_is_found_beside_that_within() -> None:
    random = np.random.default_rng(3)
    points = [
        [random.normal(0, 0.015) + random.normal(0, 0.02, 12) for _ in range(2)] for _ in range(200)
    ]
    components = VarianceComponents.of(points, 400)
    assert math.sqrt(components.between.value) == pytest.approx(0.015, rel=0.15)
    assert components.between.df == pytest.approx(201)
    assert not components.assumed


def test_where_there_is_none_it_is_not_negative() -> None:
    """Where little was repeated the assumed 1 % counts as one contrast."""
    random = np.random.default_rng(4)
    points = [[random.normal(0, 0.02, 12) for _ in range(2)] for _ in range(50)]
    assert math.sqrt(VarianceComponents.of(points, 1000).between.value) < 0.005
    alike = [[np.zeros(8), np.zeros(8)]]
    assert VarianceComponents.of(alike, 2).between == VarianceEstimate(ASSUMED_SPREAD**2 / 2, 2)


def test_of_one_round_it_is_assumed() -> None:
    components = VarianceComponents.of([[np.zeros(8)], [np.zeros(8)]], 2)
    assert components.assumed
    assert math.sqrt(components.between.value) == ASSUMED_SPREAD


def test_a_turn_each_leaves_the_noise_to_what_is_assumed() -> None:
    components = VarianceComponents.of([[np.zeros(1)], [np.ones(1)]], 2)
    assert 0.01 < paired_ratio([np.zeros(1)], components).half_width < 0.1
    assert VarianceComponents.of([], 0).assumed


def test_turns_are_paired_by_block_and_cycle() -> None:
    one = {"a": by_cycle([1, 2, 4], [1, 2, 4]), "b": by_cycle([1], [9]), "d": by_cycle([1], [0])}
    other = {"a": by_cycle([2, 3, 4, 5], [1, 1, 1, 1]), "c": by_cycle([1], [0])}
    other["d"] = by_cycle([2], [0])
    assert [part.tolist() for part in paired_differences(one, other)] == [[1, 3]]


def test_turns_of_one_cycle_count_as_one() -> None:
    assert by_cycle([1, 1, 2], [3, 5, 7])[1:].tolist() == [4, 7]


def test_ratios_multiply() -> None:
    """A product says through which config it went; its errors are independent."""
    half = Ratio(0.5, VarianceEstimate(3e-4, 6))
    found = half.times(Ratio(3, VarianceEstimate(1e-4, 6)), "none")
    assert (found.value, found.label) == (1.5, "via none")
    assert found.std_error == pytest.approx(0.02)


@pytest.mark.parametrize(("value", "differs"), [(1.03, False), (1.06, True), (0.94, True)])
def test_p_values_agree_with_intervals(value: float, differs: bool) -> None:
    """An interval that leaves out 1 is a p-value below 5 %."""
    found = Ratio(value, VarianceEstimate(0.02**2, 8))
    assert found.differs is differs
    assert (found.p_value < 0.05) is differs


def test_an_outlier_is_above_one_and_a_half_medians() -> None:
    assert outliers([1, 10, 10, 15, 15.1]).tolist() == [False, False, False, False, True]


def test_percentiles_need_passes_beyond_them() -> None:
    """The 90th needs 64, the 99th 662."""
    assert percentile(range(63), 90) is None
    assert percentile(range(64), 90) == pytest.approx(56.7)
    assert percentile(range(661), 99) is None
    assert percentile(range(662), 99) is not None
    assert percentile([], 90) is None


def test_a_tenth_of_slow_turns_moves_the_median_least() -> None:
    """The mean of the same pairs, and the least of each, are further off."""
    random = np.random.default_rng(5)
    off: dict[str, list[float]] = {"median": [], "mean": [], "least": []}
    for _ in range(200):
        one, other = random.normal(0, 0.01, (2, 20)) + 0.5 * (random.random((2, 20)) < 0.1)
        off["median"].append(
            math.log(paired_ratio([one - other], VarianceComponents.of([], 0)).value)
        )
        off["mean"].append(float(np.mean(one - other)))
        off["least"].append(float(one.min() - other.min()))
    error_of = {name: np.median(np.abs(values)) for name, values in off.items()}
    assert error_of["median"] < 0.6 * error_of["mean"]
    assert error_of["median"] < error_of["least"]


def test_no_estimator_but_a_median_is_exported() -> None:
    """Whoever adds a function says here whether it estimates, and then it is a median."""
    skewed = np.array([0.0, 0.0, 0.1, 0.2, 1.0, 3.0, 5.0])
    one = VarianceComponents.of([], 0)
    estimators = {
        "turns_interval": lambda: math.log(turns_interval(np.exp(skewed)).value),
        "paired_ratio": lambda: math.log(paired_ratio([skewed], one).value),
        "by_cycle": lambda: by_cycle([1] * 7, skewed.tolist())[1],
    }
    others = {"median_variance", "paired_differences", "unpaired", "outliers", "percentile"}
    others |= {"supports_percentile", "percentile_interval"}
    functions = {
        name
        for name, found in inspect.getmembers(stats, inspect.isfunction)
        if found.__module__ == stats.__name__ and not name.startswith("_")
    }
    assert functions == others | estimators.keys()
    for estimate in estimators.values():
        assert estimate() == pytest.approx(np.median(skewed))
