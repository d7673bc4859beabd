"""What a sweep tells meanwhile: a line a record, a table of points, a file for others."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.machine import Machine
from scalebench_lib.record import Record
from scalebench_lib.sweep import progress
from scalebench_lib.sweep.block import Block
from scalebench_lib.sweep.locks import read_status
from scalebench_lib.sweep.progress import Display, announce, print_summary
from scalebench_lib.sweep.runner import SweepProgress, run_rounds
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.factories import disturbed, measured, missing
from tests.fake_workers import SMALL, FakeClock, FakeKernels, FakeTrials

SWEEP = Sweep(batch_sizes=(1, 4), optimizations=("none", "script"), max_seconds=2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRun:
    """A sweep of 4 configs with fake trials."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))
    prepared = SweepRun.prepare(SWEEP, tmp_path)
    prepared.start, prepared.kernels = FakeTrials(), FakeKernels()
    return prepared


@pytest.fixture
def console() -> Console:
    """Writes into a text, 100 characters wide."""
    return Console(file=io.StringIO(), width=100, highlight=False, force_terminal=False)


def printed(console: Console) -> str:
    """All that was written so far."""
    return console.file.getvalue()


def step(block: Block, record: Record | None = None, doing: str = "in turn") -> SweepProgress:
    """In round 2."""
    return SweepProgress(2, doing, block, done=3, total=8, seconds_left=240, record=record)


def block() -> Block:
    """A block with a trial that had turns at 1 and 2 threads."""
    made, fakes = Block("0000000e"), FakeTrials(half_width=lambda trial, threads: 0.0123)
    trial = Trial(config=Config(batch_size=1, allocator="tcmalloc"), threads=(1, 2))
    made.add(fakes(trial, Path(), None, None, lambda: False), trial.config.group)
    for _ in range(6):
        made.take_cycle()
    return made


def test_a_sweep_begins_with_what_it_will_measure_and_how_long(run, console) -> None:
    """And ends with what is left."""
    announce([run], console)
    assert "4 configs to measure in 2 rounds, 0 done before, 0 failed before: at least" in printed(
        console
    )
    assert print_summary(run, console) == []
    assert "4 configs left: the same command goes on from here" in printed(console)


def test_one_config_in_one_round_is_told_in_the_singular(run: SweepRun, console: Console) -> None:
    one = {"batch_sizes": (1,), "optimizations": ("none",), "rounds": 1}
    run.sweep = SWEEP.model_copy(update=one)
    announce([run], console)
    assert "1 config to measure in 1 round, 0 done before" in printed(console)


def test_what_this_cpu_cannot_measure_is_told_before(run, console, tmp_path, monkeypatch) -> None:
    """With why; it is no reason to refuse the others."""
    monkeypatch.setattr("scalebench_lib.optimizations._CPUINFO", tmp_path / "none")
    run.sweep = SWEEP.model_copy(update={"optimizations": ("none", "fp16")})
    announce([run], console)
    assert printed(console).splitlines()[-1] == (
        "configs of fp16 will fail here: this CPU has no fp16"
    )


def test_each_record_leaves_a_line(run: SweepRun, console: Console) -> None:
    """With its medians, or with why there are none; an early end is said."""
    record = measured(Config(batch_size=4), SMALL)
    early = record.model_copy(update={"ended_by": "interrupted"})
    failed = missing(record.config, SMALL, "failed", "no luck [bold]at all")
    with Display([run], console) as display:
        for one in (record, early, failed):
            display.show(step(block(), one))
    well, interrupted, failing = [
        line for line in printed(console).splitlines() if line.startswith("round 2, ")
    ][:3]
    assert well.startswith("round 2, BERT")
    assert "1 thread " in well
    assert "2 threads " in well
    assert interrupted == f"{well}, interrupted"
    assert failing.endswith("failed: no luck [bold]at all")


def test_the_points_of_a_block_are_shown_with_how_well_they_are_known(console: Console) -> None:
    """Below what is done and what is left."""
    console.print(progress._drawn(step(block())))
    shown = printed(console)
    assert "batch 1, eager, allocator tcmalloc" in shown
    assert "100 ms" in shown
    assert "± 1.2 %" in shown
    assert "3/8" in shown
    assert "1 trial in turn, 6 cycles" in shown
    assert "3/8 trials of round 2  about 4 min left" in shown


def test_others_see_what_is_in_flight_as_long_as_it_is(
    run: SweepRun, tmp_path: Path, console: Console
) -> None:
    """By a file that goes with the sweep."""
    with run.locked(), Display([run], console) as display:
        display.show(step(block(), doing="setting up a trial"))
        assert str(read_status(tmp_path)).startswith(
            "round 2, 3 of 8 trials, setting up a trial, about"
        )
    assert read_status(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir() if "running" in path.name] == []


def test_drawing_is_rare_while_trials_take_turns(run, console, monkeypatch) -> None:
    """It takes some ms, which are nobody's."""
    drawn: list[SweepProgress] = []
    monkeypatch.setattr(progress, "_drawn", lambda step: drawn.append(step) or "")
    clock, one = FakeClock(), block()
    monkeypatch.setattr(progress, "time", clock)
    with Display([run], console) as display:
        for _ in range(100):
            display.show(step(one))
            clock.now += 0.1
        assert len(drawn) == pytest.approx(10, abs=1)
        drawn.clear()
        for _ in range(3):
            display.show(step(one, doing="ending"))
    assert len(drawn) == 3


def test_what_failed_is_told_in_the_end(run: SweepRun, console: Console, tmp_path: Path) -> None:
    """With where to read why."""
    config = run.schedule.trials[0].config
    missing(config, SMALL, "failed", "no luck").save(tmp_path / "records")
    run_rounds([run], lambda _: None)
    assert print_summary(run, console) == [
        f"1 config failed: 'scalebench status {tmp_path}' says why",
    ]
    assert printed(console) == ""


def test_what_disturbed_a_sweep_is_said_in_the_end(run: SweepRun, console: Console) -> None:
    """That is nothing that went wrong."""
    record = measured(run.schedule.trials[0].config, SMALL)
    with run.locked():
        run.add(disturbed(record, 6, waited=0.5))
    assert print_summary(run, console) == []
    assert "Something else was computing here: it shared 6 of 16 turns" in printed(console)
