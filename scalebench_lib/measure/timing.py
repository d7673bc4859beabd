"""The timing loop: one pass at a time, thread counts in turn, until the median is known.

The thread counts of a config take turns in rounds of shuffled order, so that a machine that
slows down for a while slows all of them alike. The clock is an argument: tests bring their own.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from scalebench_lib.estimate import MIN_SAMPLES, median_interval

Clock = Callable[[], int]
Pass = Callable[[], object]

_NS = 1_000_000_000

TURN_NS = _NS // 2
"""A point's turn: long beside switching the threads, short beside the drift of a machine."""

WARMUP_NS = _NS
WARMUP_PASSES = 3
"""A point's first turn starts with this many passes, or this long: compilers and caches settle."""

LONG_PASS_NS = _NS
"""From here on a pass outlasts any warm-up: one for the whole config is enough."""


@dataclass
class Series:
    """The passes of one point: durations and starts in ns, in the order measured."""

    threads: int
    samples_ns: list[int] = field(default_factory=list)
    started_ns: list[int] = field(default_factory=list)
    warmup_ns: list[int] = field(default_factory=list)
    spent_ns: int = 0
    stopped_by: Literal["target_ci", "max_seconds"] | None = None

    def decide(self, target_ci: float, max_seconds: float) -> None:
        """Stop when the median is known well enough, or the time is up; never below the minimum."""
        if len(self.samples_ns) < MIN_SAMPLES:
            return
        interval = median_interval(self.samples_ns)
        if not interval.coarse and interval.half_width <= target_ci:
            self.stopped_by = "target_ci"
        elif self.spent_ns >= max_seconds * _NS:
            self.stopped_by = "max_seconds"


@dataclass
class TimingLoop:
    """Times `run` at each of `threads`; `switch` makes the process compute with that many.

    `seed` shuffles the order of turns. Times are in nanoseconds of `clock`, which must be
    monotonic.
    """

    run: Pass
    switch: Callable[[int], None]
    threads: Sequence[int]
    target_ci: float
    max_seconds: float
    seed: int = 0
    clock: Clock = time.perf_counter_ns

    def measure(self) -> list[Series]:
        """Take turns until every point has stopped; one `Series` a thread count, in order."""
        series = [Series(threads) for threads in self.threads]
        shuffle = random.Random(self.seed).shuffle  # noqa: S311
        with _garbage_held_off():
            self._origin = self.clock()
            while turns := [one for one in series if one.stopped_by is None]:
                shuffle(turns)
                for one in turns:
                    self._turn(one, settled=self._settled(series))
        return series

    def _settled(self, series: Sequence[Series]) -> bool:
        passes = [ns for one in series for ns in one.warmup_ns]
        return bool(passes) and min(passes) >= LONG_PASS_NS

    def _turn(self, one: Series, settled: bool) -> None:
        start = self.clock()
        self.switch(one.threads)
        if not settled:
            self._warm_up(one)
        end_of_turn = self.clock() + TURN_NS
        while True:
            self._sample(one)
            if self.clock() >= end_of_turn:
                break
        one.spent_ns += self.clock() - start
        one.decide(self.target_ci, self.max_seconds)

    def _warm_up(self, one: Series) -> None:
        passes = 1 if one.warmup_ns else WARMUP_PASSES
        start = self.clock()
        for _ in range(passes):
            began = self.clock()
            self.run()
            one.warmup_ns.append(self.clock() - began)
            if self.clock() - start >= WARMUP_NS:
                return

    def _sample(self, one: Series) -> None:
        run, clock = self.run, self.clock
        began = clock()
        run()
        ended = clock()
        one.samples_ns.append(ended - began)
        one.started_ns.append(began - self._origin)


@contextmanager
def _garbage_held_off() -> Iterator[None]:
    """No collection during a pass: it would be timed as the model's."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
