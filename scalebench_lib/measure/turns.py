"""Time the passes of turns: one point computes for 0.3 s, everything else stands still.

The sweep's runner asks a `TurnTimer` for turns or, in a trial alone, `take_alone`. The clock is an
argument, for tests.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from scalebench_lib.protocol import TURN_S, EndedBy, PointProgress, TurnResult, end_reason
from scalebench_lib.record import Turn
from scalebench_lib.stats import MIN_TURNS, turns_interval

Say = Callable[[str, float | None], None]  # reports an activity, and the share of it that is done
_NS = 1_000_000_000

MEAN_BELOW_NS = 1_000_000
"""Shorter passes are timed several at once, to hide the cost of reading the clock."""

SHORT_PASS_NS = _NS // 5
"""A turn of longer passes needs no pass to warm up."""

LONG_PASS_NS = _NS
"""One longer pass warms up all thread counts of its config."""

WARMUP_NS = _NS
STEADY = 0.98
WINDOW = 3
"""A point is warm when the median of `WINDOW` passes is at least `STEADY` times that of the
`WINDOW` before, or after `WARMUP_NS`."""


@dataclass(frozen=True)
class CpuCounters:
    """CPU time in ns of this process so far, and the time that others took from it.

    `threads` holds, by thread id, CPU time and time spent ready but without a CPU. `throttled`
    counts the periods in which a quota stopped the process; the hypervisor took `stolen_ns` from
    its CPUs. Empty or None if not known.
    """

    cpu_ns: int
    threads: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    throttled: int | None = None
    stolen_ns: int | None = None

    def since(self, before: CpuCounters) -> dict[str, int | None]:
        """Return the growth since `before`, by the names of the fields of `record.Turn`.

        ``waited_ns`` is the longest wait of a thread: a sum grows with the number of threads.
        """
        waits = [
            waited - before.threads.get(tid, (0, 0))[1] for tid, (_, waited) in self.threads.items()
        ]
        found: dict[str, int | None] = {"waited_ns": max(waits, default=None)}
        for name in ("cpu_ns", "stolen_ns", "throttled"):
            old, new = getattr(before, name), getattr(self, name)
            # The counts of a guest that moved to another host may start again.
            found[name] = None if old is None or new is None else max(0, new - old)
        return found


@dataclass
class PointTurns:
    """The turns and warm-up passes of one point so far, and the time of all, in ns."""

    threads: int
    turns: list[Turn] = field(default_factory=list)
    warmup_ns: list[int] = field(default_factory=list)
    passes_per_sample: int = 1
    spent_ns: int = 0

    def answer(self, spent_ns: int) -> TurnResult:
        """Return the answer to the runner after a turn that took `spent_ns`."""
        samples = [ns for turn in self.turns for ns in turn.samples_ns]
        medians = [turn.median_ns for turn in self.turns]
        half_width = turns_interval(medians).half_width if len(medians) >= MIN_TURNS else None
        return TurnResult(median_ns=median(samples), half_width=half_width, spent_s=spent_ns / _NS)


@dataclass
class TurnTimer:
    """Time `run` at each of `threads`; `switch` sets the number of threads.

    `check` takes the `usage` before and after the samples of a turn, and raises if other threads
    computed. A `warm` config needs no warm-up. `clock` is monotonic, in ns.
    """

    run: Callable[[], object]
    switch: Callable[[int], None]
    threads: Sequence[int]
    usage: Callable[[], CpuCounters] = lambda: CpuCounters(time.process_time_ns())
    check: Callable[[CpuCounters, CpuCounters], None] = lambda before, after: None
    warm: bool = False
    clock: Callable[[], int] = time.perf_counter_ns
    points: dict[int, PointTurns] = field(init=False)

    def __post_init__(self) -> None:
        self.points = {threads: PointTurns(threads) for threads in self.threads}

    def take_turn(self, cycle: int, threads: int, seconds: float = TURN_S) -> TurnResult:
        """Compute passes at `threads` threads for `seconds`, at least one."""
        point, start = self.points[threads], self.clock()
        self.switch(threads)
        gc.disable()  # a collection during a pass would be timed as the model's
        try:
            if not self.warm:
                self._warm_up(point)
            point.turns.append(self._turn(point.passes_per_sample, cycle, round(seconds * _NS)))
        finally:
            gc.enable()
        spent = self.clock() - start
        point.spent_ns += spent
        return point.answer(spent)

    def _turn(self, passes: int, cycle: int, length_ns: int) -> Turn:
        before, start = self.usage(), self.clock()
        samples = tuple(self._samples(passes, start + length_ns))
        after = self.usage()
        self.check(before, after)
        return Turn.model_validate(
            {"cycle": cycle, "start_ns": start, "samples_ns": samples, **after.since(before)}
        )

    def _samples(self, passes: int, end: int) -> Iterator[int]:
        """Yield the mean time in ns of `passes` passes, until `end`."""
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
        """Compute passes until they are steady; before a later turn, one pass if it is short."""
        if point.warmup_ns:
            if point.warmup_ns[-1] < SHORT_PASS_NS:
                point.warmup_ns.extend(self._samples(1, end=0))
            return
        start = self.clock()
        while not _is_steady(point.warmup_ns) and self.clock() - start < WARMUP_NS:
            point.warmup_ns.extend(self._samples(1, end=0))
        usual = max(1, median(point.warmup_ns[-WINDOW:]))
        point.passes_per_sample = round(MEAN_BELOW_NS / usual) if usual < MEAN_BELOW_NS else 1
        self.warm = usual >= LONG_PASS_NS


def take_alone(
    timer: TurnTimer,
    target_ci: float,
    max_seconds: float,
    seed: int = 0,
    say: Say = lambda doing, share: None,
) -> EndedBy:
    """Let the thread counts take turns in shuffled cycles until they are done; return why.

    The rules are those of a block; `max_seconds` is a point's computing time. Each cycle is
    reported to `say`.
    """
    shuffled, progress = random.Random(seed), {n: PointProgress() for n in timer.threads}  # noqa: S311
    for cycle in count(1):
        for threads in shuffled.sample(list(timer.threads), len(timer.threads)):
            progress[threads].add(timer.take_turn(cycle, threads))
        most_s = max_seconds * len(progress)
        left_s = max(0.0, most_s - sum(point.spent_s for point in progress.values()))
        say(f"cycle {cycle}, at most {left_s:.0f} s left", 1 - left_s / most_s)
        if reason := end_reason(progress.values(), target_ci, max_seconds):
            return reason
    raise AssertionError


def _is_steady(passes_ns: Sequence[int]) -> bool:
    if passes_ns and passes_ns[-1] >= SHORT_PASS_NS:
        return True
    before, now = passes_ns[-2 * WINDOW : -WINDOW], passes_ns[-WINDOW:]
    return len(before) == WINDOW and median(now) >= STEADY * median(before)
