"""The exact best split of a batch into instances, over profiled points only.

One table answers every question: the fewest cores that serve each batch when no instance may
take longer than each of the profiled latencies (an unbounded knapsack, all latencies at once).
The best latency for some cores is then the first level at which so many suffice.

Instances slow each other down: one on `own` of the plan's `busy` cores takes
``(busy / own) ** exponent`` times its latency alone. As ``busy`` is the same for all of a plan,
the table is made of ``latency / own ** exponent`` and stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np

from scalebench_lib.errors import RequestError
from scalebench_lib.plan.profile import InstanceOption, shares_of_a_core
from scalebench_lib.text import format_number, pluralize

_NEVER = 2**29
"""More than any plan costs; twice it still fits 32 bits."""


@dataclass(frozen=True)
class Plan:
    """Instances that serve one batch together, the largest first, and their predicted time."""

    instances: tuple[InstanceOption, ...]
    predicted_ms: float

    @classmethod
    def of(cls, instances: Iterable[InstanceOption], exponent: float = 0.0) -> Plan:
        """The plan of these instances, slowed down by each other."""
        ordered = sorted(instances, key=lambda one: (-one.cores, -one.batch_size))
        busy = sum(one.cores for one in ordered)
        slowest = max(one.latency_ms * (busy / one.cores) ** exponent for one in ordered)
        return cls(tuple(ordered), slowest)

    @property
    def batch_size(self) -> int:
        """Items that all instances together serve at once."""
        return sum(one.batch_size for one in self.instances)

    @property
    def cores(self) -> float:
        """Physical cores in use."""
        return sum(one.cores for one in self.instances)

    @property
    def throughput(self) -> float:
        """Predicted inferences/s."""
        return self.batch_size / self.predicted_ms * 1e3

    @property
    def slowest(self) -> InstanceOption:
        """The instance that takes longest by itself."""
        return max(self.instances, key=lambda one: one.latency_ms)

    @property
    def optimization(self) -> str:
        """The optimization of all instances; ``none + script`` where they differ."""
        return " + ".join(sorted({one.optimization for one in self.instances}))

    def __str__(self) -> str:
        alike = [(shape, len(list(same))) for shape, same in groupby(map(str, self.instances))]
        return " + ".join(f"{count} × {shape}" for shape, count in alike)


Known = Callable[[Plan], Plan]
"""A plan with what is known better than its prediction."""


class Planner:
    """Plans for up to `cores` physical cores out of `options`; `exponent` as above, at least 0."""

    def __init__(
        self, options: Iterable[InstanceOption], cores: int, exponent: float = 0.0
    ) -> None:
        self.cores, self.exponent = cores, exponent
        self._shares = shares_of_a_core(every := list(options))
        self._budget = cores * self._shares
        self._best = self._undominated(every)
        self.sizes = np.array(sorted({size for size, _ in self._best}), dtype=int)
        levels = {self._level(option) for option in self._best.values()}
        self._levels = np.array(sorted(levels))
        self._table = np.zeros((1, len(self._levels)), dtype=np.int32)

    def best(self, batch_size: int) -> Plan:
        """The fastest plan for `batch_size`, with the fewest cores and instances that reach it.

        Raises `RequestError` naming the nearest batch sizes where this one cannot be reached.
        """
        if not self.reachable(batch_size):
            raise RequestError(self._unreachable(batch_size))
        cores = self._fewest(batch_size) // self._key_unit
        predicted = np.where(
            cores <= self._budget, self._levels * np.maximum(cores, 1.0) ** self.exponent, np.inf
        )
        level = int(np.lexsort((cores, predicted))[0])
        return Plan.of(self._taken(level, batch_size), self.exponent)

    def reachable(self, batch_size: int) -> bool:
        """Whether profiled batch sizes sum to `batch_size` on these cores."""
        if not 1 <= batch_size < self.largest_batch:
            return batch_size == self.largest_batch > 0
        return bool(self._fewest(batch_size)[-1] // self._key_unit <= self._budget)

    @cached_property
    def largest_batch(self) -> int:
        """The most items that all cores can hold at once; 0 where no option fits."""
        return int(self._most[-1, -1]) if self._levels.size else 0

    def plans(self, upto: int) -> Iterator[Plan]:
        """The best plan of every batch size up to `upto` that can be reached, in order."""
        self._extend(min(upto, self.largest_batch))
        return (self.best(size) for size in range(1, upto + 1) if self.reachable(size))

    def under(self, slo_ms: float, known: Known = lambda plan: plan) -> Plan:
        """The plan of most throughput, of any batch size, that takes at most `slo_ms`.

        Raises `RequestError` with the fastest there is where nothing meets the limit.
        """
        frontier = self.frontier(known)
        if not frontier:
            raise RequestError(self._unreachable(1))
        within = [plan for plan in frontier if plan.predicted_ms <= slo_ms]
        if within:
            return within[-1]
        fastest, least = frontier[0], format_number(frontier[0].predicted_ms, 4)
        raise RequestError(
            f"slo_ms: nothing answers within {slo_ms:g} ms on {pluralize(self.cores, 'core')}: the "
            f"fastest is batch {fastest.batch_size} in {least} ms, {fastest}"
        )

    def frontier(self, known: Known = lambda plan: plan) -> list[Plan]:
        """Plans that none beats in both latency and throughput, as `known`; ascending in both."""
        plans = sorted(
            map(known, self._predicted_frontier()),
            key=lambda plan: (plan.predicted_ms, -plan.throughput),
        )
        before = accumulate((plan.throughput for plan in plans), max, initial=0.0)
        return [plan for plan, most in zip(plans, before, strict=False) if plan.throughput > most]

    def _predicted_frontier(self) -> list[Plan]:
        most, cores = self._most[1:], np.arange(1, self._budget + 1)[:, None]
        latency = self._levels[None, :] * np.asarray(cores, dtype=float) ** self.exponent
        throughput = most / latency
        # By latency; among equals the most throughput first, then the fewest cores.
        order = np.lexsort(
            (np.broadcast_to(cores, most.shape).ravel(), -throughput.ravel(), latency.ravel())
        )
        rising = throughput.ravel()[order]
        best_before = np.maximum.accumulate(np.concatenate([[0.0], rising[:-1]]))
        kept = order[rising > best_before]
        return [self._fullest(*divmod(int(flat), len(self._levels))) for flat in kept]

    def _undominated(
        self, options: Iterable[InstanceOption]
    ) -> dict[tuple[int, int], InstanceOption]:
        """By batch size and share count, the best option; none that more cores do not speed up."""
        best: dict[tuple[int, int], InstanceOption] = {}
        reached: dict[int, float] = {}
        for option in sorted(options, key=lambda one: (self._units(one), self._level(one))):
            level, units = self._level(option), self._units(option)
            if units <= self._budget and level < reached.get(option.batch_size, np.inf):
                reached[option.batch_size] = level
                best[option.batch_size, units] = option
        return best

    def _units(self, option: InstanceOption) -> int:
        return round(option.cores * self._shares)

    def _level(self, option: InstanceOption) -> float:
        """What the option adds to a plan's time, but for the plan's busy shares."""
        return float(option.latency_ms / self._units(option) ** self.exponent)

    @cached_property
    def _costs(self) -> np.ndarray:
        """Fewest shares for each batch size within each level: (sizes, levels)."""
        costs = np.full((len(self.sizes), len(self._levels)), self._budget + 1, dtype=np.int32)
        for (size, units), option in self._best.items():
            row = costs[np.searchsorted(self.sizes, size)]
            first = np.searchsorted(self._levels, self._level(option))
            row[first:] = np.minimum(row[first:], units)
        return costs

    @property
    def _key_unit(self) -> int:
        """Shares are counted in this, instances in ones: fewest shares first, then instances."""
        return self._budget + 2

    def _fewest(self, batch_size: int) -> np.ndarray:
        self._extend(batch_size)
        row: np.ndarray = self._table[batch_size]
        return row

    def _extend(self, upto: int) -> None:
        """Fill the table up to batch `upto`, a row a batch size, all levels at once."""
        known = len(self._table)
        if upto < known:
            return
        table = np.full((upto + 1, len(self._levels)), _NEVER, dtype=np.int32)
        table[:known] = self._table
        steps = np.where(self._costs <= self._budget, self._costs * self._key_unit + 1, _NEVER)
        for batch in range(known, upto + 1):
            fitting = int(np.searchsorted(self.sizes, batch, side="right"))
            rows = table[batch - self.sizes[:fitting]]
            rows += steps[:fitting]
            if fitting:
                np.minimum(rows.min(axis=0), _NEVER, out=table[batch])
        self._table = table

    def _taken(self, level: int, batch: int) -> Iterator[InstanceOption]:
        """The instances behind an entry of the table, found by walking it back."""
        while batch:
            steps = self._costs[:, level] * self._key_unit + 1
            for size, step in zip(self.sizes[::-1], steps[::-1], strict=True):
                if (
                    size <= batch
                    and self._table[batch - size, level] + step == (self._table[batch, level])
                ):
                    yield self._best[int(size), int(step // self._key_unit)]
                    batch -= int(size)
                    break

    @cached_property
    def _holds(self) -> np.ndarray:
        """The largest batch size of one instance of so many shares within each level."""
        holds = np.zeros((self._budget + 1, len(self._levels)), dtype=np.int64)
        for (size, units), option in self._best.items():
            first = np.searchsorted(self._levels, self._level(option))
            np.maximum(holds[units, first:], size, out=holds[units, first:])
        return holds

    @cached_property
    def _most(self) -> np.ndarray:
        """The most items that so many shares serve within each level: (shares + 1, levels)."""
        most = np.zeros_like(self._holds)
        for shares in range(1, self._budget + 1):
            most[shares] = (self._holds[1 : shares + 1] + most[shares - 1 :: -1]).max(axis=0)
        return most

    def _fullest(self, row: int, level: int) -> Plan:
        shares, instances = row + 1, list[InstanceOption]()
        while self._most[shares, level]:
            sums = self._holds[1 : shares + 1, level] + self._most[shares - 1 :: -1, level]
            units = 1 + int(np.argmax(sums))
            if size := int(self._holds[units, level]):
                instances.append(self._best[size, units])
            shares -= units
        return Plan.of(instances, self.exponent)

    def _unreachable(self, batch_size: int) -> str:
        """Why not, and what can be had."""
        if not self.largest_batch:
            return f"no point was measured on {pluralize(self.cores, 'core')} or fewer: use more"
        below = range(min(batch_size, self.largest_batch + 1) - 1, 0, -1)
        above = range(batch_size + 1, self.largest_batch + 1)
        near = [next(filter(self.reachable, sizes), None) for sizes in (below, above)]
        words = " or ".join(str(size) for size in near if size)
        sizes = ", ".join(map(str, self.sizes))
        return (
            f"batch_size: {batch_size} cannot be made of the profiled batch sizes {sizes} on "
            f"{pluralize(self.cores, 'core')}: the nearest is {words}"
        )
