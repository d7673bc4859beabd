"""Statistics of many groups of numbers at once, as numpy does them for one."""

from __future__ import annotations

from typing import Self

import numpy as np


class Groups:
    """Which of `count` groups each number belongs to: `of`, one whole number each, from 0.

    All methods take one value a number and give one a group. No group may be empty.
    """

    def __init__(self, of: np.ndarray, count: int) -> None:
        self.of, self.count = of, count
        self.size = np.bincount(of, minlength=count)
        self._starts = np.cumsum(self.size) - self.size

    @classmethod
    def one_after_the_other(cls, sizes: list[int]) -> Self:
        """The first ``sizes[0]`` numbers are the first group, and so on."""
        return cls(np.repeat(np.arange(len(sizes)), sizes), len(sizes))

    def chosen(self, which: np.ndarray) -> Groups:
        """The groups of those numbers alone where `which`."""
        return Groups(self.of[which], self.count)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Their sums."""
        return np.bincount(self.of, values, self.count)

    def mean(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Their means, weighted or not."""
        if weights is None:
            return self.sum(values) / self.size
        return self.sum(values * weights) / self.sum(weights)

    def less_mean(self, values: np.ndarray) -> np.ndarray:
        """Each number less its group's mean."""
        centred: np.ndarray = values - self.mean(values)[self.of]
        return centred

    def quantiles(self, values: np.ndarray, *shares: float) -> list[np.ndarray]:
        """Their quantiles, interpolated between the numbers on both sides."""
        ordered = values[self._order(values)]
        ends = self._starts + self.size - 1
        found = []
        for share in shares:
            at = self._starts + share * (self.size - 1)
            below = np.floor(at).astype(int)
            rise = ordered[np.minimum(below + 1, ends)] - ordered[below]
            found.append(ordered[below] + (at - below) * rise)
        return found

    def median(self, values: np.ndarray) -> np.ndarray:
        """Their medians."""
        return self.quantiles(values, 0.5)[0]

    def weighted_median(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Where half of the weight lies below; each number's own weight lies around it."""
        order = self._order(values)
        of, ordered, weight = self.of[order], values[order], weights[order]
        total, through = self.sum(weights), np.cumsum(weight)
        ranks = through - weight / 2 - (np.cumsum(total) - total)[of]
        below = np.bincount(of, ranks < (total / 2)[of], self.count).astype(int)
        left = self._starts + np.maximum(below - 1, 0)
        right = self._starts + np.minimum(below, self.size - 1)
        gap = ranks[right] - ranks[left]
        share = np.where(gap > 0, (total / 2 - ranks[left]) / np.where(gap > 0, gap, 1), 0)
        median: np.ndarray = ordered[left] + share * (ordered[right] - ordered[left])
        return median

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Each group's numbers, where the groups lie one after the other."""
        return np.split(values, self._starts[1:])

    def _order(self, values: np.ndarray) -> np.ndarray:
        return np.lexsort((values, self.of))
