"""Rounds of blocks: what is set up together, what is left of it by any fault, and how it goes on.

All with trials that take no time, and a clock of the test's own.
"""

import errno
import math
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.record import Record, Software, load_records, model_files_digest
from scalebench_lib.sweep import sweep_run as run_module
from scalebench_lib.sweep.locks import lock_folder, lock_machine
from scalebench_lib.sweep.runner import StopRequest, SweepProgress, run_rounds
from scalebench_lib.sweep.schedule import END_S, TRIAL_S
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.factories import SOFTWARE, machine, measured, save_sweep
from tests.fake_workers import (
    SMALL,
    SWEEP,
    FakeKernels,
    FakeTrial,
    FakeTrials,
    Happens,
    Killed,
    at,
    quiet,
    short,
    short_of,
)
from tests.fake_workers import run_fakes as run

ALL = ["none 1", "script 1", "bf16 1", "none 4", "script 4", "bf16 4"]


def counting(records: list[Record]) -> Counter[str]:
    """How many whole trials each config has."""
    whole = [one for one in records if one.status == "ok" and one.ended_by != "interrupted"]
    return Counter(f"{one.config.optimization} {one.config.batch_size}" for one in whole)


def status(records: list[Record]) -> dict[str, str]:
    """The last status of each config."""
    return {f"{one.config.optimization} {one.config.batch_size}": one.status for one in records}


def require_paired(records: list[Record]) -> None:
    """Every trial that went well met its base in its block."""
    for record in records:
        together = [one for one in records if one.block == record.block and one.status == "ok"]
        bases = {one.config for one in together if one.config.optimization == "none"}
        assert record.config.group in bases, record.name


# What a round measures, in which order


def test_a_sweep_measures_every_config_once_a_round(trials: FakeTrials, tmp_path: Path) -> None:
    """Each time in a block with all others, in a fresh process."""
    records = run(trials, tmp_path)
    assert counting(records) == Counter(dict.fromkeys(ALL, 2))
    assert records == sorted(load_records(tmp_path), key=lambda r: records.index(r))
    assert len({record.block for record in records}) == 2
    assert {(r.trial, r.round) for r in records} == {(1, 1), (2, 2)}
    assert {r.ended_by for r in records} == {"max_seconds"}
    require_paired(records)
    assert trials.alive == []


