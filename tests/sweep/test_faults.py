"""Faults in the middle of a sweep. The slow ones cause them for real."""

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
from pathlib import Path

import psutil
import pytest

from scalebench_lib import notebook
from scalebench_lib.analysis.compare import compare
from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import measurement_request
from scalebench_lib.plan.decide import Context, PlanRequest
from scalebench_lib.record import Record, load_records
from scalebench_lib.results import Results
from scalebench_lib.sweep.locks import read_status
from scalebench_lib.sweep.schedule import schedules_by_host
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.factories import machine, measured, save_sweep
from tests.fake_workers import SMALL, FakeTrial, FakeTrials
from tests.fake_workers import run_fakes as run
from tests.tools.kill_often import one_sweep
from tests.waiting import wait_until

ONCE = Sweep(batch_sizes=(1, 4, 8), optimizations=("none",), max_seconds=1, rounds=1)
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
MINE = Machine.here()


def command(*arguments: object) -> list[str]:
    """The command line of ``scalebench``, with this Python."""
    return [sys.executable, "-m", "scalebench_lib.cli", *map(str, arguments)]


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


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> FakeTrials:
    """Trials whose records are of this very machine, as it was."""
    record = FakeTrial.record

    def of_here(self: FakeTrial, reason: str) -> Record:
        return record(self, reason).model_copy(update={"machine": MINE})

    monkeypatch.setattr(FakeTrial, "record", of_here)
    return FakeTrials()


def sizes(records: list[Record]) -> list[int]:
    """Their batch sizes, in order."""
    return [record.config.batch_size for record in records]


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_a_cpu_that_is_taken_away_stops_the_sweep(ours: FakeTrials, tmp_path: Path) -> None:
    """For real: nothing is mixed, what is done is kept; with the CPU back it goes on."""
    out, sweep = tmp_path / "sweep", ONCE.model_copy(update={"threads": (1,), "rounds": 2})
    ours.happens = lambda phase, *_: os.sched_setaffinity(0, ALLOWED[:1])
    try:
        with pytest.raises(ScalebenchError, match=r"no longer what it was .cores"):
            run(ours, out, sweep)
        with pytest.raises(ScalebenchError, match=r"changed in the middle .cores"):
            MINE.require_unchanged()
        with pytest.raises(ScalebenchError, match=r"another machine .cores"):
            run(ours, out, sweep)
    finally:
        os.sched_setaffinity(0, ALLOWED)
    assert {record.round for record in load_records(out)} == {1}
    ours.happens = lambda *_: None
    assert sizes(run(ours, out, sweep)) == [1, 4, 8]


