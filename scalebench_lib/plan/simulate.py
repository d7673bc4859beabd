"""Discrete-event simulation of requests, a batcher, and instances that slow each other down.

A load test and a simulation share the `Batching` and leave the same `Log`.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from math import exp, inf
from typing import Annotated

import numpy as np
from pydantic import Field

from scalebench_lib.config import PositiveInt, StrictModel
from scalebench_lib.plan.arrivals import Lengths, request_lengths

_QUANTILES = (np.arange(1000) + 0.5) / 1000

Shape = tuple[int, int]
"""How many items a batch has, and how many tokens each; 0 where all requests are alike."""


class Batching(StrictModel):
    """When waiting requests go to an instance: first come, first served.

    They go when `max_batch` of them wait, or the oldest has waited for `max_wait_ms`; a batch is
    padded to the next of `sizes`, ascending, the last of which is `max_batch`, and to the longest
    of its requests, which have `lengths`.
    """

    max_batch: PositiveInt
    max_wait_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    sizes: tuple[int, ...]
    lengths: Lengths = ()

    def ready_s(self, arrivals: np.ndarray) -> np.ndarray:
        """Return for each request when a batch that it is the first of may go to an instance."""
        full = np.full(len(arrivals), inf)
        full[: max(0, len(arrivals) - self.max_batch + 1)] = arrivals[self.max_batch - 1 :]
        ready: np.ndarray = np.minimum(full, arrivals + self.max_wait_ms / 1e3)
        return ready

    def count(self, arrivals: Sequence[float] | np.ndarray, first: int, now_s: float) -> int:
        """Return how many requests from `first` on make a batch at `now_s`."""
        last = min(first + self.max_batch, len(arrivals))
        return bisect_right(arrivals, now_s, first, last) - first

    def shape(self, lengths: Sequence[int]) -> Shape:
        """Return the shape that a batch of requests with `lengths` is padded to."""
        return self.sizes[bisect_left(self.sizes, len(lengths))], max(lengths)

    @property
    def shapes(self) -> list[Shape]:
        """Every shape that a batch may have."""
        tokens = [length for length, _ in self.lengths] or [0]
        return list(itertools.product(self.sizes, tokens))

    def shapes_of(self, log: Log) -> list[Shape]:
        """Return the shape of each batch of `log`."""
        lengths = request_lengths(self.lengths, int(log.count.sum())).tolist()
        ends = np.cumsum(log.count).tolist()
        return [self.shape(lengths[a:b]) for a, b in itertools.pairwise([0, *ends])]

    def __str__(self) -> str:
        waits = f" that wait {self.max_wait_ms:g} ms at most" * (self.max_wait_ms > 0)
        return f"batches of up to {self.max_batch}{waits}"


@dataclass(frozen=True)
class ServiceTimes:
    """Equally likely times in s that an instance on `cores` takes alone, by shape of the batch."""

    by_shape: Mapping[Shape, Sequence[float]]
    cores: int = 1

    @classmethod
    def of(
        cls, samples: Mapping[Shape, np.ndarray], batching: Batching, cores: int
    ) -> ServiceTimes:
        """Return the times of the batches of `batching` from `samples`.

        Quantiles are interpolated between sizes. A batch below the smallest size measured takes as
        long as that, and one of a length that was not measured as long as the next that was.
        """
        found = dict[Shape, list[float]]()
        measured = sorted({tokens for _, tokens in samples})
        for tokens in {tokens for _, tokens in batching.shapes}:
            longer = measured[min(bisect_left(measured, tokens), len(measured) - 1)]
            known = sorted(size for size, other in samples if other == longer)
            curves = np.array([np.quantile(samples[size, longer], _QUANTILES) for size in known])
            weights = [np.interp(batching.sizes, known, one) for one in np.eye(len(known))]
            times = (np.transpose(weights) @ curves).tolist()
            found |= {
                (size, tokens): some for size, some in zip(batching.sizes, times, strict=True)
            }
        return cls(found, cores)

    @cached_property
    def mean_s(self) -> dict[Shape, float]:
        """Mean time by shape."""
        return {shape: float(np.mean(times)) for shape, times in self.by_shape.items()}

    def capacity(self, batching: Batching) -> float:
        """Return the requests/s that it serves alone, if it is always busy with full batches."""
        tokens, shares = np.array(batching.lengths or ((0, 1.0),)).T
        shorter = np.cumsum(shares) / shares.sum()  # or as long: the share of requests

        def mean_s(size: int) -> float:
            longest = np.diff(shorter**size, prepend=0.0)
            return float(longest @ [self.mean_s[size, int(each)] for each in tokens])

        return max(size / mean_s(size) for size in batching.sizes)


@dataclass(frozen=True)
class Log:
    """What became of requests: `arrivals` in s, and a value for each batch, in order.

    A batch that was not answered ends at infinity; requests behind the last batch never began.
    """

    arrivals: np.ndarray
    instance: np.ndarray
    count: np.ndarray
    sent_s: np.ndarray
    ended_s: np.ndarray

    @classmethod
    def of(cls, arrivals: np.ndarray, batches: Sequence[Sequence[float]]) -> Log:
        """Build from batches as (instance, count, sent, ended)."""
        columns = np.array(batches, dtype=float).reshape(-1, 4).T
        return cls(arrivals, *columns[:2].astype(int), *columns[2:])

    @property
    def batches(self) -> list[tuple[int, int, float, float]]:
        """What `of` builds from."""
        columns = self.instance, self.count, self.sent_s, self.ended_s
        return list(zip(*(values.tolist() for values in columns), strict=True))

    @cached_property
    def latency_s(self) -> np.ndarray:
        """From each request's arrival to its answer; infinite where there is none."""
        return self._since_arrival(self.ended_s)

    @cached_property
    def wait_s(self) -> np.ndarray:
        """From each request's arrival to its batch's start; infinite where it never began."""
        return self._since_arrival(self.sent_s)

    @property
    def seconds(self) -> float:
        """From the start to the last answer, or the last arrival."""
        ended = self.ended_s[np.isfinite(self.ended_s)]
        return float(max(ended.max(initial=0.0), self.arrivals[-1]))

    @property
    def overloaded(self) -> bool:
        """Whether requests waited longer in each third of the time, or some to no end."""
        if len(self.arrivals) < 3 or np.isinf(self.wait_s).any():
            return bool(np.isinf(self.wait_s).any())
        first, middle, last = (float(part.mean()) for part in np.array_split(self.wait_s, 3))
        service = float(np.median(self.latency_s - self.wait_s))
        return first < middle < last and last - first > 2 * (first + service)

    def busy(self, instance: int) -> float:
        """Return the share of the time in which `instance` had a batch that it answered."""
        mine = (self.instance == instance) & np.isfinite(self.ended_s)
        return float((self.ended_s - self.sent_s)[mine].sum() / self.seconds)

    def _since_arrival(self, of_batches: np.ndarray) -> np.ndarray:
        found = np.full(len(self.arrivals), inf)
        found[: self.count.sum()] = np.repeat(of_batches, self.count)
        found -= self.arrivals
        return found


