"""What is left of a sweep, and what may be added to it."""

import os
from pathlib import Path

import pytest

from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.record import Software, load_records
from scalebench_lib.reference import Reference
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.locks import folder_to_itself
from scalebench_lib.sweep.runner import Job, Step
from tests.madeup import machine, measured, save_sweep

SMALL = machine(cores=2, smt=False)
SWEEP = Sweep(batch_sizes=(1, 4), optimizations=("none",), rounds=3)


def quiet(_: Step) -> None:
    """No progress to be seen."""


@pytest.fixture(autouse=True)
def _madeup_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sweep of these tests runs on a machine with 2 cores."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))


def record(batch_size: int, **change: object):
    """A record of `SWEEP` as this process would leave it."""
    return measured(Config(batch_size=batch_size), SMALL).model_copy(
        update={"software": Software.here(), **change}
    )


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
    job = Job.prepare(Sweep(batch_sizes=(1, 4, 8), optimizations=("none",), rounds=1), tmp_path)
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


class FakeKernels:
    """Calls `act(parameters)` instead of running a notebook; `runs` are the parameters so far."""

    kind = "warm"

    def __init__(self, act) -> None:
        self.act = act
        self.runs: list[dict] = []

    def run(self, source: Path, target: Path, parameters: dict, limit_s: float = 0) -> None:
        """As `Kernels.run`."""
        self.runs.append(parameters)
        self.act(parameters)


def test_a_sweep_goes_on_past_a_config_that_fails(tmp_path: Path) -> None:
    """Each failure leaves a record with its reason."""

    def act(parameters: dict) -> None:
        if parameters["batch_size"] == 1:
            raise runner.MeasurementError("no luck")
        noisy(parameters).save(tmp_path / "records")

    kernels = FakeKernels(act)
    found = Job.prepare(SWEEP, tmp_path).run(quiet, kernels)
    assert [(one.status, one.reason) for one in found][:2] == [("failed", "no luck"), ("ok", None)]
    assert [run["batch_size"] for run in kernels.runs][:2] == [1, 4]
    assert len(load_records(tmp_path)) == len(found)


def test_a_notebook_that_leaves_no_record_has_failed(tmp_path: Path) -> None:
    """Whatever papermill says of it."""
    found = Job.prepare(SWEEP, tmp_path).run(quiet, FakeKernels(lambda _: None))
    assert {one.reason for one in found} == {"the notebook wrote no record"}


def test_a_batch_that_would_not_fit_is_skipped_unrun(tmp_path: Path, monkeypatch) -> None:
    """With the reason in its record."""
    peaks = {1: 10 * 2**30, 4: 40 * 2**30}
    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: type("", (), {"available": 2**36}))

    def act(parameters: dict) -> None:
        size = parameters["batch_size"]
        record(size, peak_memory_bytes=peaks[size]).save(tmp_path / "records")

    kernels = FakeKernels(act)
    sweep = Sweep(batch_sizes=(1, 4, 16), optimizations=("none",), rounds=1)
    found = Job.prepare(sweep, tmp_path).run(quiet, kernels)
    assert [one.status for one in found] == ["ok", "ok", "skipped"]
    assert "would need about 160.0 GiB" in found[2].reason
    assert len(kernels.runs) == 2


def test_progress_tells_before_and_after_and_the_seconds_left(tmp_path) -> None:
    """They fall."""
    kernels = FakeKernels(lambda p: record(p["batch_size"]).save(tmp_path / "records"))
    seen: list[Step] = []
    job = Job.prepare(SWEEP.model_copy(update={"rounds": 1}), tmp_path)
    job.run(seen.append, kernels)
    assert [step.record is None for step in seen] == [True, False, True, False]
    assert [step.done for step in seen] == [0, 2, 2, 4]
    assert seen[0].seconds_left > seen[-1].seconds_left == 0


