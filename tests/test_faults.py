"""Faults in the middle of a sweep. The slow ones cause them for real."""

import errno
import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import measurement_request
from scalebench_lib.record import Software, load_records
from scalebench_lib.results import results_table
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.runner import Job
from tests.madeup import machine, measured, save_sweep
from tests.test_cli import QUICK, command
from tests.test_runner import SMALL, SWEEP, FakeKernels, noisy, quiet
from tests.waiting import wait_until

ONCE = SWEEP.model_copy(update={"rounds": 1, "batch_sizes": (1, 4, 8)})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has 2 cores."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))


@pytest.mark.parametrize("reason", ["out of memory: told so", "killed by signal 9 (SIGKILL)"])
def test_larger_batches_are_not_tried_after_a_kill(small, tmp_path, reason: str) -> None:
    """Of the same model and optimization; the rest goes on."""

    def act(parameters: dict) -> None:
        if parameters["batch_size"] == 4 and parameters["optimization"] == "none":
            raise runner.MeasurementError(reason)
        record = noisy(parameters)
        config = record.config.model_copy(update={"optimization": parameters["optimization"]})
        update = {"config": config, "config_id": config.id}
        record.model_copy(update=update).save(tmp_path / "records")

    sweep = ONCE.model_copy(update={"optimizations": ("none", "script")})
    found = Job.prepare(sweep, tmp_path).run(quiet, FakeKernels(act))
    status = {(r.config.optimization, r.config.batch_size): r.status for r in found}
    assert status["none", 8] == "skipped"
    assert [s for key, s in status.items() if key[0] == "script"] == ["ok"] * 3
    assert f"batch 4 ended so: {reason.partition(':')[0]}" in [r.reason for r in found]


def test_a_full_disk_stops_the_sweep_in_one_line_and_it_goes_on_later(small, tmp_path) -> None:
    """No failed record is left for what was not the config's fault."""

    def act(parameters: dict) -> None:
        if parameters["batch_size"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        noisy(parameters).save(tmp_path / "records")

    with pytest.raises(ScalebenchError, match=r"stopped: .*No space left on device") as caught:
        Job.prepare(ONCE, tmp_path).run(quiet, FakeKernels(act))
    assert "\n" not in str(caught.value)
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "records"))
    Job.prepare(ONCE, tmp_path).run(quiet, kernels)
    assert [run["batch_size"] for run in kernels.runs] == [4, 8]


@pytest.mark.parametrize("change", [{"quota": 1.0}, {"cores": SMALL.cores[:1]}])
def test_a_machine_that_changes_stops_the_sweep(tmp_path, monkeypatch, change) -> None:
    """CPUs or quota taken away: nothing is mixed, what is done is kept."""
    now = [SMALL]
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: now[0]))

    def act(parameters: dict) -> None:
        noisy(parameters).save(tmp_path / "records")
        now[0] = SMALL.model_copy(update=change)

    with pytest.raises(ScalebenchError, match=f"no longer what it was .{next(iter(change))}"):
        Job.prepare(ONCE, tmp_path).run(quiet, FakeKernels(act))
    assert len(load_records(tmp_path)) == 1
    with pytest.raises(ScalebenchError, match="changed in the middle"):
        SMALL.require_unchanged()


def test_a_record_of_a_machine_that_had_changed_is_set_aside(small, tmp_path) -> None:
    """It was made after the sweep had looked."""
    other = SMALL.model_copy(update={"quota": 1.0})

    def act(parameters: dict) -> None:
        noisy(parameters).model_copy(update={"machine": other}).save(tmp_path / "records")

    with pytest.raises(ScalebenchError, match=r"no longer what it was .quota"):
        Job.prepare(ONCE, tmp_path).run(quiet, FakeKernels(act))
    assert load_records(tmp_path) == []
    assert len(list((tmp_path / "records").glob("*.invalid"))) == 1


class JumpingClock(datetime):
    """A wall clock that somebody sets, a year to and fro."""

    jumps = 0

    @classmethod
    def now(cls, tz=None):
        """Never the same."""
        cls.jumps += 1
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=365 * (-1) ** cls.jumps)


def test_no_number_changes_when_the_wall_clock_jumps(small, tmp_path, monkeypatch) -> None:
    """Nothing but `started` and `finished` is read from it."""
    tables, wall = [], time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 1e9)
    for name, clock in (("steady", datetime), ("jumping", JumpingClock)):
        monkeypatch.setattr(runner, "datetime", clock)
        out = tmp_path / name / "sweep"
        act = lambda p, out=out: noisy(p).save(out / "records")  # noqa: E731
        tables.append(results_table(Job.prepare(ONCE, out).run(quiet, FakeKernels(act))))
    assert tables[0].equals(tables[1])


def test_a_visit_whose_notebook_is_damaged_is_measured_again(small, tmp_path) -> None:
    """Record and notebook are one evidence; both are kept aside."""
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "records"))
    [first, *_] = Job.prepare(ONCE, tmp_path).run(quiet, kernels)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / f"{first.name}.ipynb").write_text('{\n "cells": [')
    Job.prepare(ONCE, tmp_path).run(quiet, kernels)
    assert [run["batch_size"] for run in kernels.runs] == [1, 4, 8, 1]
    assert len(list(tmp_path.glob("*/*.invalid"))) == 2


