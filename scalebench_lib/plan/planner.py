"""The exact best split of a batch into instances, over measured points only.

One table has the fewest cores that serve each batch when no instance may take longer than each
of the measured latencies (an unbounded knapsack, all these levels at once): the best latency is
the first level at which the cores suffice. Another has the most items that so many cores serve.

Instances slow each other down: one on `own` of the plan's `busy` cores takes
``exp(slowdown * (busy - own))`` times its latency alone. As ``busy`` is the same for all of a
plan, the levels are those of ``latency * exp(-slowdown * own)``, and it stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from math import exp

import numpy as np

from scalebench_lib.errors import RequestError
from scalebench_lib.plan.profile import Instance, NanFromNull
from scalebench_lib.stats import Interval
from scalebench_lib.text import format_number, pluralize


@dataclass(frozen=True)
class Plan:
    """Instances that serve one batch together, the largest first, and the time they take.

    `predicted_ms` is NaN where an instance was not measured. A plan that was run has its
    `measured_ms`, or `failed` says why not. Plans are equal where they run the same instances.
    """

    instances: tuple[Instance, ...]
    predicted_ms: NanFromNull = field(compare=False)
    measured_ms: Interval | None = field(default=None, compare=False)
    failed: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, instances: Iterable[Instance], slowdown: float = 0.0) -> Plan:
        """Return the plan of these instances, slowed down by each other."""
        ordered = sorted(instances, key=lambda one: (-one.cores, -one.batch_size, one))
        busy = sum(one.cores for one in ordered)
        slowest = max(one.latency_ms * exp(slowdown * (busy - one.cores)) for one in ordered)
        return cls(tuple(ordered), slowest)

    @property
    def batch_size(self) -> int:
        """Items that all instances together serve at once."""
        return sum(one.batch_size for one in self.instances)

    @property
    def cores(self) -> int:
        """Physical cores in use."""
        return sum(one.cores for one in self.instances)

    @property
    def latency_ms(self) -> float:
        """The best that is known: measured, or else predicted."""
        return self.measured_ms.value if self.measured_ms else self.predicted_ms

    @property
    def interval_ms(self) -> Interval:
        """`latency_ms` with its 95 % interval: predicted, that of the slowest instance's point."""
        slowest = max(self.instances, key=lambda one: one.latency_ms)
        return self.measured_ms or Interval(self.predicted_ms, slowest.variance)

    @property
    def throughput(self) -> float:
        """Inferences/s at `latency_ms`."""
        return self.batch_size / self.latency_ms * 1e3

    @property
    def optimizations(self) -> set[str]:
        """The optimizations of its instances."""
        return {one.optimization for one in self.instances}

    @property
    def summary(self) -> str:
        """``batch 8 in 52.39 ms, 2 × (4 threads, batch 4)``."""
        return f"batch {self.batch_size} in {format_number(self.latency_ms, 4)} ms, {self}"

    def __str__(self) -> str:
        alike = [(shape, len(list(same))) for shape, same in groupby(map(str, self.instances))]
        return " + ".join(f"{count} × {shape}" for shape, count in alike)


def split_evenly(batch_size: int, count: int) -> list[int]:
    """Return `batch_size` as `count` batches as even as can be, the largest first."""
    least, larger = divmod(batch_size, count)
    return [least + 1] * larger + [least] * (count - larger)


def unbeaten(plans: Iterable[Plan]) -> list[Plan]:
    """Return those of `plans` that none beats in both latency and throughput; ascending in both."""
    ordered = sorted(plans, key=lambda plan: (plan.latency_ms, -plan.throughput, plan.cores))
    before = accumulate((plan.throughput for plan in ordered), max, initial=0.0)
    return [plan for plan, most in zip(ordered, before, strict=False) if plan.throughput > most]


class _Knapsack:
    """The least sums of values over items that weigh so much together, at all levels at once.

    Each of the `weights`, ascending, has a row of `values`, a column a level, and may be taken
    any number of times. A sum is `most` where it would be larger, or the weights do not add up.
    """

    def __init__(self, weights: np.ndarray, values: np.ndarray, most: int) -> None:
        self._weights, self._values, self._most = weights, values, most
        self._sums = np.zeros((1, values.shape[1]), values.dtype)

    def sums(self, upto: int) -> np.ndarray:
        """Return the least sums, a row for each weight from 0 to `upto`, a column a level."""
        known = len(self._sums)
        if upto >= known:
            more = np.full((max(upto + 1, 2 * known) - known, self._sums.shape[1]), self._most)
            self._sums = np.concatenate([self._sums, more.astype(self._sums.dtype)])
            for weight in range(known, len(self._sums)):
                few = int(np.searchsorted(self._weights, weight, side="right"))
                if few:
                    rows = self._sums[weight - self._weights[:few]] + self._values[:few]
                    np.minimum(rows.min(axis=0), self._most, out=self._sums[weight])
        return self._sums[: upto + 1]

    def items(self, weight: int, level: int) -> Iterator[tuple[int, int]]:
        """Yield the weights and values behind a least sum, the heaviest first."""
        sums, values = self._sums[:, level], self._values[:, level]
        while weight:
            fitting = np.flatnonzero(self._weights <= weight)
            left = weight - self._weights[fitting]
            last = fitting[sums[left] + values[fitting] == sums[weight]][-1]
            yield int(self._weights[last]), int(values[last])
            weight -= int(self._weights[last])