def test_a_quota_that_is_lowered_stops_the_sweep(ours: FakeTrials, tmp_path: Path) -> None:
    """For real, by a control group that this process is put into."""
    with control_group("cpu") as group:
        period = int((group / "cpu.cfs_period_us").read_text())
        (group / "cpu.cfs_quota_us").write_text(str(period * 3 // 4))
        ours.happens = lambda *_: (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            with pytest.raises(ScalebenchError, match=r"no longer what it was .quota"):
                run(ours, tmp_path, ONCE.model_copy(update={"threads": (1,), "rounds": 2}))
        finally:
            (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    assert {record.round for record in load_records(tmp_path)} == {1}


def test_a_record_of_a_machine_that_had_changed_is_set_aside(small, tmp_path, monkeypatch) -> None:
    """It was made after the sweep had looked."""
    record, other = FakeTrial.record, SMALL.model_copy(update={"quota": 1.0})
    changed = lambda *args: record(*args).model_copy(update={"machine": other})  # noqa: E731
    monkeypatch.setattr(FakeTrial, "record", changed)
    trials = FakeTrials()
    with pytest.raises(ScalebenchError, match=r"no longer what it was .quota"):
        run(trials, tmp_path, ONCE)
    assert load_records(tmp_path) == []
    assert len(list((tmp_path / "records").glob("*.invalid"))) == 1
    assert trials.alive == []


def test_a_damaged_record_is_set_aside_and_measured_again(small, tmp_path) -> None:
    """With its base beside it."""
    sweep = ONCE.model_copy(update={"optimizations": ("none", "script")})
    records = run(FakeTrials(), tmp_path, sweep)
    [damaged] = [
        r for r in records if (r.config.optimization, r.config.batch_size) == ("script", 4)
    ]
    (tmp_path / "records" / f"{damaged.name}.json").write_text("{")
    again = run(FakeTrials(), tmp_path, sweep)
    assert sorted((r.config.optimization, r.config.batch_size) for r in again) == [
        ("none", 4),
        ("script", 4),
    ]
    assert len(list(tmp_path.glob("*/*.invalid"))) == 1


def test_a_record_that_is_cut_short_by_a_death_is_a_failure(small, tmp_path) -> None:
    """Nobody takes half of it for a trial; the half is kept aside."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "end" and trial.config.batch_size == 4:
            (tmp_path / "records" / f"{trial.name}.json").write_text("{")
            raise MeasurementError("killed by signal 9 (SIGKILL)")

    records = run(FakeTrials(happens), tmp_path, ONCE)
    assert [r.status for r in records] == ["ok", "failed", "ok"]
    assert load_records(tmp_path) == records
    assert len(list(tmp_path.glob("*/*.invalid"))) == 1


def test_a_folder_that_a_kill_left_half_made_is_taken_up(small, tmp_path) -> None:
    """With its lock and half a file in it, which goes."""
    (tmp_path / ".lock").touch()
    (tmp_path / ".sweep.yaml.abc").write_text("half")
    run(FakeTrials(), tmp_path, ONCE)
    assert not (tmp_path / ".sweep.yaml.abc").exists()


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
        {"trial": -1},
        {"round": 0},
        {"block": "../.."},
        {"seed": 2**40},
        {"threads": ["1; import os"]},
        {"x; import os": 1},
    ],
)
def test_the_kernel_checks_again_what_it_is_asked(bad: dict, monkeypatch) -> None:
    """One line, whatever it was started by."""
    monkeypatch.setattr(notebook, "is_interactive", lambda: False)
    with pytest.raises(RequestError) as caught:
        measurement_request(bad)
    assert "\n" not in str(caught.value)


def test_a_folder_whose_name_cannot_be_printed_is_refused(tmp_path) -> None:
    """Quotes are no trouble."""
    with pytest.raises(RequestError, match="cannot be printed"):
        SweepRun.prepare(ONCE, tmp_path / "a\nb")
    SweepRun.prepare(Sweep(threads=(1,)), tmp_path / 'it\'s "odd"')


def test_machines_are_not_mixed_in_a_sweep(small, tmp_path) -> None:
    """Not even by copying records into its folder: whoever reads it names what differs."""
    one, two = (measured(Config(batch_size=n), machine(cores=n, smt=False)) for n in (2, 4))
    save_sweep(tmp_path, [one, two])
    compare_both = lambda out: compare(out, out)  # noqa: E731
    prepare = lambda out: SweepRun.prepare(ONCE, out)  # noqa: E731
    plan = lambda out: Context.load(out, PlanRequest(batch_size=2))  # noqa: E731
    for read in (prepare, schedules_by_host, Results.load, plan, compare_both):
        with pytest.raises(RequestError, match=r"records of several machines.*differ in cores"):
            read(tmp_path)
    assert len(Results.load(tmp_path, any_machine=True).table["machine"].unique()) == 2


@pytest.mark.stress
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
        "from scalebench_lib.config import Config, Trial; from scalebench_lib.machine import *\n"
        "from scalebench_lib.measure.trial import measure\n"
        "import time; print(abs(time.time() - time.time()) > 1e6)\n"
        "trial = Trial(config=Config(model='bert-tiny'), threads=(1,), max_seconds=0.3)\n"
        "print(measure(trial, Machine.here()).model_dump_json())"
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
    [point] = found.points
    assert all(0 < ns < 1e9 for ns in point.samples_ns + point.warmup_ns)
    starts = [turn.start_ns for turn in point.turns]
    assert starts == sorted(starts)
    assert 0.3 <= point.spent_s < 60


QUICK = ("--model", "bert-tiny", "--max-seconds", "0.3", "--threads", "1", "--rounds", "1")
TINY = ("--batch-sizes", "1,2,4", "--optimizations", "none", *QUICK)


@pytest.mark.stress
def test_kills_at_random_moments_lose_double_and_halve_nothing(tmp_path: Path) -> None:
    """Three of them; `kill_often` by itself does a hundred."""
    counts = Counter[str]()
    one_sweep(tmp_path / "0" / "sweep", 4, 3, 10.0, random.Random(0), counts)  # noqa: S311
    assert counts.pop("kills") == 3
    assert counts.pop("most redone after a kill") <= 5, "a block"
    for told in ("sweeps", "redone", "bases again", "kills between the first record and the last"):
        del counts[told]
    assert set(counts.values()) == {0}, counts


@pytest.mark.stress
@pytest.mark.usefixtures("kernels_for_all")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_is_really_full(scalebench, tmp_path: Path) -> None:
    """One line, exit code 1, no record damaged; with more room the sweep goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=72k", "none", str(disk)]
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


LONG = (*TINY, "--max-seconds", "4", "--target-ci", "0.0001")


def in_turn(out: Path) -> bool:
    """Whether the trials of the sweep in folder `out` take turns now."""
    return "in turn" in (read_status(out) or "")


@pytest.mark.stress
def test_an_interrupt_keeps_what_is_seen(tmp_path: Path) -> None:
    """And leaves no process; the same command goes on, and may be interrupted again."""
    out, kept = tmp_path / "sweep", dict[Path, bytes]()
    sweep = command("sweep", out, *LONG)
    for number, (sent, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143)), start=1):
        with subprocess.Popen(sweep, stdout=subprocess.DEVNULL) as run:
            wait_until(lambda: in_turn(out))
            family = psutil.Process(run.pid).children(recursive=True)
            run.send_signal(sent)
            assert run.wait(timeout=60) == code
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert all(path.read_bytes() == text for path, text in kept.items())
        kept.update({path: path.read_bytes() for path in out.glob("records/*.json")})
        assert len(kept) == 3 * number
        assert {record.ended_by for record in load_records(out)} == {"interrupted"}
    assert subprocess.run(sweep, check=False).returncode == 0
    assert Counter(r.ended_by for r in load_records(out)) == {"interrupted": 6, "max_seconds": 3}
    assert all(path.read_bytes() == text for path, text in kept.items())


@pytest.mark.stress
def test_a_second_interrupt_ends_the_sweep_at_once(tmp_path: Path) -> None:
    """Without a record of the block in flight, and without a process."""
    out = tmp_path / "sweep"
    with subprocess.Popen(command("sweep", out, *LONG), stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: in_turn(out))
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGINT)
        time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 130
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert len(load_records(out)) < 3


@pytest.mark.stress
@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_a_kernel_that_is_moved_or_killed_fails_its_config_alone(tmp_path: Path) -> None:
    """The others of its block go on."""
    out = tmp_path / "sweep"
    with subprocess.Popen(command("sweep", out, *LONG), stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: in_turn(out))
        moved, killed, _ = measuring(run)
        move(moved)
        killed.kill()
        assert run.wait(timeout=120) == 1
    found = {r.config.batch_size: (r.status, r.reason) for r in load_records(out)}
    assert re.fullmatch(r"thread \d+ did not stay on CPU \d+", found[1][1])
    assert found[2] == ("failed", "killed by signal 9 (SIGKILL)")
    assert found[4] == ("ok", None)


def measuring(sweep: subprocess.Popen) -> list[psutil.Process]:
    """The kernels of `sweep`, forks of its fork server, in the order in which they were set up."""
    fork_servers = psutil.Process(sweep.pid).children()
    kernels = [kernel for fork_server in fork_servers for kernel in fork_server.children()]
    return sorted(kernels, key=lambda kernel: kernel.create_time())


def move(kernel: psutil.Process) -> None:
    """Let every thread of `kernel` run anywhere."""
    for thread in kernel.threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, ALLOWED)


@pytest.mark.stress
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
