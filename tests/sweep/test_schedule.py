"""What is left of a sweep, by its records; in which order, and how long it takes."""

from pathlib import Path

import pytest

from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.record import Record, Setup
from scalebench_lib.sweep.schedule import TRIAL_S, DurationForecast, Schedule, schedules_by_host
from tests.factories import machine, measured, save_sweep

SMALL = machine(cores=2, smt=False)
SWEEP = Sweep(batch_sizes=(1, 4), optimizations=("none", "script", "bf16"), rounds=2)

OLD_SWEEP = Path(__file__).parents[1] / "old_sweep"


def record(optimization: str, batch_size: int, number: int, block: str, **more: object) -> Record:
    """Of a trial that went well, in a block of this name."""
    config = Config(optimization=optimization, batch_size=batch_size)
    change = {"trial": number, "round": number, "block": block.rjust(8, "0"), **more}
    return measured(config, SMALL).model_copy(update=change)


def failed(optimization: str, batch_size: int, number: int, block: str, reason: str) -> Record:
    """Of a trial that failed."""
    more = {"status": "failed", "reason": reason, "points": (), "ended_by": None}
    return record(optimization, batch_size, number, block, **more)


def schedule(*records: Record, sweep: Sweep = SWEEP, retry: frozenset[str] = frozenset()):
    """Of `sweep`, with these records."""
    return Schedule(sweep, SMALL, records, retry)


def names(trials: list[Trial]) -> list[str]:
    """Optimization and batch size of each."""
    return [f"{one.config.optimization} {one.config.batch_size}" for one in trials]


def whole(batch_size: int, number: int, block: str) -> list[Record]:
    """A whole group."""
    return [record(name, batch_size, number, block) for name in SWEEP.optimizations]


def test_smaller_batches_are_set_up_first_and_in_each_the_base() -> None:
    """The rest is shuffled, in each round anew."""
    sweep = Sweep(
        batch_sizes=(8, 1, 4), optimizations=("script", "compile", "bf16", "none"), rounds=9
    )
    orders = [names(schedule(sweep=sweep).pending(number)) for number in range(1, 10)]
    for order in orders:
        assert [order[at] for at in (0, 4, 8)] == ["none 1", "none 4", "none 8"]
        assert sorted(order[1:4]) == ["bf16 1", "compile 1", "script 1"]
    assert len({tuple(order) for order in orders}) > 3
    assert orders[0] == names(schedule(sweep=sweep).pending(1)), "the seed decides"


def test_a_group_without_eager_has_a_base_all_the_same() -> None:
    """The first of what it has, in the order of the words."""
    sweep = SWEEP.model_copy(update={"optimizations": ("bf16", "script")})
    found = schedule(sweep=sweep)
    assert {found.base(one).config.optimization for one in found.trials} == {"script"}
    assert names(found.pending(1))[0] == "script 1"


def test_a_round_is_done_when_each_has_a_record_in_a_block_with_its_base() -> None:
    """Then the next one is left, in full."""
    found = schedule(*whole(1, 1, "a"), *whole(4, 1, "a"))
    assert found.pending(1) == []
    assert len(found.pending(2)) == len(found.left) == 6
    found = schedule(*whole(1, 1, "a"), *whole(4, 1, "a"), *whole(1, 2, "b"), *whole(4, 2, "c"))
    assert (found.left, found.pending(2), len(found.done)) == ([], [], 6)


def test_what_was_interrupted_is_left() -> None:
    """It is measured once more; what ended before in the same block is not."""
    early = [record(n, 4, 1, "a", ended_by="interrupted") for n in SWEEP.optimizations]
    assert sorted(names(schedule(*whole(1, 1, "a"), *early).pending(1))) == sorted(
        ["none 4", "script 4", "bf16 4"]
    )


def test_a_trial_without_its_base_is_left_where_the_base_can_be_had() -> None:
    """Such as after a kill between records, or where records were taken away."""
    others = [record("script", 1, 1, "a"), record("bf16", 1, 1, "a")]
    assert "none 1" in names(schedule(*others).pending(1))
    base_elsewhere = record("none", 1, 1, "b")
    assert sorted(names(schedule(*others, base_elsewhere).pending(1)))[:2] == ["bf16 1", "bf16 4"]
    assert "script 1" in names(schedule(*others, base_elsewhere).pending(1))
    both = [record("script", 1, 2, "b"), record("bf16", 1, 2, "b")]
    left = names(schedule(*others, base_elsewhere, *both).pending(1))
    assert left[0] == "none 4", "batch 1 is done"


def test_where_the_base_never_went_well_the_rest_does_not_wait_for_it() -> None:
    """Its failure is told once."""
    others = [record("script", 1, 1, "a"), record("bf16", 1, 1, "a")]
    found = schedule(failed("none", 1, 1, "a", "no luck"), *others)
    assert not {"none 1", "script 1", "bf16 1"} & set(names(found.pending(1)))
    assert [one.reason for _, one in found.failed] == ["no luck"]


def test_a_trial_alone_in_its_block_is_done_unpaired() -> None:
    """It does not fit into memory beside its base."""
    alone = [record("none", 1, 1, "a"), record("script", 1, 1, "b"), record("bf16", 1, 1, "a")]
    assert names(schedule(*alone).pending(1))[0] == "none 4"


