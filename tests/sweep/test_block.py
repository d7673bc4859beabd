"""A block's cycles, with trials and a clock of the test's own."""

from collections import Counter
from pathlib import Path

import pytest

from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.record import Record, load_records
from scalebench_lib.stats import MIN_TURNS
from scalebench_lib.sweep.block import Block, Member
from tests.fake_workers import FakeTrials, short

NAME = "0000000b"


def trial(optimization: str = "none", batch_size: int = 1, **more: object) -> Trial:
    """A trial at 1 and 2 threads."""
    config = Config(optimization=optimization, batch_size=batch_size)
    return Trial(config=config, threads=(1, 2), block=NAME, **more)


class Played:
    """A block of `trials`, and what becomes of its members."""

    def __init__(self, trials: FakeTrials, out: Path, seed: str = "") -> None:
        self.block, self.trials, self.out = Block(NAME, seed), trials, out
        self.found: dict[str, Record | str] = {}

    def add(self, *trials: Trial, remeasured: bool = False) -> Member:
        """Set them up. Returns the last one's member."""
        for one in trials:
            process = self.trials(one, self.out, None, None, lambda: False)
            member = self.block.add(process, one.config.group, remeasured)
        return member

    def end(self) -> None:
        """End it."""
        self.found = {short(member.trial): found for member, found in self.block.end()}

    def turns(self) -> list[tuple[int, str, int]]:
        """Cycle, trial and threads of every turn."""
        events = self.trials.events
        return [(one.cycle, one.trial, one.threads) for one in events if one.phase == "turn"]

    def orders(self) -> list[tuple[tuple[str, int], ...]]:
        """The points of each cycle, in the order of their turns."""
        cycles = range(1, self.block.cycle + 1)
        return [tuple(point for n, *point in self.turns() if n == cycle) for cycle in cycles]


@pytest.fixture
def trials() -> FakeTrials:
    """All alike; none of them is ever known well enough."""
    return FakeTrials()


@pytest.fixture
def played(trials: FakeTrials, tmp_path: Path) -> Played:
    """A block that is empty yet."""
    return Played(trials, tmp_path)


def test_each_point_of_a_group_has_a_turn_in_every_cycle(played: Played) -> None:
    """However fast or slow it is."""
    played.trials.pass_s = lambda trial, threads: 2.0 if threads == 1 else 0.01
    played.add(trial("none"), trial("script"))
    played.block.run()
    assert played.block.cycle > 3
    points = sorted([["none", 1], ["none", 2], ["script", 1], ["script", 2]])
    names = [[name.split()[0], threads] for _, name, threads in played.turns()]
    assert sorted(names[:4]) == points
    assert set(Counter(map(tuple, names)).values()) == {played.block.cycle}
    assert all(len(order) == 4 for order in played.orders())


def test_each_cycle_is_shuffled_anew_and_a_seed_gives_the_same_cycles(tmp_path: Path) -> None:
    """A sweep can be repeated."""
    orders = []
    for seed in ("1", "1", "2"):
        played = Played(FakeTrials(), tmp_path, seed)
        played.add(trial("none"), trial("script"), trial("bf16"))
        played.block.run()
        orders.append([tuple(map(tuple, order)) for order in played.orders()])
    assert len(set(orders[0])) > len(orders[0]) // 2
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_group_ends_when_all_of_its_points_are_known(played: Played) -> None:
    """Not before they have had as many turns as tell their noise."""
    played.trials.half_width = lambda trial, threads: 0.01
    played.add(trial("none"), trial("script"))
    played.block.run()
    played.end()
    assert played.block.cycle == MIN_TURNS
    assert {record.ended_by for record in played.found.values()} == {"target_ci"}


def test_one_noisy_point_keeps_its_whole_group_in_turn(played: Played) -> None:
    """All points of a group have equally many turns."""
    played.trials.half_width = lambda trial, threads: (
        0.5 if (trial.config.optimization, threads) == ("script", 2) else 0.01
    )
    played.add(trial("none"), trial("script"))
    played.block.run()
    played.end()
    assert played.block.cycle > MIN_TURNS
    assert {record.ended_by for record in played.found.values()} == {"max_seconds"}
    lengths = {len(p.turns) for record in played.found.values() for p in record.points}
    assert lengths == {played.block.cycle}


def test_the_points_of_a_group_share_their_seconds(played: Played) -> None:
    """A slow one has more of them; the cycle in which they are up is the last."""
    played.trials.pass_s = lambda trial, threads: 3.0 if threads == 1 else 1.0
    played.add(trial("none", max_seconds=9))
    played.block.run()
    assert played.block.cycle == 5  # 2 × 9 s, 4 s a cycle


def test_groups_end_each_in_its_own_time(played: Played) -> None:
    """The others go on without it."""
    played.trials.half_width = lambda trial, threads: 0.5 / trial.config.batch_size**3
    played.add(trial("none", 1), trial("none", 4))
    played.block.run()
    played.end()
    one, four = played.found["none 1"], played.found["none 4"]
    assert (one.ended_by, four.ended_by) == ("max_seconds", "target_ci")
    assert len(four.points[0].turns) == MIN_TURNS < len(one.points[0].turns)


