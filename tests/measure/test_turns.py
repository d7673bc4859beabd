"""Turns and their passes, with a clock of the test's own."""

import gc
import random
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.turns import WARMUP_NS, CpuCounters, TurnTimer, take_alone
from scalebench_lib.stats import MIN_TURNS

MS = 1_000_000


class FakeProcess:
    """A clock that only passes move; each thread count has its own durations in ns.

    Both of its threads compute all of the time; the first waits for a CPU half as long, the second
    a quarter, and the hypervisor takes a tenth of it.
    """

    def __init__(self, durations: dict[int, Iterator[int]]) -> None:
        self.durations = durations
        self.now = 0
        self.threads = 0
        self.switches: list[int] = []
        self.passes = 0
        self.throttled = 3

    def clock(self) -> int:
        """Nanoseconds of passes so far."""
        return self.now

    def switch(self, threads: int) -> None:
        """Note the thread count."""
        self.threads = threads
        self.switches.append(threads)

    def run(self) -> None:
        """Take as long as the next pass takes."""
        self.passes += 1
        self.now += next(self.durations[self.threads])

    def usage(self) -> CpuCounters:
        """What it has had so far; it is throttled in each turn."""
        self.throttled += 1
        threads = {7: (self.now, self.now // 2), 8: (self.now, self.now // 4)}
        return CpuCounters(2 * self.now, threads, self.throttled, self.now // 10)


def timer(durations: dict[int, Iterator[int]], **more: object) -> tuple[TurnTimer, FakeProcess]:
    """A turn timer in a fake process with `durations` by thread count."""
    fake = FakeProcess(durations)
    made = TurnTimer(fake.run, fake.switch, tuple(durations), clock=fake.clock, **more)
    return made, fake


def drifting(seed: int = 0, middle_ms: int = 50) -> Iterator[int]:
    """Passes of a machine that is never the same: no two turns are alike."""
    draw = random.Random(seed)  # noqa: S311
    while True:
        speed = draw.uniform(0.7, 1.5)
        yield from [round(middle_ms * speed * MS)] * 7


def test_a_turn_computes_for_its_seconds() -> None:
    """The last pass ends it; what is said of the point is the median of its samples."""
    one, _ = timer({1: repeat(40 * MS)})
    answer = one.take_turn(1, 1, seconds=0.3)
    (turn,) = one.points[1].turns
    assert turn.samples_ns == (40 * MS,) * 8
    assert answer.median_ns == 40 * MS
    assert answer.half_width is None


def test_a_turn_has_at_least_one_pass() -> None:
    """However long it takes."""
    one, _ = timer({1: repeat(5_000 * MS)})
    one.take_turn(1, 1, seconds=0.3)
    assert one.points[1].turns[0].samples_ns == (5_000 * MS,)


def test_a_turn_computes_with_the_threads_that_it_is_asked_for() -> None:
    """Each point keeps its own turns, with the numbers of their cycles."""
    one, fake = timer({1: repeat(40 * MS), 2: repeat(20 * MS)})
    for number, threads in ((1, 2), (1, 1), (2, 1), (4, 2)):
        one.take_turn(number, threads)
    assert fake.switches == [2, 1, 1, 2]
    assert [turn.cycle for turn in one.points[1].turns] == [1, 2]
    assert [turn.cycle for turn in one.points[2].turns] == [1, 4]
    assert set(chain(*(turn.samples_ns for turn in one.points[2].turns))) == {20 * MS}


def test_from_some_turns_on_an_answer_tells_how_well_the_point_is_known() -> None:
    """From its turns alone."""
    one, _ = timer({1: drifting()})
    answers = [one.take_turn(number, 1) for number in range(1, MIN_TURNS + 3)]
    assert [answer.half_width is None for answer in answers[:MIN_TURNS]] == [
        *[True] * (MIN_TURNS - 1),
        False,
    ]
    assert 0.05 < answers[-1].half_width < 1


def test_the_time_of_a_turn_includes_its_warm_up() -> None:
    """It is what the turn costs the group."""
    one, fake = timer({1: repeat(40 * MS)})
    answer = one.take_turn(1, 1)
    assert answer.spent_s == fake.now / 1e9 > 0.32
    second = one.take_turn(2, 1)
    assert one.points[1].spent_ns / 1e9 == pytest.approx(answer.spent_s + second.spent_s)


def test_the_first_turn_warms_up_until_passes_are_steady() -> None:
    """The slow first passes are kept aside."""
    slow_first = chain([100 * MS, 90 * MS, 80 * MS, 70 * MS, 60 * MS], repeat(50 * MS))
    one, _ = timer({1: slow_first})
    one.take_turn(1, 1)
    point = one.points[1]
    assert point.warmup_ns[:5] == [100 * MS, 90 * MS, 80 * MS, 70 * MS, 60 * MS]
    assert set(point.turns[0].samples_ns) == {50 * MS}


def test_a_warm_up_ends_where_passes_never_are_steady() -> None:
    """After a second."""
    falling = (round(80 * MS * 0.97**n) + 1000 for n in range(10_000))
    one, _ = timer({1: falling})
    one.take_turn(1, 1)
    assert WARMUP_NS <= sum(one.points[1].warmup_ns) < WARMUP_NS + 80 * MS


def test_a_later_turn_of_short_passes_begins_with_one_that_does_not_count() -> None:
    """Standing still has left caches cold: the first pass is slower."""
    one, _ = timer({1: repeat(40 * MS)})
    one.take_turn(1, 1)
    warm, one.run = len(one.points[1].warmup_ns), _first_slower(one)
    one.take_turn(2, 1)
    assert one.points[1].warmup_ns[warm:] == [80 * MS]
    assert set(one.points[1].turns[1].samples_ns) == {40 * MS}


def _first_slower(one: TurnTimer) -> Callable[[], None]:
    """The run of `one`, whose next pass takes twice as long."""
    run, first = one.run, [True]

    def slower() -> None:
        run()
        if first:
            first.pop()
            run()

    return slower


def test_a_later_turn_of_long_passes_begins_at_once() -> None:
    """A pass of 0.3 s outlasts what is cold, and would be a whole turn."""
    one, fake = timer({1: repeat(300 * MS)})
    one.take_turn(1, 1)
    assert len(one.points[1].warmup_ns) == 1
    before = fake.passes
    one.take_turn(2, 1)
    assert len(one.points[1].warmup_ns) == 1
    assert fake.passes == before + 1


def test_long_passes_are_warmed_up_once_for_all_points() -> None:
    """A warm-up of many seconds at each would double the sweep."""
    one, _ = timer({1: repeat(9_000 * MS), 2: repeat(5_000 * MS), 4: repeat(3_000 * MS)})
    for threads in (4, 1, 2):
        one.take_turn(1, threads)
    assert [len(one.points[n].warmup_ns) for n in (4, 1, 2)] == [1, 0, 0]


def test_a_config_that_had_its_long_first_pass_is_warm() -> None:
    """It is not warmed up again."""
    one, _ = timer({1: repeat(5_000 * MS)}, warm=True)
    one.take_turn(1, 1)
    assert one.points[1].warmup_ns == []


def test_passes_below_a_millisecond_are_timed_several_at_once() -> None:
    """Their mean is the sample: the clock's own cost would show."""
    one, fake = timer({1: repeat(MS // 10)})
    one.take_turn(1, 1)
    point = one.points[1]
    assert point.passes_per_sample == 10
    assert set(point.turns[0].samples_ns) == {MS // 10}
    assert len(point.turns[0].samples_ns) == 300
    assert fake.passes == len(point.warmup_ns) + 3000


def test_a_pass_that_takes_no_time_at_all_has_some_all_the_same() -> None:
    """A record's samples are above 0."""
    fake = FakeProcess({1: repeat(0)})
    ticks = iter(range(0, 10**12, MS))
    one = TurnTimer(fake.run, fake.switch, (1,), clock=lambda: next(ticks) // 1000)
    one.take_turn(1, 1, seconds=0.0)
    assert min(one.points[1].turns[0].samples_ns) >= 1


def test_a_turn_records_what_the_process_has_had_for_its_samples() -> None:
    """CPU time, the longest wait, stolen time, throttled periods: without switch and warm-up."""
    one, fake = timer({1: repeat(40 * MS)})
    one.usage = fake.usage
    for number in (1, 2):
        one.take_turn(number, 1)
    for turn in one.points[1].turns:
        assert turn.cpu_ns == 2 * sum(turn.samples_ns)
        assert turn.waited_ns == sum(turn.samples_ns) // 2
        assert turn.stolen_ns == sum(turn.samples_ns) // 10
        assert turn.throttled == 1


def test_what_the_system_does_not_tell_is_not_recorded() -> None:
    """As outside of Linux."""
    one, _ = timer({1: repeat(40 * MS)}, usage=lambda: CpuCounters(5))
    one.take_turn(1, 1)
    (turn,) = one.points[1].turns
    assert turn.cpu_ns == 0
    assert (turn.waited_ns, turn.stolen_ns, turn.throttled) == (None, None, None)


def test_a_counter_that_begins_anew_has_not_grown() -> None:
    """As after a move to another host: a record holds no time below nought."""
    told = iter((CpuCounters(5, stolen_ns=70), CpuCounters(6, stolen_ns=10)))
    one, _ = timer({1: repeat(40 * MS)}, usage=lambda: next(told))
    one.take_turn(1, 1)
    assert one.points[1].turns[0].stolen_ns == 0


@pytest.mark.parametrize(
    ("threads", "longest"),
    [
        ({7: (20, 5), 8: (3, 2)}, 2),
        ({7: (20, 9), 8: (3, 2)}, 5),
        ({8: (3, 2)}, 2),
        ({}, None),
    ],
)
def test_the_longest_wait_of_any_one_thread_is_told(threads: dict, longest: int | None) -> None:
    """One that begins within the turn has waited from nought; one that has ended is not seen."""
    before = CpuCounters(0, {7: (10, 4)})
    assert CpuCounters(0, threads).since(before)["waited_ns"] == longest


def test_starts_are_told_with_the_samples() -> None:
    """Of one clock: turns do not overlap."""
    one, _ = timer({1: repeat(40 * MS), 2: repeat(30 * MS)})
    for number in (1, 2, 3):
        for threads in (1, 2):
            one.take_turn(number, threads)
    turns = sorted(chain(*(p.turns for p in one.points.values())), key=lambda turn: turn.start_ns)
    ends = [turn.start_ns + sum(turn.samples_ns) for turn in turns]
    assert all(end <= turn.start_ns for end, turn in zip(ends, turns[1:], strict=False))


def test_others_that_compute_end_the_turn() -> None:
    """Its samples would be wrong, so it is not kept."""

    def check(before: CpuCounters, after: CpuCounters) -> None:
        assert before.cpu_ns < after.cpu_ns
        raise MeasurementError("1 more threads computed than the 1 asked for")

    one, fake = timer({1: repeat(40 * MS)}, check=check)
    one.usage = fake.usage
    with pytest.raises(MeasurementError, match="more threads computed"):
        one.take_turn(1, 1)
    assert one.points[1].turns == []


def test_no_garbage_is_collected_meanwhile() -> None:
    """And collection goes on afterwards, as before."""
    seen: list[bool] = []

    def watching() -> Iterator[int]:
        while True:
            seen.append(gc.isenabled())
            yield 50 * MS

    one, _ = timer({1: watching()})
    one.take_turn(1, 1)
    assert not any(seen)
    assert gc.isenabled()


def test_alone_the_thread_counts_take_turns_in_shuffled_cycles() -> None:
    """So that a slow half minute falls on all of them alike; until the time is up."""
    one, fake = timer({n: drifting(n) for n in (1, 2, 4)})
    assert take_alone(one, target_ci=0.0001, max_seconds=5) == "max_seconds"
    cycles = [tuple(fake.switches[at : at + 3]) for at in range(0, len(fake.switches), 3)]
    assert len(cycles) > 5
    assert all(sorted(order) == [1, 2, 4] for order in cycles)
    assert len(set(cycles)) > 1
    assert fake.now >= 3 * 5_000 * MS
    numbers = [[turn.cycle for turn in point.turns] for point in one.points.values()]
    assert numbers == [list(range(1, len(cycles) + 1))] * 3


def test_alone_steady_points_end_at_their_target() -> None:
    """With as many turns as tell their noise."""
    one, _ = timer({1: repeat(50 * MS), 2: repeat(30 * MS)})
    told: list[tuple[str, float | None]] = []
    assert (
        take_alone(one, target_ci=0.02, max_seconds=100, say=lambda *what: told.append(what))
        == "target_ci"
    )
    assert [doing.partition(",")[0] for doing, _ in told] == [
        f"cycle {cycle}" for cycle in range(1, MIN_TURNS + 1)
    ]
    assert 0 < told[0][1] < told[-1][1] < 1
    assert {len(point.turns) for point in one.points.values()} == {MIN_TURNS}


def test_alone_very_long_passes_have_one_cycle() -> None:
    """The time is up then."""
    one, _ = timer({1: repeat(20_000 * MS), 2: repeat(9_000 * MS)})
    assert take_alone(one, target_ci=0.02, max_seconds=5) == "max_seconds"
    assert {len(point.turns) for point in one.points.values()} == {1}


def test_the_same_seed_gives_the_same_order() -> None:
    """A trial can be repeated."""

    def order(seed: int) -> list[int]:
        one, fake = timer({n: drifting(n) for n in (1, 2, 3, 4)})
        take_alone(one, 0.0001, 3, seed)
        return fake.switches

    assert order(1) == order(1)
    assert order(1) != order(2)