def test_a_trial_whose_base_died_beside_it_is_not_alone() -> None:
    """It is measured again, beside a base that lives."""
    beside = [failed("none", 1, 2, "b", "killed by signal 9"), record("script", 1, 1, "b")]
    assert "script 1" in names(schedule(record("none", 1, 1, "a"), *beside).pending(1))


def test_what_failed_in_its_block_does_not_make_a_trial_less_alone() -> None:
    """Its base was not there either way."""
    records = [record("none", 1, 1, "a"), failed("bf16", 1, 1, "b", "no luck")]
    assert "script 1" not in names(schedule(*records, record("script", 1, 1, "b")).pending(1))


def test_a_trial_that_lacks_a_thread_count_is_left() -> None:
    """Thread counts may be added later."""
    sweep = SWEEP.model_copy(update={"threads": (1,)})
    old = [r.model_copy(update={"points": r.points[:1]}) for r in whole(1, 1, "a")]
    assert "none 1" not in names(schedule(*old, sweep=sweep).pending(1))
    assert names(schedule(*old).pending(1))[0] == "none 1"


def test_what_failed_is_left_alone_unless_it_is_retried() -> None:
    """The last record counts."""
    records = [*whole(1, 1, "a"), failed("script", 1, 2, "b", "no luck")]
    assert "script 1" not in names(schedule(*records).left)
    again = schedule(*records, retry=frozenset({records[-1].config_id}))
    assert "script 1" in names(again.pending(2))
    assert "script 1" not in names(again.pending(1)), "its first round went well"
    assert schedule(*records, record("script", 1, 3, "c")).failed == [], "it failed, but not last"


@pytest.mark.parametrize("reason", ["out of memory: told so", "killed by signal 9 (SIGKILL)"])
def test_larger_batches_are_not_tried_after_a_smaller_one_died(reason: str) -> None:
    """Of the same model and optimization; an SMT on or off makes no difference."""
    found = schedule(failed("script", 1, 1, "a", reason))
    assert "script 4" in names(found.left)
    by_name = dict(zip(names(found.trials), found.trials, strict=True))
    told = f"batch 1 ended so: {reason.partition(':')[0]}"
    assert found.skip_reason(by_name["script 4"]) == told
    assert found.skip_reason(by_name["none 4"]) is None
    assert found.skip_reason(by_name["script 1"]) is None
    measured_before = schedule(failed("script", 1, 1, "a", reason), record("script", 4, 1, "a"))
    assert measured_before.skip_reason(by_name["script 4"]) is None


def test_other_failures_say_nothing_of_larger_batches() -> None:
    """They are tried."""
    found = schedule(failed("script", 1, 1, "a", "verification failed"))
    assert all(found.skip_reason(one) is None for one in found.trials)


def test_a_group_whose_cycle_costs_more_than_all_its_time_has_one_round() -> None:
    """Of which a page says that it is coarse."""
    sweep = SWEEP.model_copy(update={"max_seconds": 0.01})
    found = schedule(*whole(1, 1, "a"), *whole(4, 1, "a"), sweep=sweep)
    assert found.left == []
    found = schedule(*whole(1, 1, "a"), *whole(4, 1, "a"))
    assert len(found.left) == 6


def test_a_later_round_is_not_skipped_for_what_is_known() -> None:
    """Only fresh processes tell how processes differ."""
    known = [one.model_copy(update={"ended_by": "target_ci"}) for one in whole(1, 1, "a")]
    assert names(schedule(*known).pending(2))[0] == "none 1"


def test_nothing_of_the_old_schema_counts() -> None:
    """It knew no blocks."""
    found = schedules_by_host(OLD_SWEEP)[None]
    assert found.done == []
    assert len(found.left) == 8


def test_time_is_told_from_what_was_seen_at_the_nearest_batch_size() -> None:
    """Beside the turns, and in them, of which one is never cut short."""
    one = Trial(config=Config(batch_size=1), threads=(1, 2), max_seconds=5)
    large = one.model_copy(update={"config": Config(batch_size=64)})
    pace = DurationForecast()
    assert pace.trial_s(one) == TRIAL_S + 2 * 5
    pace.setups[1] += [2.0, 4.0]
    pace.turns[1].append(1.3)
    assert pace.turns_s(one) == 10
    assert pace.trial_s(one) == 3.0 + 10
    assert pace.trial_s(large) == 3.0 * 64 + pace.turns_s(large)
    assert pace.turns_s(large) == pytest.approx(2 * (1.3 + 63 * 1.0))


def test_the_pace_is_learned_from_records() -> None:
    """So that a sweep that goes on knows it at once."""
    setup = Setup(build_s=1, optimize_s=2, first_pass_s=3)
    pace = DurationForecast([one.model_copy(update={"setup": setup}) for one in whole(1, 1, "a")])
    assert pace.setups == {1: [6 + TRIAL_S / 2] * 3}
    assert len(pace.turns[1]) == 6


def test_a_sweep_in_a_folder_tells_what_is_left(tmp_path: Path) -> None:
    """By its own ``sweep.yaml``, as the machine of its records."""
    save_sweep(tmp_path, [record("none", 1, 1, "a")])
    assert names(schedules_by_host(tmp_path)[None].left) == ["script 1"]
