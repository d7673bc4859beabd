"""The timing loop's decisions, with a clock of the test's own."""

import gc
from collections.abc import Callable, Iterator
from itertools import cycle, repeat

import pytest

from scalebench_lib.measure.timing import Series, TimingLoop

MS = 1_000_000


class FakeMachine:
    """A clock that only passes move; each thread count has its own durations in ns."""

    def __init__(self, durations: dict[int, Iterator[int]]) -> None:
        self.durations = durations
        self.now = 0
        self.threads = 0
        self.switches: list[int] = []
        self.probes: Iterator[int] = repeat(4 * MS)
        self.probed = 0

    def clock(self) -> int:
        """Nanoseconds of passes so far."""
        return self.now

    def switch(self, threads: int) -> None:
        """Note the thread count."""
        self.threads = threads
        self.switches.append(threads)

    def run(self) -> None:
        """Take as long as the next pass takes."""
        self.now += next(self.durations[self.threads])

    def probe(self) -> None:
        """Take as long as the next probe takes."""
        self.probed += 1
        self.now += next(self.probes)


def timed(durations: dict[int, Iterator[int]], **limits: float) -> tuple[list[Series], FakeMachine]:
    """Run the loop on a fake machine with `durations` by thread count."""
    fake = FakeMachine(durations)
    loop = TimingLoop(
        run=fake.run,
        probe=fake.probe,
        switch=fake.switch,
        threads=tuple(durations),
        clock=fake.clock,
        cpu_clock=lambda: 2 * fake.now,
        **{"target_ci": 0.02, "max_seconds": 10, **limits},
    )
    return loop.measure(), fake


def test_a_steady_point_stops_at_its_target() -> None:
    """No more passes than it needs, and not after the time is up."""
    (one,), fake = timed({1: repeat(50 * MS)})
    assert one.stopped_by == "target_ci"
    assert set(one.samples_ns) == {50 * MS}
    assert fake.now < 2_000 * MS


def test_the_cpu_time_is_that_of_the_samples_alone() -> None:
    """Neither of the probes nor of warming up: here two CPUs work all the time."""
    (one,), _ = timed({1: repeat(50 * MS)})
    assert one.cpu_ns == 2 * sum(one.samples_ns)


def test_a_noisy_point_stops_when_its_time_is_up() -> None:
    """And says so."""
    (one,), fake = timed({1: cycle([50 * MS, 90 * MS])}, max_seconds=3)
    assert one.stopped_by == "max_seconds"
    assert 3_000 * MS <= fake.now < 4_000 * MS


def test_two_long_samples_win_over_the_time_limit() -> None:
    """However long a pass takes; shorter ones need three."""
    (one,), _ = timed({1: repeat(20_000 * MS)}, max_seconds=1)
    assert len(one.samples_ns) == 2
    assert one.stopped_by == "max_seconds"
    (one,), _ = timed({1: repeat(900 * MS)}, max_seconds=1)
    assert len(one.samples_ns) == 3


def test_every_sample_has_its_probes_right_before_and_after() -> None:
    """Neighbouring samples share the probe between them."""
    (one,), _ = timed({1: cycle([50 * MS, 90 * MS])}, max_seconds=2)
    assert len(one.probe_before_ns) == len(one.probe_after_ns) == len(one.samples_ns)
    assert set(one.probe_before_ns + one.probe_after_ns) == {4 * MS}


@pytest.mark.parametrize("pass_ms", [2, 40, 300])
def test_probes_take_little_of_the_time(pass_ms: int) -> None:
    """At most 15 %; beside short passes one probe serves several samples."""
    jitter = cycle([int(pass_ms * MS * 0.8), int(pass_ms * MS * 1.2)])
    _, fake = timed({1: jitter}, max_seconds=5, target_ci=0.001)
    assert fake.probed * 4 * MS <= 0.15 * fake.now


def test_a_slow_machine_that_the_probe_explains_does_not_keep_a_point_from_stopping() -> None:
    """Half of the passes are slower, and so are the probes beside them."""

    def speeds() -> Iterator[float]:
        while True:
            yield from [1.0] * 9 + [1.5] * 9

    machine = FakeMachine({})
    slowness = [1.0]
    steps = speeds()

    def passes() -> Iterator[int]:
        while True:
            yield round(50 * MS * slowness[0] ** 0.55)

    def probes() -> Iterator[int]:
        while True:
            slowness[0] = next(steps)
            yield round(4 * MS * slowness[0])

    machine.durations, machine.probes = {1: passes()}, probes()
    loop = TimingLoop(
        machine.run, machine.probe, machine.switch, (1,), 0.05, 20, clock=machine.clock
    )
    (one,) = loop.measure()
    assert one.stopped_by == "target_ci"


