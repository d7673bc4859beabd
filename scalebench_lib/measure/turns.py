"""Turns: passes of one point timed for a moment, while everything else stands still.

`TurnTaker` takes a turn when it is told to, by the sweep's runner or, for a trial alone, by
`take_alone`. The clock is an argument: tests bring their own.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from scalebench_lib.protocol import TURN_S, Answer, EndedBy, Progress, ended_by
from scalebench_lib.record import Turn
from scalebench_lib.stats import MIN_TURNS, turns_interval

Clock = Callable[[], int]

_NS = 1_000_000_000

MEAN_BELOW_NS = 1_000_000
"""Passes shorter than this are timed several at once: the clock's own cost would show."""

SHORT_PASS_NS = _NS // 5
"""A longer pass outlasts what standing still leaves cold: a turn needs no pass to warm up."""

LONG_PASS_NS = _NS
"""From here on the first pass of a config warms up all its thread counts."""

WARMUP_NS = _NS
STEADY = 0.98
WINDOW = 3
"""Warm when `WINDOW` passes take no less than `STEADY` times those before; or after `WARMUP_NS`."""


@dataclass(frozen=True)
class Usage:
    """What the process has had so far, in ns: CPU time, and of each thread by its id its CPU time
    and how long it waited for a CPU; `throttled` are periods in which a quota stopped it, and
    `stolen_ns` is what the hypervisor took from its CPUs. Empty or None: the system does not tell.
    """

    cpu_ns: int
    threads: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    throttled: int | None = None
    stolen_ns: int | None = None

    def waited_since(self, before: Usage) -> int | None:
        """The longest that any one thread waited for a CPU since `before`.

        A sum would mean nothing: of many threads each waits a little.
        """
        never = (0, 0)
        waits = [
            waited - before.threads.get(tid, never)[1] for tid, (_, waited) in self.threads.items()
        ]
        return max(waits, default=None)


def _grown(before: int | None, now: int | None) -> int | None:
    """By how much a counter has grown; None where it is not told."""
    if before is None or now is None:
        return None
    return max(0, now - before)  # a guest that was moved to another host may count anew


@dataclass
class PointTurns:
    """The turns of one point so far."""

    threads: int
    turns: list[Turn] = field(default_factory=list)
    warmup_ns: list[int] = field(default_factory=list)
    passes_per_sample: int = 1
    spent_ns: int = 0

    def answer(self, spent_ns: int) -> Answer:
        """What is known of the point after a turn of `spent_ns`."""
        samples = [ns for turn in self.turns for ns in turn.samples_ns]
        known = len(self.turns) >= MIN_TURNS
        interval = turns_interval([turn.median_ns for turn in self.turns]) if known else None
        return Answer(
            median_ns=median(samples),
            half_width=interval.half_width if interval else None,
            spent_s=spent_ns / _NS,
        )


@dataclass
class TurnTaker:
    """Times `run` at each of `threads`; `switch` makes the process compute with that many.

    `warm` says that the config has had its long first pass. `clock` gives ns and must be
    monotonic; `usage` tells what the process has had, and `check` gets that before and after the
    samples of a turn, to raise where others have computed than should.
    """

    run: Callable[[], object]
    switch: Callable[[int], None]
    threads: Sequence[int]
    usage: Callable[[], Usage] = lambda: Usage(time.process_time_ns())
    check: Callable[[Usage, Usage], None] = lambda before, after: None
    warm: bool = False
    clock: Clock = time.perf_counter_ns
    points: dict[int, PointTurns] = field(init=False)

    def __post_init__(self) -> None:
        self.points = {threads: PointTurns(threads) for threads in self.threads}

    def take(self, cycle: int, threads: int, seconds: float = TURN_S) -> Answer:
        """Take a turn: passes at `threads` threads for `seconds`, at least one."""
        point, start = self.points[threads], self.clock()
        self.switch(threads)
        with _garbage_held_off():
            if not self.warm:
                self._warm_up(point)
            point.turns.append(self._turn(point, cycle, round(seconds * _NS)))
        spent = self.clock() - start
        point.spent_ns += spent
        return point.answer(spent)

    def _turn(self, point: PointTurns, cycle: int, length_ns: int) -> Turn:
        before, start = self.usage(), self.clock()
        samples = list(self._samples(point.passes_per_sample, start + length_ns))
        after = self.usage()
        self.check(before, after)
        return Turn(
            cycle=cycle,
            start_ns=start,
            samples_ns=tuple(samples),
            cpu_ns=max(0, after.cpu_ns - before.cpu_ns),
            waited_ns=after.waited_since(before),
            stolen_ns=_grown(before.stolen_ns, after.stolen_ns),
            throttled=_grown(before.throttled, after.throttled),
        )

    def _samples(self, passes: int, end: int) -> Iterator[int]:
        run, clock, repeats = self.run, self.clock, range(passes)
        while True:
            began = clock()
            for _ in repeats:
                run()
            ended = clock()
            yield max(1, (ended - began) // passes)
            if ended >= end:
                return

    def _warm_up(self, point: PointTurns) -> None:
        """Once until steady; before later turns one short pass: caches and threads come back."""
        if point.warmup_ns:
            if point.warmup_ns[-1] < SHORT_PASS_NS:
                point.warmup_ns.append(self._timed_pass())
            return
        start = self.clock()
        while not _steady(point.warmup_ns) and self.clock() - start < WARMUP_NS:
            point.warmup_ns.append(self._timed_pass())
        usual = max(1, median(point.warmup_ns[-WINDOW:]))
        point.passes_per_sample = round(MEAN_BELOW_NS / usual) if usual < MEAN_BELOW_NS else 1
        self.warm = usual >= LONG_PASS_NS

    def _timed_pass(self) -> int:
        began = self.clock()
        self.run()
        return self.clock() - began


def take_alone(taker: TurnTaker, target_ci: float, max_seconds: float, seed: int = 0) -> EndedBy:
    """Let the thread counts take turns in shuffled cycles until they are done; returns by what.

    As a runner does with the points of a block; `max_seconds` is a point's computing time.
    """
    shuffled, progress = random.Random(seed), {n: Progress() for n in taker.threads}  # noqa: S311
    for cycle in count(1):
        for threads in shuffled.sample(list(taker.threads), len(taker.threads)):
            progress[threads].add(taker.take(cycle, threads))
        if reason := ended_by(progress.values(), target_ci, max_seconds):
            return reason
    raise AssertionError


def _steady(passes_ns: Sequence[int]) -> bool:
    if passes_ns and passes_ns[-1] >= SHORT_PASS_NS:
        return True
    if len(passes_ns) < 2 * WINDOW:
        return False
    before, now = passes_ns[-2 * WINDOW : -WINDOW], passes_ns[-WINDOW:]
    return median(now) >= STEADY * median(before)


@contextmanager
def _garbage_held_off() -> Iterator[None]:
    """No collection during a pass: it would be timed as the model's."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