def noisy(parameters: dict, spent_s: float = 0.1):
    """A record whose points are not yet within ``target_ci``."""
    found = record(parameters["batch_size"], visit=parameters["visit"])
    points = [point.model_copy(update={"spent_s": spent_s}) for point in found.points]
    return found.model_copy(update={"points": tuple(points)})


def test_configs_are_visited_in_rounds_of_shuffled_order(tmp_path) -> None:
    """Small batches first in the first round; a share of the time each; records add up."""
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "records"))
    sizes = (1, 2, 4, 8, 16)
    sweep = SWEEP.model_copy(update={"batch_sizes": sizes, "target_ci": 0.001, "max_seconds": 9})
    Job.prepare(sweep, tmp_path).run(quiet, kernels)
    order = [run["batch_size"] for run in kernels.runs]
    rounds = [order[:5], order[5:10], order[10:]]
    assert rounds[0] == [1, 2, 4, 8, 16]
    assert sorted(rounds[1]) == sorted(rounds[2]) == rounds[0]
    assert len({tuple(one) for one in rounds}) == 3
    assert {run["max_seconds"] for run in kernels.runs} == {3.0}
    assert [run["visit"] for run in kernels.runs] == [1] * 5 + [2] * 5 + [3] * 5


def test_later_rounds_visit_only_what_is_not_yet_known(tmp_path) -> None:
    """A point that has had its time is left alone."""

    def act(parameters: dict) -> None:
        spent = 9.0 if parameters["batch_size"] == 4 else 0.1
        noisy(parameters, spent).save(tmp_path / "records")

    kernels = FakeKernels(act)
    sweep = SWEEP.model_copy(update={"target_ci": 0.001, "max_seconds": 9})
    Job.prepare(sweep, tmp_path).run(quiet, kernels)
    assert [run["batch_size"] for run in kernels.runs] == [1, 4, 1, 1]


def test_what_failed_is_retried_once_not_in_every_round(tmp_path) -> None:
    """It would fail again."""

    def act(parameters: dict) -> None:
        raise runner.MeasurementError("no luck")

    kernels = FakeKernels(act)
    Job.prepare(SWEEP, tmp_path).run(quiet, kernels)
    assert len(kernels.runs) == 2
    again = Job.prepare(SWEEP, tmp_path, retry_failed=True).run(quiet, kernels)
    assert len(kernels.runs) == 4
    assert [one.visit for one in again] == [2, 2]
    assert {one.kernel for one in again} == {"warm"}


def test_a_later_visit_that_failed_is_retried_too(tmp_path) -> None:
    """Though the first one went well."""
    save_sweep(tmp_path, [record(1), record(4)])
    failed = record(1, visit=2, status="failed", reason="no luck", points=())
    failed.save(tmp_path / "records")
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "records"))
    sweep = SWEEP.model_copy(update={"target_ci": 1e-6})
    Job.prepare(sweep, tmp_path, retry_failed=True).run(quiet, kernels)
    assert 1 in [run["batch_size"] for run in kernels.runs]


def test_no_visit_is_begun_that_would_outlast_the_budget(tmp_path) -> None:
    """What was not visited is left for the next time."""
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "records"))
    Job.prepare(SWEEP, tmp_path).run(quiet, kernels, budget_s=0.5)
    assert kernels.runs == []


def test_the_reference_speed_is_kept_with_the_sweep(tmp_path) -> None:
    """Later rounds, and later sweeps beside it, are read with the same."""
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "one" / "records"))
    Job.prepare(SWEEP, tmp_path / "one").run(quiet, kernels)
    assert Reference.load(tmp_path / "one") is not None


def test_two_sweeps_into_one_folder_are_refused(tmp_path: Path) -> None:
    """The lock goes with its process."""
    job = Job.prepare(SWEEP, tmp_path)
    with (
        folder_to_itself(tmp_path),
        pytest.raises(RequestError, match=f"another sweep is running in .*process {os.getpid()}"),
    ):
        job.run(quiet, FakeKernels(lambda _: None))
