"""The timing loop: thread counts in turn, the machine's speed beside every pass.

The thread counts of a config take turns in rounds of shuffled order, so that a machine that
slows down for a while slows all of them alike. Between passes a probe tells how fast the machine
is. The clock is an argument: tests bring their own.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from scalebench_lib.estimate import enough_samples, median_interval, steadied

Clock = Callable[[], int]
Pass = Callable[[], object]

_NS = 1_000_000_000

TURN_NS = _NS // 2
"""A point's turn: long beside switching the threads, short beside the drift of a machine."""

PROBE_EVERY_NS = 40_000_000
PROBE_SHARE = 0.15
"""Probes are this far apart, or one pass if that is longer, or what keeps them to their share."""

BLOCK_NS = 1_000_000
"""Passes shorter than this are timed several at once: the clock's own cost would show."""

OUTLASTING_NS = _NS // 5
"""A pass this long outlasts what a switch of threads leaves cold: one at first is enough."""

LONG_PASS_NS = _NS
"""From here on one pass is enough to warm up the whole config."""

WARMUP_NS = _NS
STEADY = 0.98
WINDOW = 3
"""Warm when `WINDOW` passes take no less than `STEADY` times those before; or after `WARMUP_NS`."""


@dataclass
class Series:
    """The samples of one point, in ns, in the order measured; each with the probes beside it.

    A sample is one pass, or the mean of `passes_per_sample` passes timed at once. `cpu_ns` is
    the CPU time that all threads of the process took for the samples together.
    """

    threads: int
    samples_ns: list[int] = field(default_factory=list)
    started_ns: list[int] = field(default_factory=list)
    probe_before_ns: list[int] = field(default_factory=list)
    probe_after_ns: list[int] = field(default_factory=list)
    warmup_ns: list[int] = field(default_factory=list)
    passes_per_sample: int = 1
    cpu_ns: int = 0
    spent_ns: int = 0
    stopped_by: Literal["target_ci", "max_seconds"] | None = None

    def decide(self, target_ci: float, max_seconds: float) -> None:
        """Stop when the median is known well enough, or the time is up; never below the minimum."""
        if not enough_samples(self.samples_ns):
            return
        probes = [a + b for a, b in zip(self.probe_before_ns, self.probe_after_ns, strict=True)]
        interval = median_interval(steadied(self.samples_ns, probes))
        if not interval.coarse and interval.half_width <= target_ci:
            self.stopped_by = "target_ci"
        elif self.spent_ns >= max_seconds * _NS:
            self.stopped_by = "max_seconds"


@dataclass
class TimingLoop:
    """Times `run` at each of `threads`; `switch` makes the process compute with that many.

    `probe` is the fixed work beside it. `seed` shuffles the order of turns. `warm` says that
    the config has had its long first pass. Times are in nanoseconds of `clock`, which must be
    monotonic; `cpu_clock` is the CPU time of all threads of the process.
    """

    run: Pass
    probe: Pass
    switch: Callable[[int], None]
    threads: Sequence[int]
    target_ci: float
    max_seconds: float
    seed: int = 0
    warm: bool = False
    clock: Clock = time.perf_counter_ns
    cpu_clock: Clock = time.process_time_ns
    _origin: int = field(default=0, init=False)

    def measure(self) -> list[Series]:
        """Take turns until every point has stopped; one `Series` a thread count, in order."""
        series = [Series(threads) for threads in self.threads]
        shuffle = random.Random(self.seed).shuffle  # noqa: S311
        with _garbage_held_off():
            self._origin = self.clock()
            while turns := [one for one in series if one.stopped_by is None]:
                shuffle(turns)
                for one in turns:
                    self._turn(one)
        return series

    def _turn(self, one: Series) -> None:
        start = self.clock()
        self.switch(one.threads)
        if not self.warm:
            self._warm_up(one)
        self._timed(self.probe)  # the first one after a switch finds cold caches
        before, end_of_turn = self._timed(self.probe), self.clock() + TURN_NS
        while self.clock() < end_of_turn:
            count = self.stretch(one, max(PROBE_EVERY_NS, before / PROBE_SHARE))
            after = self._timed(self.probe)
            one.probe_before_ns += [before] * count
            one.probe_after_ns += [after] * count
            before = after
        one.spent_ns += self.clock() - start
        one.decide(self.target_ci, self.max_seconds)

    def stretch(self, one: Series, length_ns: float = PROBE_EVERY_NS) -> int:
        """Sample until the next probe is due; returns how many samples that were."""
        due, before, cpu = self.clock() + length_ns, len(one.samples_ns), self.cpu_clock()
        while True:
            self._sample(one)
            if self.clock() >= due:
                one.cpu_ns += self.cpu_clock() - cpu
                return len(one.samples_ns) - before

    def _sample(self, one: Series) -> None:
        run, clock, passes = self.run, self.clock, range(one.passes_per_sample)
        began = clock()
        for _ in passes:
            run()
        ended = clock()
        one.samples_ns.append((ended - began) // len(passes))
        one.started_ns.append(began - self._origin)

    def _warm_up(self, one: Series) -> None:
        """Once until steady; before later turns one short pass: caches and threads come back."""
        if one.warmup_ns:
            if one.warmup_ns[-1] < OUTLASTING_NS:
                one.warmup_ns.append(self._timed(self.run))
            return
        start = self.clock()
        while not _steady(one.warmup_ns) and self.clock() - start < WARMUP_NS:
            one.warmup_ns.append(self._timed(self.run))
        usual = max(1, median(one.warmup_ns[-WINDOW:]))
        one.passes_per_sample = round(BLOCK_NS / usual) if usual < BLOCK_NS else 1
        self.warm = usual >= LONG_PASS_NS

    def _timed(self, work: Pass) -> int:
        began = self.clock()
        work()
        return self.clock() - began


def _steady(passes_ns: Sequence[int]) -> bool:
    if passes_ns and passes_ns[-1] >= OUTLASTING_NS:
        return True
    if len(passes_ns) < 2 * WINDOW:
        return False
    before, now = passes_ns[-2 * WINDOW : -WINDOW], passes_ns[-WINDOW:]
    return median(now) >= STEADY * median(before)


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