def test_a_folder_that_a_kill_left_half_made_is_taken_up(small, tmp_path) -> None:
    """With its lock and half a file in it, which goes."""
    (tmp_path / ".lock").touch()
    (tmp_path / ".sweep.yaml.abc").write_text("half")
    kernels = FakeKernels(lambda p: noisy(p).save(tmp_path / "records"))
    Job.prepare(ONCE, tmp_path).run(quiet, kernels)
    assert not (tmp_path / ".sweep.yaml.abc").exists()


def test_another_thread_environment_is_another_sweep(small, tmp_path, monkeypatch) -> None:
    """It decides the speed."""
    record = measured(Config(batch_size=1), SMALL)
    save_sweep(tmp_path, [record.model_copy(update={"software": Software.here()})])
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with pytest.raises(RequestError, match=r"other software .OMP_WAIT_POLICY"):
        Job.prepare(SWEEP, tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": None},
        {"batch_size": 10**12},
        {"batch_size": float("nan")},
        {"max_seconds": float("nan")},
        {"max_seconds": 1e300},
        {"weights": "a\nb"},
        {"weights": "x\0"},
        {"out": "a\0b"},
        {"visit": -1},
        {"seed": 2**40},
        {"threads": ["1; import os"]},
        {"x; import os": 1},
    ],
)
def test_the_kernel_checks_again_what_it_is_asked(bad: dict) -> None:
    """One line, whatever it was started by."""
    with pytest.raises(RequestError) as caught:
        measurement_request(bad)
    assert "\n" not in str(caught.value)


def test_a_folder_whose_name_cannot_be_printed_is_refused(tmp_path) -> None:
    """Quotes are no trouble."""
    with pytest.raises(RequestError, match="cannot be printed"):
        Job.prepare(SWEEP, tmp_path / "a\nb")
    Job.prepare(Sweep(threads=(1,)), tmp_path / 'it\'s "odd"')


def test_machines_are_not_mixed_in_a_sweep(small, tmp_path) -> None:
    """Not even by copying records into its folder."""
    one, two = (measured(Config(batch_size=n), machine(cores=n, smt=False)) for n in (2, 4))
    save_sweep(tmp_path, [one, two])
    with pytest.raises(RequestError, match="records of several machines"):
        Job.prepare(SWEEP, tmp_path)


TINY = ("--batch-sizes", "1,2,4,8", "--optimizations", "none", *QUICK)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """One line, exit code 1, no record damaged; with more room the sweep goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=180k", "none", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        run = subprocess.run(command("sweep", disk / "s", *TINY), capture_output=True, text=True)
        assert run.returncode == 1
        assert run.stderr.splitlines()[-1].startswith("scalebench: stopped: ")
        assert len(load_records(disk / "s")) < 4
        assert list(disk.glob("s/records/*.invalid")) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = subprocess.run(command("sweep", disk / "s", *TINY), capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert {r.status for r in load_records(disk / "s")} == {"ok"}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(2, 130), (15, 143)])
def test_an_interrupt_keeps_what_is_done(tmp_path: Path, sent: int, code: int) -> None:
    """And leaves no process; the same command goes on."""
    out = tmp_path / "sweep"
    with subprocess.Popen(command("sweep", out, *TINY), stdout=subprocess.DEVNULL) as run:
        try:
            wait_until(lambda: list(out.glob("records/*.json")))
            family = psutil.Process(run.pid).children(recursive=True)
            run.send_signal(sent)
            assert run.wait(timeout=60) == code
        finally:
            run.kill()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    kept = {path: path.read_bytes() for path in out.glob("records/*.json")}
    subprocess.run(command("sweep", out, *TINY), check=True)
    assert len(load_records(out)) == 4
    assert all(path.read_bytes() == text for path, text in kept.items())


@pytest.mark.slow
def test_a_kernel_that_runs_out_of_memory_is_told_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """The system kills it, in a control group with little memory."""
    group = Path("/sys/fs/cgroup/memory") / own_memory_group() / f"faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(900 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group of the first version can be made: {error}")
    into = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    options = ("--batch-sizes", "1,40000,50000", "--optimizations", "none", *QUICK)
    try:
        run = subprocess.run([*into, *command("sweep", tmp_path / "s", *options)], check=False)
        assert run.returncode == 1
        found = {r.config.batch_size: (r.status, r.reason) for r in load_records(tmp_path / "s")}
        assert found[1] == ("ok", None)
        assert found[40000][0] == "failed"
        assert found[40000][1].startswith("out of memory")
        assert found[50000] == ("skipped", "batch 40000 ended so: out of memory")
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def own_memory_group() -> str:
    """Where this process is in the hierarchy of memory."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next((line.split(":")[2].lstrip("/") for line in lines if ":memory:" in line), "none")