def test_the_time_of_a_base_that_was_measured_before_is_not_counted(played: Played) -> None:
    """Nor is anything asked of how well it is known."""
    played.trials.pass_s = lambda trial, threads: 50.0 if short(trial) == "none 1" else 1.0
    played.add(trial("none"), remeasured=True)
    played.add(trial("script", max_seconds=4))
    played.block.run()
    played.end()
    assert played.block.cycle == 4
    assert all(len(p.turns) == 4 for record in played.found.values() for p in record.points)


def test_a_base_that_is_left_alone_waits_for_nobody(played: Played) -> None:
    """Whom it was set up for has failed; it ends after the cycle."""

    def happens(phase: str, one: Trial, cycle: int) -> None:
        if (phase, short(one), cycle) == ("turn", "script 1", 2):
            raise MeasurementError("no luck")

    played.trials.happens = happens
    played.add(trial("none"), remeasured=True)
    played.add(trial("script"))
    played.block.run()
    played.end()
    assert played.block.cycle == 2
    assert played.found["script 1"] == "no luck"
    assert played.found["none 1"].status == "ok"


def test_a_trial_that_fails_in_a_turn_fails_alone(played: Played) -> None:
    """It is ended at once and has no further turn, not even in this cycle; the rest goes on."""

    def happens(phase: str, one: Trial, cycle: int) -> None:
        if (phase, short(one), cycle) == ("turn", "script 1", 3):
            raise MeasurementError("killed by signal 9 (SIGKILL)")

    played.trials.happens = happens
    played.add(trial("none"), trial("script"), trial("bf16"))
    played.block.take_cycle()
    played.block.take_cycle()
    played.block.take_cycle()
    assert "script 1" in played.trials.did("killed"), "its memory is free"
    played.block.run()
    played.end()
    assert played.found["script 1"] == "killed by signal 9 (SIGKILL)"
    turns = Counter(name for _, name, _ in played.turns())
    assert turns["script 1"] == 2 * 2 + 1
    assert turns["none 1"] == turns["bf16 1"] == 2 * played.block.cycle > 2 * 3
    assert len(load_records(played.out)) == 2


def test_a_trial_that_fails_at_its_end_fails_alone(played: Played) -> None:
    """The others write their records."""

    def happens(phase: str, one: Trial, cycle: int) -> None:
        if (phase, short(one)) == ("end", "script 1"):
            raise MeasurementError("verification failed")

    played.trials.happens = happens
    played.add(trial("none"), trial("script"), trial("bf16"))
    played.block.run()
    played.end()
    assert played.found["script 1"] == "verification failed"
    assert [played.found[name].status for name in ("none 1", "bf16 1")] == ["ok", "ok"]


def test_members_end_as_they_were_set_up(played: Played) -> None:
    """Bases first: a kill among the ends leaves nothing that would have to be measured again."""
    played.add(trial("none"), trial("script"), trial("none", 4), trial("script", 4))
    played.block.run()
    played.end()
    assert played.trials.did("end") == ["none 1", "script 1", "none 4", "script 4"]


def test_a_block_that_is_stopped_keeps_whole_cycles(played: Played) -> None:
    """What is not done is interrupted, what was done before is not."""
    played.trials.half_width = lambda trial, threads: 0.5 / trial.config.batch_size**3
    played.add(trial("none", 1), trial("none", 4))
    played.block.run(lambda: played.block.cycle >= MIN_TURNS + 1)
    played.end()
    assert played.block.cycle == MIN_TURNS + 1
    assert played.found["none 4"].ended_by == "target_ci"
    assert played.found["none 1"].ended_by == "interrupted"


def test_a_block_has_a_cycle_however_early_it_is_stopped(played: Played) -> None:
    """The set-up is spent already."""
    played.add(trial("none"))
    played.block.run(lambda: True)
    assert played.block.cycle == 1


def test_without_a_cycle_nothing_is_kept(played: Played) -> None:
    """Nobody is asked for a record."""
    played.add(trial("none"), trial("script"))
    played.end()
    assert played.found == {}
    assert sorted(played.trials.did("killed")) == ["none 1", "script 1"]
    assert played.trials.alive == []


def test_progress_is_reported_between_turns(played: Played) -> None:
    """With the points so far."""
    seen: list[int] = []
    members = [played.add(trial("none")), played.add(trial("script"))]
    points = [point for member in members for point in member.points.values()]
    played.block.changed = lambda: seen.append(sum(point.turns for point in points))
    played.block.take_cycle()
    assert seen == [1, 2, 3, 4]
    assert {point.median_ns for point in points} == {1e8}


def test_all_that_are_left_can_be_ended_at_once(played: Played) -> None:
    """As where the sweep stops."""
    played.add(trial("none"), trial("script"))
    played.block.kill()
    assert played.trials.alive == []
