"""Faults in the middle of a sweep. The slow ones cause them for real."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from scalebench_lib.analysis.compare import compare
from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import measurement_request
from scalebench_lib.plan.ground import Ground, Request
from scalebench_lib.record import Record, Software, load_records
from scalebench_lib.results import load_results, results_table
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.runner import Job
from scalebench_lib.sweep.state import sweep_state
from tests.kill_often import one_sweep
from tests.madeup import machine, measured, save_sweep
from tests.test_cli import QUICK, command
from tests.test_runner import SMALL, SWEEP, FakeKernels, noisy, quiet
from tests.waiting import wait_until

ONCE = SWEEP.model_copy(update={"rounds": 1, "batch_sizes": (1, 4, 8)})
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def visited(parameters: dict, on: Machine) -> Record:
    """The record of a visit, as this process would leave it."""
    found = measured(Config(batch_size=parameters["batch_size"]), on)
    return found.model_copy(update={"software": Software.here(), "visit": parameters["visit"]})


@contextmanager
def control_group(resource: str) -> Iterator[Path]:
    """A new control group in our own, to limit `resource`; the test is skipped where none can be.

    Only those of the first version: in the second, who has processes has no groups below.
    """
    lines = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = next((path for _, names, path in lines if resource in names.split(",")), "/nowhere")
    group = Path("/sys/fs/cgroup", resource, own.lstrip("/"), f"faults-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of the first version can be made: {error}")
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


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


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_a_cpu_that_is_taken_away_stops_the_sweep(tmp_path: Path) -> None:
    """For real: nothing is mixed, what is done is kept; with the CPU back it goes on."""
    here, out = Machine.here(), tmp_path / "sweep"
    sweep = ONCE.model_copy(update={"threads": (1,)})

    def act(parameters: dict) -> None:
        visited(parameters, here).save(out / "records")
        os.sched_setaffinity(0, ALLOWED[:1])

    try:
        with pytest.raises(ScalebenchError, match=r"no longer what it was .cores"):
            Job.prepare(sweep, out).run(quiet, FakeKernels(act))
        with pytest.raises(ScalebenchError, match=r"changed in the middle .cores"):
            here.require_unchanged()
        with pytest.raises(ScalebenchError, match=r"another machine .cores"):
            Job.prepare(sweep, out)
    finally:
        os.sched_setaffinity(0, ALLOWED)
    assert len(load_records(out)) == 1
    kernels = FakeKernels(lambda p: visited(p, here).save(out / "records"))
    Job.prepare(sweep, out).run(quiet, kernels)
    assert [run["batch_size"] for run in kernels.runs] == [4, 8]


def test_a_quota_that_is_lowered_stops_the_sweep(tmp_path: Path) -> None:
    """For real, by a control group that this process is put into."""
    here = Machine.here()

    with control_group("cpu") as group:
        period = int((group / "cpu.cfs_period_us").read_text())
        (group / "cpu.cfs_quota_us").write_text(str(period * 3 // 4))

        def act(parameters: dict) -> None:
            visited(parameters, here).save(tmp_path / "records")
            (group / "cgroup.procs").write_text(str(os.getpid()))

        try:
            with pytest.raises(ScalebenchError, match=r"no longer what it was .quota"):
                Job.prepare(ONCE.model_copy(update={"threads": (1,)}), tmp_path).run(
                    quiet, FakeKernels(act)
                )
        finally:
            (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    assert len(load_records(tmp_path)) == 1


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
    """Not even by copying records into its folder: whoever reads it names what differs."""
    one, two = (measured(Config(batch_size=n), machine(cores=n, smt=False)) for n in (2, 4))
    save_sweep(tmp_path, [one, two])
    compare_both = lambda out: compare(out, out)  # noqa: E731
    prepare = lambda out: Job.prepare(SWEEP, out)  # noqa: E731
    plan = lambda out: Ground.load(out, Request(batch_size=2))  # noqa: E731
    for read in (prepare, sweep_state, load_results, plan, compare_both):
        with pytest.raises(RequestError, match=r"records of several machines.*differ in cores"):
            read(tmp_path)
    assert len(load_results(tmp_path, any_machine=True)["machine"].unique()) == 2


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler, to make such a clock")
def test_a_clock_that_really_jumps_changes_no_sample(tmp_path: Path) -> None:
    """A year to and fro, each time that it is read, in a process that measures."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <time.h>\n"
        "int clock_gettime(clockid_t id, struct timespec *t) {\n"
        "  static int (*real)(clockid_t, struct timespec *); static unsigned calls;\n"
        '  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");\n'
        "  int code = real(id, t);\n"
        "  if (id == CLOCK_REALTIME) t->tv_sec += ++calls % 2 ? 31536000 : -31536000;\n"
        "  return code;\n}\n"
    )
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", source, "-o", library], check=True)
    code = (
        "from scalebench_lib.config import Config, Visit; from scalebench_lib.machine import *\n"
        "from scalebench_lib.measure.visit import measure\n"
        "import time; print(abs(time.time() - time.time()) > 1e6)\n"
        "visit = Visit(config=Config(model='bert-tiny'), threads=(1,), max_seconds=0.3)\n"
        "print(measure(visit, Machine.here()).model_dump_json())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    jumped, record = run.stdout.splitlines()
    assert jumped == "True"
    found = Record.model_validate_json(record)
    assert found.status == "ok", found.reason
    times = found.points[0]
    assert all(0 < ns < 1e9 for ns in times.samples_ns + times.probe_after_ns + times.warmup_ns)
    assert list(times.started_ns) == sorted(times.started_ns)
    assert 0.3 <= times.spent_s < 60


TINY = ("--batch-sizes", "1,2,4", "--optimizations", "none", *QUICK)


@pytest.mark.slow
def test_kills_at_random_moments_lose_double_and_halve_nothing(tmp_path: Path) -> None:
    """Three of them; `kill_often` by itself does a hundred."""
    counts = Counter[str]()
    one_sweep(tmp_path / "0" / "sweep", 4, 3, 10.0, random.Random(0), counts)  # noqa: S311
    assert counts.pop("kills") == 3
    assert counts.pop("most redone after a kill") <= 1
    del counts["sweeps"], counts["redone"], counts["kills between the first record and the last"]
    assert set(counts.values()) == {0}, counts


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_for_all")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_is_really_full(scalebench, tmp_path: Path) -> None:
    """One line, exit code 1, no record damaged; with more room the sweep goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        code, _, errors = scalebench("sweep", disk / "s", *TINY)
        assert code == 1
        assert errors.splitlines()[-1].startswith("scalebench: stopped: ")
        assert len(load_records(disk / "s")) < 3
        assert list(disk.glob("s/records/*.invalid")) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        code, _, errors = scalebench("sweep", disk / "s", *TINY)
        assert code == 0, errors
        assert [r.status for r in load_records(disk / "s")] == ["ok"] * 3
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    """And leaves no process; the same command goes on, and may be interrupted again."""
    out, kept = tmp_path / "sweep", dict[Path, bytes]()
    sweep = command("sweep", out, *TINY)
    for sent, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(sweep, stdout=subprocess.DEVNULL) as run:
            wait_until(lambda: {*out.glob("records/*.json")} - {*kept})
            family = psutil.Process(run.pid).children(recursive=True)
            run.send_signal(sent)
            assert run.wait(timeout=60) == code
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert all(path.read_bytes() == text for path, text in kept.items())
        kept.update({path: path.read_bytes() for path in out.glob("records/*.json")})
    assert subprocess.run(sweep, check=False).returncode == 0
    assert len(load_records(out)) == 3
    assert all(path.read_bytes() == text for path, text in kept.items())


@pytest.mark.slow
@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_a_kernel_that_is_moved_or_killed_fails_its_config_alone(tmp_path: Path) -> None:
    """The kill is told within 5 s, and larger batches are not tried after it."""
    out = tmp_path / "sweep"
    options = ("--batch-sizes", "1,2,4", *QUICK, "--max-seconds", "4", "--target-ci", "0.001")
    sweep = command("sweep", out, "--optimizations", "none", *options)
    done = lambda size: list(out.glob(f"records/*-bs{size}-*.json"))  # noqa: E731
    with subprocess.Popen(sweep, stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: done(1) or any(map(move, measuring(run))))
        wait_until(lambda: [one.kill() for one in measuring(run)])
        wait_until(lambda: done(2), seconds=5)
        assert run.wait(timeout=60) == 1
    found = {r.config.batch_size: (r.status, r.reason) for r in load_records(out)}
    assert re.fullmatch(r"thread \d+ did not stay on CPU \d+", found[1][1])
    assert found[2] == ("failed", "killed by signal 9 (SIGKILL)")
    assert found[4] == ("skipped", "batch 2 ended so: killed by signal 9 (SIGKILL)")


def measuring(sweep: subprocess.Popen) -> list[psutil.Process]:
    """The kernel of `sweep`, a fork of its zygote, as soon as it is on a CPU of its own."""
    zygotes = psutil.Process(sweep.pid).children()
    kernels = [kernel for zygote in zygotes for kernel in zygote.children()]
    return [kernel for kernel in kernels if kernel.is_running() and pinned(kernel.pid)]


def pinned(process: int) -> bool:
    """Whether a process may use one CPU only."""
    return len(os.sched_getaffinity(process)) == 1


def move(kernel: psutil.Process) -> None:
    """Let every thread of `kernel` run anywhere."""
    for thread in kernel.threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, ALLOWED)


@pytest.mark.slow
def test_a_kernel_that_runs_out_of_memory_is_told_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """The system kills it, in a control group with little memory."""
    options = ("--batch-sizes", "1,40000,50000", "--optimizations", "none", *QUICK)
    with control_group("memory") as group:
        (group / "memory.limit_in_bytes").write_text(str(900 * 2**20))
        into = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        run = subprocess.run([*into, *command("sweep", tmp_path / "s", *options)], check=False)
    assert run.returncode == 1
    found = {r.config.batch_size: (r.status, r.reason) for r in load_records(tmp_path / "s")}
    assert found[1] == ("ok", None)
    assert found[40000][0] == "failed"
    assert found[40000][1].startswith("out of memory")
    assert found[50000] == ("skipped", "batch 40000 ended so: out of memory")
