"""What is left of a sweep, and what may be added to it."""

import os
from pathlib import Path

import filelock
import pytest

from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.record import Software, load_records
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.runner import Job, State, sweep_state
from tests.madeup import machine, measured, missing, save_sweep

SMALL = machine(cores=2, smt=False)
SWEEP = Sweep(batch_sizes=(1, 4), optimizations=("none",))


@pytest.fixture(autouse=True)
def _madeup_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sweep of these tests runs on a machine with 2 cores."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))


def record(batch_size: int, **change: object):
    """A record of `SWEEP` as this process would leave it."""
    return measured(Config(batch_size=batch_size), SMALL).model_copy(
        update={"software": Software.here(), **change}
    )


def test_what_has_a_record_is_done() -> None:
    """And it alone."""
    state = State.of(SWEEP.visits(SMALL), [record(1)])
    assert [visit.config.batch_size for visit in state.done] == [1]
    assert [visit.config.batch_size for visit in state.left] == [4]


def test_thread_counts_that_are_missing_are_left() -> None:
    """A sweep may be gone on with at more thread counts."""
    half = record(1)
    half = half.model_copy(update={"points": half.points[:1]})
    state = State.of(SWEEP.visits(SMALL), [half, record(4)])
    assert [(visit.config.batch_size, visit.threads) for visit in state.left] == [(1, (2,))]


def test_what_failed_is_left_alone_until_it_is_asked_for() -> None:
    """In its place in the order."""
    failed = missing(Config(batch_size=1), SMALL, "failed", "no luck")
    state = State.of(SWEEP.visits(SMALL), [failed])
    assert [found.reason for _, found in state.failed] == ["no luck"]
    again = State.of(SWEEP.visits(SMALL), [failed], retry_failed=True)
    assert [visit.config.batch_size for visit in again.left] == [1, 4]


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
        Job.prepare(SWEEP.model_copy(update=sweep), tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_more_batch_sizes_may_be_added(tmp_path: Path) -> None:
    """Only they are left."""
    save_sweep(tmp_path, [record(1), record(4)])
    job = Job.prepare(Sweep(batch_sizes=(1, 4, 8), optimizations=("none",)), tmp_path)
    assert [visit.config.batch_size for visit in job.state.left] == [8]


def test_a_folder_full_of_other_things_is_refused(tmp_path: Path) -> None:
    """As is a file, or a folder that cannot be written."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RequestError, match="is full of other things"):
        Job.prepare(SWEEP, tmp_path)
    with pytest.raises(RequestError, match="is not a folder"):
        Job.prepare(SWEEP, tmp_path / "holiday.jpg" / "sweep")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Before anything is measured."""
    tmp_path.chmod(0o500)
    with pytest.raises(RequestError, match="cannot be written"):
        Job.prepare(SWEEP, tmp_path / "sweep")


def test_a_folder_that_must_not_be_written_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Whoever the test runs as."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RequestError, match="cannot be written"):
        Job.prepare(SWEEP, tmp_path / "sweep")


def fake_notebook(monkeypatch: pytest.MonkeyPatch, act) -> list[dict]:
    """Replace the kernel by `act(parameters)`; returns the parameters of each run."""
    runs: list[dict] = []

    def run(source: Path, target: Path, parameters: dict) -> None:
        runs.append(parameters)
        act(parameters)

    monkeypatch.setattr(runner, "run_notebook", run)
    return runs


def test_a_sweep_goes_on_past_a_config_that_fails(tmp_path: Path, monkeypatch) -> None:
    """Each failure leaves a record with its reason."""

    def act(parameters: dict) -> None:
        if parameters["batch_size"] == 1:
            raise runner.MeasurementError("no luck")
        record(parameters["batch_size"]).save(tmp_path / "records")

    runs = fake_notebook(monkeypatch, act)
    found = Job.prepare(SWEEP, tmp_path).run(lambda *_: None)
    assert [(one.status, one.reason) for one in found] == [("failed", "no luck"), ("ok", None)]
    assert [run["batch_size"] for run in runs] == [1, 4]
    assert len(load_records(tmp_path)) == 2


def test_a_notebook_that_leaves_no_record_has_failed(tmp_path: Path, monkeypatch) -> None:
    """Whatever papermill says of it."""
    fake_notebook(monkeypatch, lambda _: None)
    found = Job.prepare(SWEEP, tmp_path).run(lambda *_: None)
    assert {one.reason for one in found} == {"the notebook wrote no record"}


def test_a_batch_that_would_not_fit_is_skipped_unrun(tmp_path: Path, monkeypatch) -> None:
    """With the reason in its record."""
    peaks = {1: 10 * 2**30, 4: 40 * 2**30}
    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: type("", (), {"available": 2**36}))

    def act(parameters: dict) -> None:
        size = parameters["batch_size"]
        record(size, peak_memory_bytes=peaks[size]).save(tmp_path / "records")

    runs = fake_notebook(monkeypatch, act)
    sweep = Sweep(batch_sizes=(1, 4, 16), optimizations=("none",))
    found = Job.prepare(sweep, tmp_path).run(lambda *_: None)
    assert [one.status for one in found] == ["ok", "ok", "skipped"]
    assert "would need about 160.0 GiB" in found[2].reason
    assert len(runs) == 2


def test_progress_tells_before_and_after_and_the_seconds_left(tmp_path, monkeypatch) -> None:
    """They fall."""
    fake_notebook(monkeypatch, lambda p: record(p["batch_size"]).save(tmp_path / "records"))
    seen: list[tuple] = []
    Job.prepare(SWEEP, tmp_path).run(lambda *what: seen.append(what))
    assert [what[1] is None for what in seen] == [True, False, True, False]
    assert seen[0][2] > seen[-1][2] == 0


def test_two_sweeps_into_one_folder_are_refused(tmp_path: Path) -> None:
    """The lock goes with its process."""
    job = Job.prepare(SWEEP, tmp_path)
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(RequestError, match="another sweep is running"),
    ):
        job.run(lambda *_: None)


def test_status_tells_of_the_machine_that_measured(tmp_path: Path, monkeypatch) -> None:
    """Wherever it is asked."""
    save_sweep(tmp_path, [measured(Config(batch_size=1), machine(cores=4, smt=False))])
    state = sweep_state(tmp_path)
    assert [visit.config.optimization for visit in state.done] == ["none"]
    assert [visit.config.optimization for visit in state.left] == ["script"]


def test_a_folder_without_a_sweep_says_what_to_do(tmp_path: Path) -> None:
    """One line."""
    with pytest.raises(RequestError, match="holds no sweep: start one with"):
        sweep_state(tmp_path)
