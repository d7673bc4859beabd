"""Two environments in turn: the same trials on both sides, in the same blocks."""

import csv
import sys
from collections import Counter
from pathlib import Path

import pytest

from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.record import load_records
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.runner import run_rounds
from scalebench_lib.sweep.sweep_run import SweepRun, prepare_pair
from tests.fake_workers import SWEEP, FakeKernels, FakeTrials, Killed, at, quiet, short, short_of


@pytest.fixture
def trials(trials: FakeTrials, monkeypatch: pytest.MonkeyPatch) -> FakeTrials:
    """The other Python is like this one, and need not be started."""
    other = Interpreter.here()
    monkeypatch.setattr(Interpreter, "of", classmethod(lambda *_: other))
    return trials


def pair(trials: FakeTrials, out: Path, **more: object) -> tuple[SweepRun, SweepRun]:
    """Both sides of the sweep in folder `out`, ready to run."""
    sides = prepare_pair(SWEEP, out, "other", **more)
    for side in sides:
        side.start, side.kernels = trials, FakeKernels()
    return sides


def met(out: Path) -> list[Counter[tuple[str | None, str]]]:
    """The blocks and config ids of the records of each side."""
    sides = [load_records(out / name) for name in ("a", "b")]
    return [Counter((r.block, r.config_id) for r in side if r.status == "ok") for side in sides]


def test_both_sides_of_a_config_share_their_blocks(trials: FakeTrials, tmp_path: Path) -> None:
    """And each side has every config once a round."""
    run_rounds(pair(trials, tmp_path), quiet)
    a, b = met(tmp_path)
    assert a == b
    assert Counter(config for _, config in a) == Counter(dict.fromkeys({c for _, c in a}, 2))
    assert len({config for _, config in a}) == 6


def test_all_points_of_a_group_have_equally_many_turns_on_both_sides(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """Or they could not be paired."""
    run_rounds(pair(trials, tmp_path), quiet)
    records = [r for name in ("a", "b") for r in load_records(tmp_path / name)]
    for size in (1, 4):
        group = [r for r in records if r.config.batch_size == size]
        assert len({len(p.turns) for r in group for p in r.points}) == 1


def test_nothing_is_left_when_both_sides_are_done(trials: FakeTrials, tmp_path: Path) -> None:
    """The same command starts nothing."""
    run_rounds(pair(trials, tmp_path), quiet)
    trials.events.clear()
    run_rounds(pair(trials, tmp_path), quiet)
    assert trials.events == []


def test_a_config_that_one_side_lost_in_a_kill_is_measured_again_on_both(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """A record whose counterpart is not in its block cannot be compared. Bases come again."""
    trials.happens = at("end", "script 4", Killed())
    with pytest.raises(Killed):
        run_rounds(pair(trials, tmp_path), quiet)
    trials.happens = lambda *_: None
    trials.alive.clear()
    run_rounds(pair(trials, tmp_path), quiet)
    a, b = met(tmp_path)
    shared = Counter(config for _, config in a & b)
    assert len(shared) == 6
    assert {n for config, n in shared.items() if "-none-" not in config} == {2}


def test_what_fails_on_one_side_is_measured_on_the_other(
    trials: FakeTrials, tmp_path: Path
) -> None:
    """Once a round, and then it is done."""

    def happens(phase: str, trial, _: int) -> None:
        if phase == "set up" and short(trial) == "bf16 1" and trials.side == "b":
            raise MeasurementError("no bf16 here")

    a, b = pair(trials, tmp_path)
    trials.happens, trials.side = happens, "a"
    for side in (a, b):
        side.start = starting(trials, side)
    run_rounds((a, b), quiet)
    assert [r.status for r in b.records if short_of(r) == "bf16 1"] == ["failed"]
    assert [r.status for r in a.records if short_of(r) == "bf16 1"] == ["ok", "ok"]
    assert not a.schedule.left
    assert not b.schedule.left


def test_a_skip_is_recorded_once_though_its_block_is_full(
    trials: FakeTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side's trial of that config waits for the next block."""
    monkeypatch.setattr(runner, "BLOCK_S", 9.0)

    def happens(phase: str, trial, _: int) -> None:
        if phase == "set up" and short(trial) == "script 1" and trials.side == "a":
            raise MeasurementError("killed by signal 9 (SIGKILL)")

    a, b = pair(trials, tmp_path)
    trials.happens = happens
    for side in (a, b):
        side.start = starting(trials, side)
    run_rounds((a, b), quiet)
    assert [r.status for r in a.records if short_of(r) == "script 4"] == ["skipped"]
    assert [r.status for r in b.records if short_of(r) == "script 4"] == ["ok", "ok"]


def starting(trials: FakeTrials, side: SweepRun):
    """Starts of `side`, which `trials` then knows."""

    def start(*given):
        trials.side = side.out.name
        return trials(*given)

    return start


def test_a_folder_that_holds_a_sweep_takes_no_pair(trials: FakeTrials, tmp_path: Path) -> None:
    """It would be hidden in it."""
    (tmp_path / "sweep.yaml").write_text(SWEEP.dump(), encoding="utf-8")
    with pytest.raises(RequestError, match="holds a sweep: choose a new folder for '--against'"):
        pair(trials, tmp_path)


@pytest.mark.usefixtures("trials", "any_model")
def test_a_pair_goes_on_by_what_is_in_its_first_folder(scalebench, tmp_path: Path) -> None:
    """As any sweep does."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sweep.yaml").write_text(SWEEP.dump(), encoding="utf-8")
    code, printed, err = scalebench("sweep", tmp_path, "--against", "other", "--dry-run")
    assert code == 0, err
    assert printed.startswith(f"continues {tmp_path / 'a' / 'sweep.yaml'}\n")
    assert "b: 6 configs to measure in 2 rounds" in printed


@pytest.mark.stress
def test_the_command_measures_both_environments_and_judges_every_point(
    scalebench, tmp_path: Path
) -> None:
    """For real, with a variable that only the other side has."""
    out = tmp_path / "out"
    asked = ("--model", "bert-tiny", "--batch-sizes", "1", "--optimizations", "none,script")
    limits = ("--threads", "1", "--rounds", "1", "--max-seconds", "2", "--if-busy", "ignore")
    other = f"env MALLOC_TOP_PAD_=1048576 {sys.executable}"
    code, printed, complaints = scalebench("sweep", out, *asked, *limits, "--against", other)
    with (out / "against.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2, complaints
    assert all(0.3 < float(row["ratio"]) < 3 for row in rows)
    assert code == any(row["verdict"] == "slower" for row in rows)
    assert "MALLOC_TOP_PAD_ none → 1048576" in printed
    environments = [load_records(out / name)[0].software.environment for name in ("a", "b")]
    assert ["MALLOC_TOP_PAD_" in one for one in environments] == [False, True]