def test_a_block_is_set_up_before_its_first_turn_smaller_batches_and_bases_first(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """The rest of a batch size is shuffled."""
    sweep = SWEEP.model_copy(update={"rounds": 8})
    run(trials, tmp_path, sweep)
    blocks = trials.blocks()
    assert len(blocks) == 8
    for block in blocks:
        assert sorted(block) == sorted(ALL)
        assert (block[0], block[3]) == ("none 1", "none 4")
        assert set(block[1:3]) == {"script 1", "bf16 1"}
    assert len({tuple(block) for block in blocks}) > 1


def test_all_points_of_a_group_have_equally_many_turns(trials: FakeTrials, tmp_path: Path) -> None:
    """In the cycles that they were in together."""
    trials.pass_s = lambda trial, threads: 0.02 * trial.config.batch_size**2 / threads
    records = run(trials, tmp_path)
    for block in {record.block for record in records}:
        for size in (1, 4):
            group = [r for r in records if (r.block, r.config.batch_size) == (block, size)]
            cycles = {tuple(t.cycle for t in p.turns) for r in group for p in r.points}
            assert len(cycles) == 1


def test_only_the_first_trial_of_a_config_is_thorough(trials: FakeTrials, tmp_path: Path) -> None:
    """Later ones would tell the same."""
    seen: list[tuple[str, int, bool]] = []

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "set up":
            seen.append((short(trial), trial.number, trial.thorough))

    trials.happens = happens
    run(trials, tmp_path)
    assert {thorough for _, number, thorough in seen if number == 1} == {True}
    assert {thorough for _, number, thorough in seen if number == 2} == {False}


def test_the_seconds_of_a_point_are_shared_by_the_rounds(trials, tmp_path: Path) -> None:
    """2 s in two rounds: a second each, in turns of 0.3 s."""
    records = run(trials, tmp_path)
    assert {len(point.turns) for record in records for point in record.points} == {4}


def test_a_group_whose_cycle_costs_all_its_time_is_measured_in_one_round(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """And stays coarse."""
    trials.pass_s = lambda trial, threads: 0.1 if trial.config.batch_size == 1 else 9.0
    counted = counting(run(trials, tmp_path))
    assert [counted[name] for name in ALL] == [2, 2, 2, 1, 1, 1]
    assert run(trials, tmp_path) == []


def test_what_is_done_is_not_measured_again(trials: FakeTrials, tmp_path: Path) -> None:
    """The same command has nothing left to do."""
    run(trials, tmp_path)
    trials.events.clear()
    assert run(trials, tmp_path) == []
    assert trials.events == []


@pytest.mark.parametrize(
    ("added", "again"),
    [
        ({"optimizations": ("none", "script", "bf16", "compile")}, ["none 1", "none 4"]),
        ({"optimizations": ("compile",)}, ["none 1", "none 4"]),
        ({"batch_sizes": (1, 4, 8)}, []),
        ({"allocators": ("default", "tcmalloc")}, ["none 1", "none 4"]),
    ],
)
def test_what_is_added_later_brings_its_base_again(
    trials: FakeTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: dict, again: list
) -> None:
    """In each round; nothing else is measured again."""
    monkeypatch.setattr(run_module, "require_installed", lambda _: None)
    first = SWEEP.model_copy(update={"optimizations": ("none", "script", "bf16")})
    before = run(trials, tmp_path, first)
    merged = first.merged(first.model_copy(update=added))
    new = run(trials, tmp_path, merged)
    ids = {record.config_id for record in before}
    assert Counter(r.config_id in ids for r in new)[True] == 2 * len(again)
    assert {short_of(r) for r in new if r.config_id in ids} == set(again)
    require_paired([*before, *new])


# How large a block is


def test_a_block_is_full_where_the_next_trial_does_not_fit_into_memory(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """The next block brings the base of what is left."""
    trials.peak, trials.memory = lambda trial: 300, 700
    records = run(trials, tmp_path, SWEEP.model_copy(update={"rounds": 1}))
    blocks = trials.blocks()
    assert [len(block) for block in blocks] == [2, 2, 2, 2]
    assert [block[0] for block in blocks] == ["none 1", "none 1", "none 4", "none 4"]
    require_paired(records)
    assert set(counting(records)) == set(ALL)


def test_a_trial_that_does_not_fit_beside_its_base_runs_alone_and_is_done(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """Unpaired, and with nobody else."""
    trials.peak, trials.memory = lambda trial: 600 if trial.config.batch_size == 4 else 10, 1000
    sweep = SWEEP.model_copy(update={"optimizations": ("none", "script")})
    records = run(trials, tmp_path, sweep)
    assert set(counting(records).values()) == {2}
    for record in records:
        others = {short_of(one) for one in records if one.block == record.block}
        assert short_of(record) != "script 4" or others == {"script 4"}
    assert run(trials, tmp_path, sweep) == []


def test_nobody_joins_a_trial_that_does_not_fit_beside_its_base(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """Not even a smaller one: alone is how an unpaired trial is known."""
    trials.peak, trials.memory = lambda trial: 600 if trial.config.seq_len == 128 else 100, 1000
    lengths = {"batch_sizes": (1,), "seq_lens": (16, 128), "optimizations": ("none", "script")}
    sweep = Sweep(**lengths, rounds=6, max_seconds=12)
    records = run(trials, tmp_path, sweep)
    counted = Counter(record.config_id for record in records if record.config.seq_len == 128)
    assert set(counted.values()) == {6}
    assert run(trials, tmp_path, sweep) == []


def test_a_trial_alone_is_always_tried(trials: FakeTrials, tmp_path: Path) -> None:
    """However much it held before: the system may have more to give."""
    trials.peak, trials.memory = lambda trial: 5000, 1000
    records = run(trials, tmp_path)
    assert set(counting(records)) == set(ALL)
    assert len({record.block for record in records}) == len(records)


def test_a_block_that_would_last_too_long_is_not_begun(trials: FakeTrials, tmp_path: Path) -> None:
    """The first trial beside its base is taken all the same."""
    sweep = SWEEP.model_copy(update={"max_seconds": 100.0, "rounds": 1, "batch_sizes": (1,)})
    trials.half_width = lambda trial, threads: 0.01
    records = run(trials, tmp_path, sweep)
    blocks = [sorted(one) for one in trials.blocks() if one]
    assert len(blocks) == 2
    assert all(len(block) == 2 and "none 1" in block for block in blocks)
    require_paired(records)


def test_short_trials_share_a_block(trials: FakeTrials, tmp_path: Path) -> None:
    """As many as 300 s hold."""
    sizes = (1, 2, 4, 8, 16, 32, 64, 128)
    sweep = Sweep(batch_sizes=sizes, optimizations=("none",), max_seconds=60, rounds=1)
    run(trials, tmp_path, sweep)
    assert [len(block) for block in trials.blocks() if block] == [2, 2, 2, 2]
    trials.events.clear()
    run(trials, tmp_path / "short", sweep.model_copy(update={"max_seconds": 10.0}))
    assert [len(block) for block in trials.blocks() if block] == [8]


# Faults


@pytest.mark.parametrize("phase", ["set up", "turn", "end"])
@pytest.mark.parametrize("name", ["script 1", "none 4"])
def test_a_trial_that_fails_fails_alone(trials, tmp_path: Path, phase: str, name: str) -> None:
    """Its record says why; the block goes on, and so does the sweep."""
    trials.happens = at(phase, name, MeasurementError("no luck"))
    records = run(trials, tmp_path)
    assert [(r.reason, short_of(r)) for r in records if r.status == "failed"] == [("no luck", name)]
    counted = counting(records)
    others = [one for one in ALL if one != name and not (name == "none 4" and one.endswith("4"))]
    assert all(counted[one] == 2 for one in others)
    assert counted[name] == 0, "what failed is left alone, in later rounds too"


def test_a_failed_trial_that_wrote_its_own_record_keeps_it(trials, tmp_path: Path) -> None:
    """It tells more than we could."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if (phase, short(trial)) == ("set up", "script 1"):
            why = "its own words"
            record = Record.of(
                trial,
                machine=SMALL,
                software=SOFTWARE,
                status="failed",
                reason=why,
                started=measured_at,
            )
            record.save(tmp_path / "records")
            raise MeasurementError("ours")

    measured_at = measured(Config(), SMALL).started
    trials.happens = happens
    records = run(trials, tmp_path, SWEEP.model_copy(update={"rounds": 1}))
    assert [r.reason for r in records if r.status == "failed"] == ["its own words"]
    assert len(load_records(tmp_path)) == len(records) == 6


def test_a_hang_is_what_the_trial_says_it_is(trials: FakeTrials, tmp_path: Path) -> None:
    """The limit goes to each trial."""
    limits: list[float | None] = []
    prepared = SweepRun.prepare(SWEEP, tmp_path)
    prepared.trial_timeout = 7.0

    def start(trial, out, kernels, limit_s, stopping):
        limits.append(limit_s)
        return trials(trial, out, kernels, limit_s, stopping)

    prepared.start, prepared.kernels = start, FakeKernels()
    trials.happens = at("turn", "bf16 1", MeasurementError("not done after 7 s, its time limit"))
    run_rounds([prepared], quiet)
    assert set(limits) == {7.0}
    assert status(prepared.records)["bf16 1"] == "failed"


@pytest.mark.parametrize("reason", ["out of memory: told so", "killed by signal 9 (SIGKILL)"])
def test_a_larger_batch_is_skipped_in_the_round_in_which_a_smaller_one_died(
    trials: FakeTrials, tmp_path: Path, reason: str
) -> None:
    """It would die too; nothing is set up for it."""
    trials.happens = at("set up", "script 1", MeasurementError(reason))
    records = run(trials, tmp_path)
    assert status(records)["script 4"] == "skipped"
    assert "script 4" not in trials.did("set up")
    assert [r.reason for r in records if r.status == "skipped"] == [
        f"batch 1 ended so: {reason.partition(':')[0]}"
    ]
    assert counting(records) == Counter({n: 2 for n in ALL if not n.startswith("script")})


def test_what_was_skipped_is_tried_when_the_smaller_one_is_retried_well(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """By ``--retry-failed``."""
    trials.happens = at("set up", "script 1", MeasurementError("killed by signal 9 (SIGKILL)"))
    run(trials, tmp_path)
    records = run(trials, tmp_path, retry_failed=True)
    assert set(status(records).values()) == {"ok"}
    everything = load_records(tmp_path)
    require_paired([one for one in everything if one.status == "ok"])
    counted = counting(everything)
    assert (counted["script 1"], counted["script 4"], counted["bf16 1"]) == (2, 2, 2)


def test_what_failed_is_retried_once_not_in_every_round(trials, tmp_path: Path) -> None:
    """It would fail again."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "set up" and short(trial) == "script 1":
            raise MeasurementError("no luck")

    trials.happens = happens
    run(trials, tmp_path)
    again = run(trials, tmp_path, retry_failed=True)
    assert trials.did("set up").count("script 1") == 2
    assert [(r.trial, r.kernel) for r in again if r.status == "failed"] == [(2, "warm")]


def test_a_later_trial_that_failed_is_retried_too(trials: FakeTrials, tmp_path: Path) -> None:
    """Though the first one went well; its base comes along."""
    left = [1]

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if (phase, short(trial), trial.round) == ("turn", "script 1", 2) and left:
            left.pop()
            raise MeasurementError("no luck")

    trials.happens = happens
    run(trials, tmp_path)
    again = run(trials, tmp_path, retry_failed=True)
    assert sorted(map(short_of, again)) == ["none 1", "script 1"]
    assert counting(load_records(tmp_path))["script 1"] == 2


def test_a_base_that_fails_is_had_again_as_soon_as_something_needs_it(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """It went well before: what lacked it is measured once more, beside it."""
    left = [1]

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if (phase, short(trial), trial.round) == ("turn", "none 1", 2) and left:
            left.pop()
            raise MeasurementError("killed by signal 9 (SIGKILL)")

    sweep = SWEEP.model_copy(update={"optimizations": ("none", "script"), "batch_sizes": (1,)})
    trials.happens = happens
    run(trials, tmp_path, sweep)
    again = run(trials, tmp_path, sweep)
    assert sorted(map(short_of, again)) == ["none 1", "script 1"]
    assert run(trials, tmp_path, sweep) == []


def test_a_full_disk_stops_the_sweep_in_one_line_and_it_goes_on_later(trials, tmp_path) -> None:
    """No failed record is left for what was not the config's fault."""
    trials.happens = at("end", "script 4", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ScalebenchError, match=r"stopped: .*No space left on device") as caught:
        run(trials, tmp_path)
    assert "\n" not in str(caught.value)
    assert trials.alive == []
    assert {record.status for record in load_records(tmp_path)} == {"ok"}
    run(trials, tmp_path)
    require_resumed(load_records(tmp_path))


def require_resumed(records: list[Record]) -> None:
    """Every config has all its rounds, none is doubled but bases, and all met their base."""
    counted = counting(records)
    assert set(counted) == set(ALL)
    assert all(count == 2 for name, count in counted.items() if not name.startswith("none"))
    assert all(count in (2, 3) for count in counted.values())
    require_paired(records)


@pytest.mark.parametrize(
    ("phase", "name", "cycle"),
    [
        ("set up", "none 1", 0),
        ("set up", "bf16 4", 0),
        ("turn", "none 1", 1),
        ("turn", "script 4", 3),
        ("end", "none 1", 0),
        ("end", "none 4", 0),
        ("end", "script 1", 0),
        ("end", "bf16 4", 0),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_sweep_that_was_killed_goes_on(
    trials: FakeTrials, tmp_path: Path, phase: str, name: str, cycle: int, number: int
) -> None:
    """In any phase of any round: at most the block in flight is measured again."""
    kill = at(phase, name, Killed(), cycle)
    trials.happens = lambda now, trial, n: kill(now, trial, n) if trial.round == number else None
    with pytest.raises(Killed):
        run(trials, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("records/*.json")}
    run(trials, tmp_path)
    require_resumed(load_records(tmp_path))
    assert all(path.read_bytes() == text for path, text in before.items())
    assert run(trials, tmp_path) == []


# Ends that somebody asked for


@pytest.mark.usefixtures("heeding_interrupts")
def test_an_interrupt_in_a_cycle_ends_the_block_with_it(trials: FakeTrials, tmp_path: Path) -> None:
    """Its records are kept, say so, and are measured once more when the sweep goes on."""
    trials.happens = interrupting("turn", "bf16 4", cycle=3)
    with pytest.raises(KeyboardInterrupt):
        run(trials, tmp_path)
    early = load_records(tmp_path)
    assert {record.ended_by for record in early} == {"interrupted"}
    assert {len(point.turns) for record in early for point in record.points} == {3}
    assert sorted(map(short_of, early)) == sorted(ALL)
    trials.happens = lambda *_: None
    run(trials, tmp_path)
    everything = load_records(tmp_path)
    assert counting(everything) == Counter(dict.fromkeys(ALL, 2))
    assert len(everything) == 3 * 6


def interrupting(phase: str, name: str, cycle: int = 0, times: int = 1) -> Happens:
    """Ctrl-C, where trial `name` comes to `phase`."""

    left = [signal.SIGINT] * times

    def happens(now: str, trial: Trial, number: int) -> None:
        while (now, short(trial)) == (phase, name) and cycle in (0, number) and left:
            signal.raise_signal(left.pop())

    return happens


@pytest.mark.usefixtures("heeding_interrupts")
def test_an_interrupt_while_trials_are_set_up_leaves_no_record(trials, tmp_path: Path) -> None:
    """Without turns there is nothing to keep; nobody is left alive."""
    trials.happens = interrupting("set up", "script 4")
    with pytest.raises(KeyboardInterrupt):
        run(trials, tmp_path)
    assert load_records(tmp_path) == []
    assert trials.alive == []
    trials.happens = lambda *_: None
    run(trials, tmp_path)
    assert counting(load_records(tmp_path)) == Counter(dict.fromkeys(ALL, 2))


@pytest.mark.usefixtures("heeding_interrupts")
def test_a_second_interrupt_ends_everything_at_once(trials: FakeTrials, tmp_path: Path) -> None:
    """What the block had seen is lost, and nothing else."""
    trials.happens = interrupting("turn", "bf16 4", cycle=3, times=2)
    with pytest.raises(KeyboardInterrupt):
        run(trials, tmp_path)
    assert load_records(tmp_path) == []
    assert trials.alive == []
    assert max(event.cycle for event in trials.events) == 3


def test_a_termination_is_heeded_like_an_interrupt(trials: FakeTrials, tmp_path: Path) -> None:
    """Whoever handled it before does so in the end."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: seen.append(signum))
    try:
        trials.happens = lambda phase, trial, cycle: (
            signal.raise_signal(signal.SIGTERM) if (phase, cycle) == ("turn", 2) else None
        )
        run(trials, tmp_path, SWEEP.model_copy(update={"optimizations": ("none",)}))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen[-1] == signal.SIGTERM
    assert {len(p.turns) for r in load_records(tmp_path) for p in r.points} == {2}


def test_a_signal_that_is_ignored_stays_ignored(trials: FakeTrials, tmp_path: Path) -> None:
    """As Ctrl-C is in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trials.happens = interrupting("turn", "bf16 4", cycle=1)
        run(trials, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert counting(load_records(tmp_path)) == Counter(dict.fromkeys(ALL, 2))


def test_a_time_budget_ends_the_block_in_flight_after_its_cycle(trials, tmp_path: Path) -> None:
    """What there is is kept, and the sweep goes on later."""
    sweep = SWEEP.model_copy(update={"max_seconds": 100.0, "batch_sizes": (1,)})
    run(trials, tmp_path, sweep, budget_s=30.0)
    early = load_records(tmp_path)
    assert {record.ended_by for record in early} == {"interrupted"}
    assert len(early) >= 2
    assert trials.clock.now < 1000 + 30 + 3
    run(trials, tmp_path, sweep)
    assert set(counting(load_records(tmp_path)).values()) <= {2, 3}


def test_a_time_budget_goes_to_the_first_round_first(trials: FakeTrials, tmp_path: Path) -> None:
    """So that there is a whole page."""
    run(trials, tmp_path, budget_s=25.0)
    records = load_records(tmp_path)
    first = [record for record in records if record.round == 1]
    assert sorted(map(short_of, first)) == sorted(ALL)
    assert {record.ended_by for record in first} == {"max_seconds"}


def test_of_a_time_budget_half_at_most_goes_into_setting_up(trials, tmp_path: Path) -> None:
    """A block of fewer trials has turns."""
    trials.setup_s = 10.0
    run(trials, tmp_path, budget_s=30.0)
    assert len(trials.blocks()[0]) == 2
    assert trials.did("turn")


def test_a_budget_that_is_used_up_starts_nothing(trials: FakeTrials, tmp_path: Path) -> None:
    """Nor does it lose anything."""
    assert run(trials, tmp_path, budget_s=-1.0) == []
    assert trials.events == []


# What is told meanwhile


def test_progress_tells_what_is_done_and_what_is_left(trials: FakeTrials, tmp_path: Path) -> None:
    """Done rises, the seconds left fall; each new record is told once."""
    seen: list[SweepProgress] = []
    sweep = SWEEP.model_copy(update={"rounds": 1})
    run(trials, tmp_path, sweep, seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert {step.done for step in seen} >= {0, 6}
    assert {step.total for step in seen} == {6}
    assert seen[0].seconds_left > seen[-1].seconds_left
    assert seen[-1].seconds_left < 4
    assert [short_of(step.record) for step in seen if step.record] == trials.did("end")
    assert {step.doing.split()[0] for step in seen} == {"setting", "in", "ending"}


def test_a_base_that_comes_again_is_not_counted_as_progress(trials, tmp_path: Path) -> None:
    """It was done before."""
    sweep = SWEEP.model_copy(update={"rounds": 1, "optimizations": ("none",)})
    run(trials, tmp_path, sweep)
    seen: list[SweepProgress] = []
    run(trials, tmp_path, SWEEP.model_copy(update={"rounds": 1}), seen.append)
    assert min(step.done for step in seen) == 0
    assert max(step.done for step in seen) == seen[0].total == 4


def test_the_forecast_is_the_time_that_it_takes_within_a_factor(trials, tmp_path: Path) -> None:
    """At most; from the middle on within one half."""
    seen: list[tuple[float, float]] = []
    sweep = SWEEP.model_copy(update={"max_seconds": 20.0})
    prepared = SweepRun.prepare(sweep, tmp_path)
    assert prepared.seconds_left() > 0
    run(trials, tmp_path, sweep, lambda s: seen.append((trials.clock.now, s.seconds_left)))
    middle = (seen[0][0] + seen[-1][0]) / 2
    now, left = next((now, left) for now, left in seen if now >= middle)
    assert seen[-1][0] - now == pytest.approx(left, rel=0.5)


def test_the_time_left_never_rises_and_counts_the_ends(trials, tmp_path: Path) -> None:
    """True within a cycle where set-ups and ends take what they were taken to take; 0 at last."""
    trials.setup_s = TRIAL_S - END_S

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        trials.clock.now += END_S * (phase == "end")

    trials.happens, seen = happens, list[tuple[float, float, str]]()
    sweep = SWEEP.model_copy(update={"rounds": 1, "max_seconds": 6.0})
    run(trials, tmp_path, sweep, lambda s: seen.append((trials.clock.now, s.seconds_left, s.doing)))
    left = [seconds for _, seconds, _ in seen]
    assert left == sorted(left, reverse=True)
    (end, last, _), (turned, ends, doing) = seen[-1], seen[-7]
    assert (last, ends, doing) == (0.0, 6 * END_S, "in turn")
    assert end - turned == ends
    assert all(end - now == pytest.approx(seconds, abs=5) for now, seconds, _ in seen)


# The folder


def record(batch_size: int, **change: object) -> Record:
    """A record of `SWEEP` as this process would leave it."""
    return measured(Config(batch_size=batch_size), SMALL).model_copy(
        update={"software": Software.here(), **change}
    )


def software(**environment: str) -> Software:
    """This process's, in an environment with these variables."""
    here = Software.here()
    return here.model_copy(update={"environment": {**here.environment, **environment}})


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize(
    ("sweep", "change", "complaint"),
    [
        ({"model": "bert-tiny"}, {}, "model 'bert' against 'bert-tiny'"),
        ({"seed": 5}, {}, "seed 0 against 5"),
        ({}, {"machine": machine(cores=4, smt=False)}, "another machine \\(cores\\)"),
        ({}, {"software": Software(python="2.7", scalebench="0", versions={})}, "other software"),
    ],
)
def test_a_folder_with_another_sweep_is_refused(tmp_path, sweep, change, complaint) -> None:
    """Nothing is written, nothing lost."""
    save_sweep(tmp_path, [record(1, **change)])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(RequestError, match=f"holds another sweep: .*{complaint}"):
        SweepRun.prepare(SWEEP.model_copy(update=sweep), tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


KNOWN = SMALL.model_copy(update={"governor": "performance", "huge_pages": "madvise"})
"""A machine whose settings are known."""


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"machine": KNOWN.model_copy(update={"huge_pages": "always"})},
            r"another setting \(transparent huge pages always against madvise\)",
        ),
        (
            {"machine": KNOWN.model_copy(update={"governor": "powersave"})},
            r"another setting \(governor powersave against performance\)",
        ),
        (
            {"software": software(TORCHINDUCTOR_FREEZING="1")},
            r"other software \(TORCHINDUCTOR_FREEZING 1 against None\)",
        ),
        (
            {"software": software(THP_MEM_ALLOC_ENABLE="1")},
            r"other software \(THP_MEM_ALLOC_ENABLE 1 against None\)",
        ),
        (
            {"software": software(MKL_CBWR="COMPATIBLE")},
            r"other software \(MKL_CBWR COMPATIBLE against None\)",
        ),
    ],
)
def test_what_decides_must_be_that_of_every_record(
    tmp_path: Path, monkeypatch, change: dict, complaint: str
) -> None:
    """Not of the first alone."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: KNOWN))
    usual = record(1, machine=KNOWN)
    save_sweep(tmp_path, [usual])
    SweepRun.prepare(SWEEP, tmp_path)
    save_sweep(tmp_path, [record(4, **{"machine": KNOWN, **change})])
    with pytest.raises(RequestError, match=f"holds another sweep: {complaint}; use another folder"):
        SweepRun.prepare(SWEEP, tmp_path)


@pytest.mark.usefixtures("trials")
def test_a_failure_under_another_setting_mixes_with_nothing(tmp_path: Path, monkeypatch) -> None:
    """Nor where a setting is not known."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: KNOWN))
    other = KNOWN.model_copy(update={"governor": "powersave"})
    failed = record(1, machine=other, status="failed", points=(), reason="no", ended_by=None)
    save_sweep(tmp_path, [failed, record(4)])
    assert SweepRun.prepare(SWEEP, tmp_path).records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a model."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    return path


def of_model(trials: FakeTrials, folder: Path, monkeypatch) -> Sweep:
    """A sweep of the model in `folder`, whose records name its files."""
    made = FakeTrial.record

    def named(self: FakeTrial, *args: object) -> Record:
        found = made(self, *args)
        return found.model_copy(update={"model_files": model_files_digest(found.config)})

    monkeypatch.setattr(FakeTrial, "record", named)
    return SWEEP.model_copy(update={"model": str(folder)})


def test_a_model_that_was_edited_is_another(
    trials: FakeTrials, tmp_path: Path, folder: Path, monkeypatch
) -> None:
    """Though all is measured, and nothing would be."""
    sweep, out = of_model(trials, folder, monkeypatch), tmp_path / "out"
    run(trials, out, sweep)
    assert SweepRun.prepare(sweep, out).schedule.left == []
    (folder / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    with pytest.raises(RequestError, match=r"another model .files of '.*/model', or of its"):
        SweepRun.prepare(sweep, out)


def test_a_model_that_is_edited_meanwhile_ends_the_sweep(
    trials: FakeTrials, tmp_path: Path, folder: Path, monkeypatch
) -> None:
    """What was made of the new one is set aside."""
    sweep, out = of_model(trials, folder, monkeypatch), tmp_path / "out"

    def edit(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "end" and trial.config.batch_size == 4:
            (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 9}')

    trials.happens = edit
    with pytest.raises(ScalebenchError, match=r"files of '.*/model', or of its weights, have"):
        run(trials, out, sweep)
    assert len({one.model_files for one in load_records(out)}) == 1
    assert len(list((out / "records").glob("*.invalid"))) == 1


def test_a_sweep_that_is_refused_for_another_leaves_no_folder(
    trials: FakeTrials, tmp_path: Path
) -> None:
    with lock_machine("another"), pytest.raises(RequestError, match="this machine is measuring"):
        run(trials, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("trials")
def test_a_folder_full_of_other_things_is_refused(tmp_path: Path) -> None:
    """As is a file, or a folder that cannot be written."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RequestError, match="is full of other things"):
        SweepRun.prepare(SWEEP, tmp_path)
    with pytest.raises(RequestError, match="is not a folder"):
        SweepRun.prepare(SWEEP, tmp_path / "holiday.jpg" / "sweep")


def test_a_folder_that_must_not_be_written_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Whoever the test runs as."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RequestError, match="cannot be written"):
        SweepRun.prepare(SWEEP, tmp_path / "sweep")


def test_two_sweeps_into_one_folder_are_refused(trials: FakeTrials, tmp_path: Path) -> None:
    """The lock goes with its process."""
    with (
        lock_folder(tmp_path),
        pytest.raises(RequestError, match=f"another sweep is running in .*process {os.getpid()}"),
    ):
        run(trials, tmp_path)


def test_what_a_sweep_was_asked_for_is_kept_with_it(trials: FakeTrials, tmp_path: Path) -> None:
    """Added to what was asked for before."""
    run(trials, tmp_path, SWEEP.model_copy(update={"batch_sizes": (1,)}))
    run(trials, tmp_path, SWEEP.model_copy(update={"batch_sizes": (4,)}))
    assert Sweep.load(tmp_path / "sweep.yaml") == SWEEP


def test_a_terminal_that_closes_asks_for_the_end_however_often_that_is_told() -> None:
    """Shell and system may both tell; in the end it is passed on, once."""
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda signum, _: heard.append(signum))
    try:
        stop = StopRequest(math.inf)
        with stop.at_signals():
            assert not stop()
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
            assert stop()
            assert not heard
        assert heard == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)