class BatchPlanner:
    """Plans for up to `cores` physical cores out of `instances`; `slowdown` as above, ≥ 0."""

    def __init__(self, instances: Iterable[Instance], cores: int, slowdown: float = 0.0) -> None:
        self.cores, self.slowdown = cores, slowdown
        self._best = self._undominated(instances)
        self.sizes = np.array(sorted({size for size, _ in self._best}), dtype=int)
        self._levels = np.array(sorted({self._level(one) for one in self._best.values()}))

    def best(self, batch_size: int) -> Plan:
        """Return the fastest plan for `batch_size`; of equal ones that of fewest cores, instances.

        Raises `RequestError`, with the nearest batch sizes, if this one cannot be reached.
        """
        if not self.reachable(batch_size):
            raise RequestError(self._unreachable(batch_size))
        cores = self._fewest.sums(batch_size)[-1] // self._core
        slowed = self._levels * np.exp(self.slowdown * cores)
        predicted = np.where(cores <= self.cores, slowed, np.inf)
        level = int(np.lexsort((cores, predicted))[0])
        found = self._fewest.items(batch_size, level)
        return Plan.of(
            (self._best[size, cost // self._core] for size, cost in found), self.slowdown
        )

    def reachable(self, batch_size: int) -> bool:
        """Return whether measured batch sizes sum to `batch_size` on these cores."""
        if not 1 <= batch_size < self.largest_batch:
            return batch_size == self.largest_batch > 0
        return bool(self._fewest.sums(batch_size)[-1, -1] < self._core**2)

    @cached_property
    def largest_batch(self) -> int:
        """The most items that all cores can hold at once; 0 where no instance fits."""
        return int(-self._most.sums(self.cores)[-1, -1]) if self._levels.size else 0

    def frontier(self) -> list[Plan]:
        """Return the plans of any batch size that none beats in both latency and throughput.

        Raises `RequestError` if no instance fits.
        """
        if not self.largest_batch:
            raise RequestError(self._unreachable(1))
        most, cores = -self._most.sums(self.cores)[1:], np.arange(1, self.cores + 1)[:, None]
        latency = (self._levels * np.exp(self.slowdown * cores)).ravel()
        throughput = most.ravel() / latency
        order = np.lexsort((-throughput, latency))  # stable: of equal ones the fewest cores first
        rises = np.diff(np.maximum.accumulate(throughput[order]), prepend=0.0) > 0
        places = zip(*np.unravel_index(order[rises], most.shape), strict=True)
        return unbeaten(self._fullest(int(row) + 1, int(level)) for row, level in places)

    def _fullest(self, cores: int, level: int) -> Plan:
        found = self._most.items(cores, level)
        instances = (self._best[-size, own] for own, size in found if size)
        return Plan.of(instances, self.slowdown)

    def _undominated(self, instances: Iterable[Instance]) -> dict[tuple[int, int], Instance]:
        """Return the best instance by batch size and cores, if more cores make it faster."""
        best: dict[tuple[int, int], Instance] = {}
        reached: dict[int, float] = {}
        for one in sorted(instances, key=lambda one: (one.cores, one.latency_ms)):
            level = self._level(one)
            if one.cores <= self.cores and level < reached.get(one.batch_size, np.inf):
                reached[one.batch_size] = level
                best[one.batch_size, one.cores] = one
        return best

    def _level(self, one: Instance) -> float:
        """Return the latency that the instance gives a plan, but for the plan's busy cores."""
        return one.latency_ms * exp(-self.slowdown * one.cores)

    @property
    def _core(self) -> int:
        """The cost of a core; an instance costs 1: fewer cores count more than fewer instances."""
        return self.cores + 1

    @cached_property
    def _fewest(self) -> _Knapsack:
        """The cost of each batch; `_core` squared if these cores cannot serve it."""
        sizes = self.sizes.tolist()
        costs = np.full((len(sizes), len(self._levels)), self._core**2, dtype=np.int32)
        for (size, cores), one in self._best.items():
            within, row = self._levels >= self._level(one), sizes.index(size)
            costs[row, within] = np.minimum(costs[row, within], cores * self._core + 1)
        return _Knapsack(self.sizes, costs, self._core**2)

    @cached_property
    def _most(self) -> _Knapsack:
        """The most items that so many cores serve, negative; a core may idle."""
        items = np.zeros((self.cores, len(self._levels)), dtype=np.int64)
        for (size, cores), one in self._best.items():
            within = self._levels >= self._level(one)
            items[cores - 1, within] = np.minimum(items[cores - 1, within], -size)
        return _Knapsack(np.arange(1, self.cores + 1), items, 0)

    def _unreachable(self, batch_size: int) -> str:
        """Return why `batch_size` cannot be planned, and the nearest that can."""
        if not self.largest_batch:
            return f"no point was measured on {pluralize(self.cores, 'core')} or fewer: use more"
        below = range(min(batch_size, self.largest_batch + 1) - 1, 0, -1)
        above = range(batch_size + 1, self.largest_batch + 1)
        near = [next(filter(self.reachable, sizes), None) for sizes in (below, above)]
        words = " or ".join(str(size) for size in near if size)
        sizes = ", ".join(map(str, self.sizes))
        return (
            f"batch_size: {batch_size} cannot be made of the measured batch sizes {sizes} on "
            f"{pluralize(self.cores, 'core')}: the nearest is {words}"
        )
