"""Statistics of many groups at once are those of each alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scalebench_lib.grouped import Groups

Sizes = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def made_up(sizes: list[int], seed: int) -> tuple[Groups, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Groups whose numbers lie mixed, values and weights of all, and each group's places."""
    random = np.random.default_rng(seed)
    of = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    values, weights = random.normal(0, 1, of.size), random.uniform(0.1, 1, of.size)
    return Groups(of, len(sizes)), values, weights, [of == group for group in range(len(sizes))]


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Of one group, as it reads."""
    order = np.argsort(values)
    ranks = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(weights.sum() / 2, ranks, values[order])


@given(Sizes, st.integers(0, 1000))
def test_each_group_has_what_numpy_says_of_it_alone(sizes: list[int], seed: int) -> None:
    """Sums, means, quantiles, medians: to nine digits."""
    groups, values, weights, places = made_up(sizes, seed)
    found = [
        groups.sum(values),
        groups.mean(values),
        groups.mean(values, weights),
        *groups.quantiles(values, 0.05, 0.25),
        groups.median(values),
        groups.weighted_median(values, weights),
    ]
    alone = [
        (
            values[here].sum(),
            values[here].mean(),
            np.average(values[here], weights=weights[here]),
            *np.quantile(values[here], (0.05, 0.25)),
            np.median(values[here]),
            weighted_median(values[here], weights[here]),
        )
        for here in places
    ]
    np.testing.assert_allclose(np.transpose(found), alone, rtol=1e-9, atol=1e-9)
    centred = groups.less_mean(values)
    assert all(abs(centred[here].sum()) < 1e-9 for here in places)


def test_numbers_are_chosen_and_split() -> None:
    """Some of them make the same groups, smaller."""
    groups = Groups.one_after_the_other([2, 3])
    assert [part.tolist() for part in groups.split(np.arange(5))] == [[0, 1], [2, 3, 4]]
    assert groups.chosen(np.array([True, False, True, True, False])).size.tolist() == [1, 2]