def simulate(
    arrivals: np.ndarray,
    batching: Batching,
    instances: Sequence[ServiceTimes],
    slowdown: float = 0.0,
    seed: int = 0,
) -> Log:
    """Serve requests that arrive at `arrivals`, in s; the instance that idles longest is next.

    With `busy` cores an instance on `own` takes ``exp(slowdown * (busy - own))`` times its time
    alone. So all advance alike in a work of speed ``exp(-slowdown * busy)``, and the first to end
    is known whenever a batch begins or ends.
    """
    times, ready = (values.tolist() for values in (arrivals, batching.ready_s(arrivals)))
    lengths = request_lengths(batching.lengths, len(times)).tolist()
    choices = min(len(values) for one in instances for values in one.by_shape.values())
    draws = np.random.default_rng(seed).integers(choices, size=len(times)).tolist()
    speeds = [exp(-slowdown * n) for n in range(sum(one.cores for one in instances) + 1)]
    free = [(0.0, number) for number in range(len(instances))]
    running: list[tuple[float, int, int]] = []
    batches: list[list[float]] = []
    now, work, busy, first = 0.0, 0.0, 0, 0
    while running or first < len(times):
        sent = max(ready[first], free[0][0]) if free and first < len(times) else inf
        speed = speeds[busy]
        end = now + (running[0][0] - work) / speed if running else inf
        if end <= sent:
            work, number, batch = heappop(running)
            now = batches[batch][3] = end
            heappush(free, (now, number))
            busy -= instances[number].cores
        else:
            work, now = work + (sent - now) * speed, sent
            _, number = heappop(free)
            count = batching.count(times, first, now)
            shape = batching.shape(lengths[first : first + count])
            alone = instances[number].by_shape[shape][draws[len(batches)]]
            heappush(
                running, (work + alone * speeds[instances[number].cores], number, len(batches))
            )
            batches.append([number, count, now, inf])
            busy += instances[number].cores
            first += count
    return Log.of(arrivals, batches)