def test_passes_below_a_millisecond_are_timed_in_blocks() -> None:
    """Their mean is the sample."""
    (one,), _ = timed({1: repeat(MS // 10)})
    assert one.passes_per_sample == 10
    assert set(one.samples_ns) == {MS // 10}


def test_a_config_that_had_its_long_first_pass_is_warm() -> None:
    """It is not warmed up again."""
    (one,), _ = timed({1: repeat(5_000 * MS)}, warm=True)
    assert one.warmup_ns == []


def test_warm_up_does_not_count() -> None:
    """The slow first passes are kept aside."""
    slow_first = iter([100 * MS, 90 * MS, 80 * MS, 70 * MS, 60 * MS, *[50 * MS] * 1000])
    (one,), _ = timed({1: slow_first})
    assert one.warmup_ns[:5] == [100 * MS, 90 * MS, 80 * MS, 70 * MS, 60 * MS]
    assert max(one.samples_ns) == 50 * MS


def test_a_pass_that_outlasts_a_switch_is_warmed_up_once() -> None:
    """Passes are few then, and what a switch leaves cold is back in milliseconds."""
    series, fake = timed({1: repeat(500 * MS), 2: repeat(300 * MS)})
    assert len(fake.switches) > 4
    assert [len(one.warmup_ns) for one in series] == [1, 1]


def test_long_passes_are_warmed_up_once_for_all_points() -> None:
    """A warm-up of many seconds at each point would double the sweep."""
    series, _ = timed({1: repeat(9_000 * MS), 2: repeat(5_000 * MS), 4: repeat(3_000 * MS)})
    assert sum(len(one.warmup_ns) for one in series) == 1


def test_thread_counts_take_turns() -> None:
    """So that a slow half minute falls on all of them alike."""
    noisy = {n: cycle([50 * MS, 90 * MS]) for n in (1, 2, 4)}
    series, fake = timed(noisy, max_seconds=5)
    rounds = [fake.switches[i : i + 3] for i in range(0, len(fake.switches) - 3, 3)]
    assert len(rounds) >= 5
    assert all(sorted(one) == [1, 2, 4] for one in rounds[:5])
    assert len({tuple(one) for one in rounds}) > 1, "the order is shuffled"
    assert [one.threads for one in series] == [1, 2, 4], "and the result is not"


def test_a_machine_that_slows_down_slows_all_points_alike() -> None:
    """Measured one after another, the second would look half as fast."""

    def drifting(fake: list[FakeMachine]) -> Iterator[int]:
        for noise in cycle([-5, 5]):
            yield (noise + (50 if fake[0].now < 4_000 * MS else 100)) * MS

    box: list[FakeMachine] = []
    fake = FakeMachine({1: drifting(box), 2: drifting(box)})
    box.append(fake)
    loop = TimingLoop(fake.run, fake.probe, fake.switch, (1, 2), 0.001, 4, clock=fake.clock)
    one, two = loop.measure()
    slow = [sum(ns > 70 * MS for ns in s.samples_ns) / len(s.samples_ns) for s in (one, two)]
    assert abs(slow[0] - slow[1]) < 0.2
    assert 0.2 < slow[0] < 0.8


def test_starts_are_told_with_the_samples() -> None:
    """In step, ascending, and no two passes overlap."""
    (one,), _ = timed({1: cycle([50 * MS, 90 * MS])}, max_seconds=2)
    ends = [start + ns for start, ns in zip(one.started_ns, one.samples_ns, strict=True)]
    assert all(end <= start for end, start in zip(ends, one.started_ns[1:], strict=False))


def test_no_garbage_is_collected_meanwhile() -> None:
    """And collection goes on afterwards, as before."""
    seen: list[bool] = []

    def watching() -> Iterator[int]:
        while True:
            seen.append(gc.isenabled())
            yield 50 * MS

    timed({1: watching()})
    assert not any(seen)
    assert gc.isenabled()


def test_the_same_seed_gives_the_same_order() -> None:
    """A sweep can be repeated."""

    def order(seed: int) -> list[int]:
        fake = FakeMachine({n: cycle([50 * MS, 90 * MS]) for n in (1, 2, 3, 4)})
        make: Callable[..., TimingLoop] = TimingLoop
        counts = (1, 2, 3, 4)
        make(
            fake.run, fake.probe, fake.switch, counts, 0.02, 3, seed=seed, clock=fake.clock
        ).measure()
        return fake.switches

    assert order(1) == order(1)
    assert order(1) != order(2)
