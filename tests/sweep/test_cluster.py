"""Sweeps on the hosts of a cluster: workers in this process whose trials take no time, and, slow,
worker processes that are killed."""

import io
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from scalebench_lib import cli
from scalebench_lib.config import Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.record import Software, load_records
from scalebench_lib.results import Results
from scalebench_lib.sweep import cluster, runner
from scalebench_lib.sweep.cluster import HOST, Host, HostsRun, client_of, hosts_of
from scalebench_lib.sweep.locks import RUNTIME_DIR
from scalebench_lib.sweep.schedule import schedules_by_host
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.factories import machine
from tests.fake_workers import SMALL, FakeKernels, FakeTrials, Happens, at, short, short_of
from tests.tools.kill_often import unpaired
from tests.waiting import wait_until

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

SWEEP = Sweep(
    batch_sizes=(1, 4), optimizations=("none", "script", "bf16"), max_seconds=2, hosts="each"
)
ANY = SWEEP.model_copy(update={"hosts": "any"})
ALL = ["none 1", "script 1", "bf16 1", "none 4", "script 4", "bf16 4"]
NAMES = {0: "left", 1: "right"}
"""The hosts of this process's workers, by these."""

_describe = cluster.describe


class SharedTrials(FakeTrials):
    """Trials that are the same ones wherever they are unpickled in this process."""

    now: "SharedTrials"

    def __reduce__(self) -> tuple[object, ...]:
        return SharedTrials.of_this_test, ()

    @staticmethod
    def of_this_test() -> "SharedTrials":
        """The last ones that were made."""
        return SharedTrials.now


def describe(dask_worker: distributed.Worker) -> str:
    """Describe a worker of this process as a host of its own."""
    host = Host.model_validate_json(_describe(dask_worker))
    return host.model_copy(update={"name": NAMES[dask_worker.name]}).model_dump_json()


def on_worker() -> str:
    """The host whose trial calls this."""
    return NAMES[distributed.get_worker().name]


@contextmanager
def workers(count: int = 2) -> Iterator[distributed.LocalCluster]:
    """Workers in this process, which play a host each."""
    with distributed.LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=False,
        host="127.0.0.1",
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    ) as local:
        yield local


@pytest.fixture(scope="module")
def local() -> Iterator[distributed.LocalCluster]:
    """The same for all tests that leave it as it is."""
    with workers() as started:
        yield started


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> FakeTrials:
    """What every host has instead of trials and kernels, on machines that are alike."""
    trials, prepare = SharedTrials(), SweepRun.prepare
    SharedTrials.now, trials.memory = trials, 10**6

    def with_fakes(*arguments: object, **more: object) -> SweepRun:
        run = prepare(*arguments, **more)
        run.start = trials
        return run

    monkeypatch.setattr(SweepRun, "prepare", with_fakes)
    monkeypatch.setattr(cluster, "Kernels", lambda warm: nullcontext(FakeKernels()))
    monkeypatch.setattr(cluster, "describe", describe)
    monkeypatch.setattr(cluster, "_ended", set())
    monkeypatch.setattr(cluster, "POLL_S", 0.05)
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))
    monkeypatch.setattr(runner, "available_bytes", trials.available_bytes)
    clock = SimpleNamespace(monotonic=trials.clock.monotonic, sleep=time.sleep)
    for module in (runner, cluster):
        monkeypatch.setattr(module, "time", clock)
    return trials


class Listener(io.StringIO):
    """The output of a command; `heard` is called with each line."""

    def __init__(self, heard: Callable[[str], None]) -> None:
        super().__init__()
        self.heard = heard

    def write(self, text: str) -> int:
        """Take what is printed."""
        for line in filter(None, text.splitlines()):
            self.heard(line)
        return super().write(text)


def swept(
    address: str,
    out: Path,
    sweep: Sweep = SWEEP,
    heard: Callable[[str], None] = lambda line: None,
    budget_s: float = math.inf,
) -> tuple[list[str], list[str]]:
    """Run the sweep on the hosts; returns its troubles, and the lines that it prints.

    Hosts of one process would wait for each other's lock.
    """
    console = Console(file=Listener(heard), width=200)
    with client_of(address) as client:
        hosts = HostsRun(sweep, out, client, retry_failed=False, warm=True, if_busy="ignore")
        troubles = hosts.run_with_progress(budget_s, console)
    return troubles, console.file.getvalue().splitlines()


@pytest.fixture
def run(local: distributed.LocalCluster, trials: FakeTrials):
    """`swept` on two hosts."""
    return lambda *arguments, **how: swept(local.scheduler_address, *arguments, **how)


# What is measured where


def test_every_host_measures_every_config_and_is_named(run, tmp_path: Path) -> None:
    """In its record and their files; each by its own records."""
    troubles, lines = run(tmp_path)
    records = load_records(tmp_path)
    assert Counter((r.host, short_of(r)) for r in records) == {
        (host, name): 2 for host in ("left", "right") for name in ALL
    }
    assert {(r.trial, r.round, r.any_host) for r in records} == {(1, 1, False), (2, 2, False)}
    for record in records:
        assert record.name.endswith(f"-{record.host}-t{record.trial}")
        assert (tmp_path / "records" / f"{record.name}.json").exists()
    assert unpaired(tmp_path) == []
    assert len({(r.host, r.block) for r in records}) == len({r.block for r in records}) == 4
    assert Sweep.load(tmp_path / "sweep.yaml") == SWEEP
    assert "round 1, left: a block of 6 configs" in lines
    assert (len(lines), troubles) == (4 + 24, [])


def test_a_sweep_of_several_hosts_is_read_as_such(run, trials, tmp_path: Path) -> None:
    """By status, report and compare; and nothing is left to do."""
    run(tmp_path)
    schedules = schedules_by_host(tmp_path)
    assert list(schedules) == ["left", "right"]
    assert {(len(one.done), len(one.left)) for one in schedules.values()} == {(6, 0)}
    assert len(Results.load(tmp_path).table["machine"].unique()) == 2
    trials.events.clear()
    run(tmp_path)
    assert trials.events == []


def test_hosts_that_are_alike_deal_the_configs_among_them(run, trials, tmp_path: Path) -> None:
    """Whole groups, each with its base; the hosts count as one machine."""
    run(tmp_path, ANY)
    records = load_records(tmp_path)
    assert Counter(map(short_of, records)) == dict.fromkeys(ALL, 2)
    for number in (1, 2):
        hosts = {(r.host, r.config.batch_size) for r in records if r.round == number}
        assert sorted(host for host, _ in hosts) == ["left", "right"]
    assert unpaired(tmp_path) == []
    assert {record.any_host for record in records} == {True}
    assert {(r.trial, r.round) for r in records} == {(1, 1), (2, 2)}
    assert list(schedules_by_host(tmp_path)) == [None]
    assert len(Results.load(tmp_path).table["machine"].unique()) == 1
    trials.events.clear()
    run(tmp_path, ANY)
    assert trials.events == []


def test_a_round_ends_before_the_next_one_is_dealt(run, tmp_path: Path) -> None:
    """So that there is a whole page early."""
    _, lines = run(tmp_path, ANY.model_copy(update={"batch_sizes": (1, 2, 3, 4, 5)}))
    rounds = [line.partition(",")[0] for line in lines]
    assert rounds == sorted(rounds)


def test_no_host_takes_all_that_waits(run, tmp_path: Path) -> None:
    """Each takes its share of the groups."""
    _, lines = run(tmp_path, ANY.model_copy(update={"batch_sizes": (1, 2, 3, 4), "rounds": 1}))
    blocks = [line.partition("a block of ")[2] for line in lines if "a block" in line]
    assert blocks[:2] == ["6 configs", "3 configs"]


@pytest.mark.parametrize("sweep", [SWEEP, ANY], ids=["each", "any"])
def test_what_does_not_fit_into_a_block_is_dealt_again(run, trials, tmp_path, sweep) -> None:
    """With its base, which is the only thing that is measured more often."""
    trials.peak, trials.memory = lambda trial: 300, 700
    run(tmp_path, sweep)
    found = Counter((r.host_label, short_of(r)) for r in load_records(tmp_path))
    assert {name for _, name in found} == set(ALL)
    assert all(count == 2 for (_, name), count in found.items() if "none" not in name)
    assert unpaired(tmp_path) == []
    assert all(one.left == [] for one in schedules_by_host(tmp_path).values())


def test_what_failed_on_a_host_is_a_record_and_is_left_alone(run, trials, tmp_path) -> None:
    """As here; the other host is not concerned."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "turn" and short(trial) == "script 4" and on_worker() == "right":
            raise MeasurementError("no luck")

    trials.happens = happens
    run(tmp_path)
    failed = [r for r in load_records(tmp_path) if r.status != "ok"]
    assert [(r.host, short_of(r), r.reason) for r in failed] == [("right", "script 4", "no luck")]
    assert len(load_records(tmp_path)) == 23


# Faults


def dying(local: distributed.LocalCluster, gone: threading.Event) -> Happens:
    """The worker on the right is gone in the second cycle; its thread sees that later."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        worker = distributed.get_worker()
        if phase == "turn" and cycle == 2 and worker.name == 1 and not gone.is_set():
            worker.loop.add_callback(worker.close, executor_wait=False)
            assert gone.wait(60)

    return happens


@pytest.mark.parametrize("sweep", [SWEEP, ANY], ids=["each", "any"])
def test_the_block_of_a_worker_that_is_gone_is_left_to_others(trials, tmp_path, sweep) -> None:
    """All records in the end, none twice but bases; what the lost one still says is not heard."""
    gone = threading.Event()

    def heard(line: str) -> None:
        if "is gone" in line:
            gone.set()

    with workers() as local:
        trials.happens = dying(local, gone)
        troubles, lines = swept(local.scheduler_address, tmp_path, sweep, heard)
    configs = "3 configs" if sweep is ANY else "6 configs"
    assert f"host right: its worker is gone, {configs} to be measured again" in lines
    assert troubles == ["host right: its worker is gone"]
    records = load_records(tmp_path)
    assert Counter(map(short_of, records)) == dict.fromkeys(ALL, 2)
    assert {record.host for record in records} == {"left"}
    assert unpaired(tmp_path) == []


def test_a_host_that_was_gone_does_its_part_later(run, trials, tmp_path: Path) -> None:
    """By the same command."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if on_worker() == "right":
            raise OSError(28, "No space left on device")

    trials.happens = happens
    troubles, _ = run(tmp_path)
    assert troubles == ["host right: [Errno 28] No space left on device"]
    assert {record.host for record in load_records(tmp_path)} == {"left"}
    trials.happens = lambda *_: None
    run(tmp_path)
    found = Counter((r.host, short_of(r)) for r in load_records(tmp_path))
    assert found == {(host, name): 2 for host in ("left", "right") for name in ALL}


@pytest.mark.parametrize("error", [ZeroDivisionError("one\ntwo"), ScalebenchError("one")])
def test_a_host_with_trouble_gets_no_more_and_is_told(run, trials, tmp_path, error) -> None:
    """In one line; its part is measured by another."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "end" and short(trial).startswith("none") and on_worker() == "right":
            raise error

    trials.happens = happens
    troubles, _ = run(tmp_path, ANY)
    assert troubles == ["host right: one"]
    assert Counter(map(short_of, load_records(tmp_path))) == dict.fromkeys(ALL, 2)


@pytest.mark.usefixtures("heeding_interrupts")
def test_an_interrupt_ends_the_blocks_in_flight_with_their_cycle(run, trials, tmp_path) -> None:
    """Their records are kept and say so; the sweep goes on later."""
    first = threading.Lock()

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "turn" and cycle == 2:
            if first.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: cluster._ended, 60)

    trials.happens = happens
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    early = load_records(tmp_path)
    assert {record.ended_by for record in early} == {"interrupted"}
    assert {len(point.turns) for record in early for point in record.points} == {2}
    assert trials.alive == []
    trials.happens = lambda *_: None
    run(tmp_path)
    assert all(one.left == [] for one in schedules_by_host(tmp_path).values())


def test_a_time_budget_ends_the_blocks_on_their_hosts(run, trials, tmp_path: Path) -> None:
    """They have it from the start."""
    sweep = SWEEP.model_copy(update={"max_seconds": 1000.0, "batch_sizes": (1,)})
    run(tmp_path, sweep, budget_s=60.0)
    records = load_records(tmp_path)
    assert {record.ended_by for record in records} == {"interrupted"}
    assert {record.round for record in records} == {1}
    assert trials.clock.now < 1000 + 3 * 60


def test_a_block_that_nobody_waits_for_ends_with_its_cycle(run, trials, tmp_path) -> None:
    """As when this command is killed."""
    begun = threading.Event()
    trials.happens = lambda phase, *_: begun.set() if phase == "turn" else None

    def heard(line: str) -> None:
        if "a block" in line:
            assert begun.wait(60)
            raise KeyboardInterrupt  # a second one ends at once

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ANY.model_copy(update={"max_seconds": 86_000.0}), heard)
    wait_until(lambda: trials.alive == [], 60)
    assert load_records(tmp_path) == []


# What is refused


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "carrier-pigeon://home"])
def test_a_wrong_address_is_told_in_one_line(address: str, monkeypatch) -> None:
    """Nothing is written."""
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    with pytest.raises(RequestError, match=f"none at '{address}'") as caught, client_of(address):
        pass
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, in one line."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    missing = r"pip install -e '.\[cluster\]'"
    with pytest.raises(RequestError, match=missing), client_of("tcp://x"):
        pass


def test_a_scheduler_without_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that starts one."""
    monkeypatch.setattr(cluster, "CONNECT_S", 2.0)
    with (
        workers(0) as empty,
        client_of(empty.scheduler_address) as client,
        pytest.raises(RequestError, match=r"no workers at .*: start some with 'dask worker "),
    ):
        hosts_of(client, "refuse", alike=False)


def test_a_scheduler_that_is_gone_is_told(trials, tmp_path: Path, monkeypatch) -> None:
    """And that the sweep can be gone on with."""
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    started = ExitStack()
    address = started.enter_context(workers()).scheduler_address
    told = r"the scheduler no longer answers \(.*\); what is done is kept"

    def heard(line: str) -> None:
        if "a block" in line:
            started.close()

    with pytest.raises(ScalebenchError, match=told):
        swept(address, tmp_path, heard=heard)


def host(name: str, identity: str | None = None, **change: object) -> Host:
    """A host as it would describe itself, with this software."""
    on = machine(cores=2, smt=False).model_copy(update={"identity": identity})
    told = {"machine": on, "software": cluster.software_here()}
    return Host(worker=f"tcp://{name}", name=name, **{**told, **change})


def another_checkout() -> Software:
    """The software here, but for the code."""
    versions = {**Software.here().versions, "scalebench's code": "another"}
    return Software.here().model_copy(update={"versions": versions})


class Hosts:
    """A dask client of workers that describe themselves so."""

    def __init__(self, *hosts: Host | object) -> None:
        self.answers = {
            f"tcp://{number}": host.model_dump_json() if isinstance(host, Host) else host
            for number, host in enumerate(hosts)
        }

    def wait_for_workers(self, *_: object, **__: object) -> None:
        """They are there."""

    def run(self, *_: object, **__: object) -> dict[str, object]:
        """Ask them."""
        return self.answers


@pytest.mark.parametrize(
    ("other", "if_busy"),
    [(("a",), "refuse"), (("a",), "ignore"), (("b", "same"), "wait")],
)
def test_two_workers_on_one_host_are_refused(other: tuple[str, ...], if_busy: str) -> None:
    """By the host's name, or as one machine since the same start."""
    two = Hosts(host("a", "same"), host(*other))
    with pytest.raises(RequestError, match="host a has two workers, tcp://a and tcp://"):
        hosts_of(two, if_busy, alike=False)


def test_workers_of_one_machine_may_be_told_to_ignore_each_other() -> None:
    """As containers with CPUs of their own."""
    names = [
        one.name
        for one in hosts_of(Hosts(host("b", "same"), host("a", "same")), "ignore", alike=True)
    ]
    assert names == ["a", "b"]


def test_only_hosts_that_are_alike_stand_in_for_each_other() -> None:
    """What differs is named."""
    unequal = Hosts(host("a"), host("b", machine=machine(cores=4, smt=False)))
    assert len(hosts_of(unequal, "refuse", alike=False)) == 2
    with pytest.raises(RequestError, match=r"a and b differ in cores.*leave '--any-host' out"):
        hosts_of(unequal, "refuse", alike=True)
    pages = [machine(cores=2).model_copy(update={"huge_pages": p}) for p in ("always", "madvise")]
    unequal = Hosts(host("a", machine=pages[0]), host("b", machine=pages[1]))
    with pytest.raises(
        RequestError, match="a and b differ in transparent huge pages always against"
    ):
        hosts_of(unequal, "refuse", alike=True)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            {"software": Software(python="2.7", scalebench="0", versions={})},
            "host b has other software",
        ),
        (ModuleNotFoundError("No module named 'scalebench_lib'"), "lacks .* named 'scalebench_lib"),
        ({"name": "b"}, "worker tcp://1 lacks this scalebench"),
        ('{"name": "b"}', "worker tcp://1 lacks this scalebench"),
    ],
)
def test_hosts_need_the_same_software(answer: object, complaint: str) -> None:
    """Which one does not is named."""
    is_host = isinstance(answer, dict) and "name" not in answer
    hosts = Hosts(host("a"), host("b", **answer) if is_host else answer)
    with pytest.raises(RequestError, match=complaint) as caught:
        hosts_of(hosts, "refuse", alike=False)
    assert "\n" not in str(caught.value)


def test_two_checkouts_of_one_version_are_other_software() -> None:
    """Their code is compared."""
    hosts = Hosts(host("a"), host("b", software=another_checkout()))
    with pytest.raises(RequestError, match=r"scalebench's code .* against another"):
        hosts_of(hosts, "refuse", alike=False)


def test_a_folder_is_of_one_machine_of_each_host_or_of_any(run, tmp_path: Path) -> None:
    """As it was begun."""
    run(tmp_path / "each")
    run(tmp_path / "any", ANY)
    run_of = {"one": SWEEP.model_copy(update={"hosts": "one"}), "each": SWEEP, "any": ANY}
    for folder in ("each", "any"):
        for kind, sweep in run_of.items():
            if kind != folder:
                with pytest.raises(RequestError, match=f"holds a sweep of {folder} of several"):
                    SweepRun.prepare(sweep, tmp_path / folder)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sweep.yaml").write_text(run_of["one"].dump())
    with pytest.raises(RequestError, match="holds a sweep of one machine: use another folder"):
        run(tmp_path / "one")


def described(nanny: str | None = None) -> Host:
    """This host, as a worker describes it."""
    return Host.model_validate_json(_describe(SimpleNamespace(nanny=nanny, address="tcp://x")))


def test_a_host_is_called_what_its_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit for file names."""
    monkeypatch.setenv(HOST, "../rack 7/ü")
    assert described().name == "rack_7"
    monkeypatch.delenv(HOST)
    monkeypatch.setattr(cluster.platform, "node", lambda: "node-3.example.org")
    assert described().name == "node-3"


def test_what_nannies_set_is_nothing_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """They tell workers to compute with one thread; what the user has set stays."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    described()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in described(nanny="tcp://x").software.environment
    assert os.environ["MKL_NUM_THREADS"] == "4"


def test_a_worker_is_quiet_during_a_block() -> None:
    """What it does rarely anyway stays as it is."""
    often, rarely = SimpleNamespace(callback_time=10.0), SimpleNamespace(callback_time=60_000.0)
    worker = SimpleNamespace(periodic_callbacks={"a": often, "b": rarely})
    cluster._quieten(worker)
    assert (often.callback_time, rarely.callback_time) == (2000.0, 60_000.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--any-host"], "--any-host: needs a cluster"),
        (["--scheduler", "tcp://x:1", "--against", "python"], "--against: takes turns on one mach"),
        (["--scheduler", "nowhere://x"], "none at 'nowhere://x'"),
    ],
)
def test_the_command_refuses_in_one_line(scalebench, tmp_path, options, complaint) -> None:
    """With exit code 2; nothing is written."""
    code, _, told = scalebench("sweep", tmp_path / "sweep", *options)
    assert (code, len(told.splitlines())) == (2, 1)
    assert complaint in told
    assert not (tmp_path / "sweep").exists()


def test_the_command_tells_hosts_blocks_and_records(
    local, trials, scalebench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line each, and a page in the end; what failed is exit code 1."""
    pages = list[Path]()
    monkeypatch.setattr(cli, "report", lambda out, **_: pages.append(out))
    trials.happens = at("end", "script 4", MeasurementError("no luck"))
    options = ("--batch-sizes", "1,4", "--optimizations", "none,script", "--if-busy", "ignore")
    where = ("--scheduler", local.scheduler_address)
    code, told, complaint = scalebench("sweep", tmp_path, *options, *where)
    hosts = f"2 hosts: left, right\n{SMALL}\nleft: 4 configs to measure in 2 rounds"
    assert told.startswith(f"starts from the preset page\n{hosts}")
    assert "round 1, left: a block of 4 configs\n" in told
    assert "round 2, right, BERT, batch 1 of 16 tokens, eager, SMT off: 1 thread 100 ms" in told
    assert code == 1
    assert complaint == f"scalebench: 1 config failed: 'scalebench status {tmp_path}' says why\n"
    assert pages == [tmp_path]
    code, told, _ = scalebench("status", tmp_path)
    assert (code, told.splitlines()[0].partition(";")[0]) == (
        0,
        "configs: 7 done, 1 failed, 0 left",
    )
    assert "SMT off on " in told
    for again in (options, options[-2:]):
        code, told, _ = scalebench("sweep", tmp_path, *again, *where, "--dry-run")
        assert told.startswith(f"continues {tmp_path / 'sweep.yaml'}\n2 hosts: left, right\n")
        assert (code, "left: 0 configs to measure" in told) == (0, True)


# For real


@contextmanager
def process(code: str, *arguments: str, **env: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A Python that runs `code`, and the first line that it prints."""
    start, told = [sys.executable, "-c", code, *arguments], {**os.environ, **env}
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, env=told) as running:
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


SCHEDULER = (
    "import asyncio; from distributed import Scheduler\n"
    "async def main():\n"
    "    async with Scheduler(host='127.0.0.1', port=0, dashboard=False) as s:\n"
    "        print(s.address, flush=True); await s.finished()\n"
    "asyncio.run(main())"
)
WORKER = (
    "import asyncio, sys; from distributed import Worker\n"
    "async def main():\n"
    "    async with Worker(sys.argv[1], nthreads=1, dashboard=False) as w:\n"
    "        print('there', flush=True); await w.finished()\n"
    "asyncio.run(main())"
)
Started = tuple[str, Callable[[str], subprocess.Popen]]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Started]:
    """A scheduler's address, and what starts a worker that plays a host of its own."""
    with ExitStack() as stack:
        _, address = stack.enter_context(process(SCHEDULER))

        def start(name: str, place: str = "") -> subprocess.Popen:
            runtime = tmp_path / f"runtime-{place or name}"
            runtime.mkdir(mode=0o700, exist_ok=True)
            env = {HOST: name, RUNTIME_DIR: str(runtime)}
            running, told = stack.enter_context(process(WORKER, address, **env))
            assert told == "there"
            return running

        yield address, start


TINY = Sweep(
    model="bert-tiny",
    batch_sizes=tuple(range(1, 11)),
    optimizations=("none", "script"),
    threads=(1,),
    max_seconds=0.2,
    target_ci=0.2,
    rounds=1,
    hosts="any",
)
"""20 configs of moments."""


@pytest.mark.stress
def test_a_worker_that_is_killed_costs_its_block(processes, tmp_path) -> None:
    """20 configs, one of two workers killed in the middle: all records, none twice but bases."""
    address, start = processes
    start("left")
    doomed, out = start("doomed"), tmp_path / "sweep"

    def heard(line: str) -> None:
        if "doomed: a block" in line:
            threading.Timer(4.0, doomed.kill).start()

    troubles, lines = swept(address, out, TINY, heard)
    records = load_records(out)
    found = Counter(map(short_of, records))
    assert set(found) == {f"{name} {size}" for name in TINY.optimizations for size in range(1, 11)}
    assert {record.status for record in records} == {"ok"}
    assert all(count == 1 for name, count in found.items() if "none" not in name)
    assert unpaired(out) == []
    assert any("doomed: its worker is gone, " in line for line in lines)
    assert troubles == ["host doomed: its worker is gone"]
    assert [path.name for path in out.glob("*/*") if path.name.startswith(".")] == []


@pytest.mark.stress
def test_two_workers_with_one_lock_never_measure_at_once(
    processes, tmp_path: Path, monkeypatch
) -> None:
    """Though they are called different hosts: who comes second gets nothing, and is told."""
    address, start = processes
    for name in ("left", "also left"):
        start(name, place="left")
    sweep, console = TINY.model_copy(update={"batch_sizes": (1, 2), "max_seconds": 1.0}), Console()
    with client_of(address) as client:
        hosts = HostsRun(sweep, tmp_path / "sweep", client, False, True, "ignore")
        hosts._measure.keywords["if_busy"] = "refuse"
        (trouble,) = hosts.run_with_progress(math.inf, console)
    assert "this machine is measuring" in trouble
    records, names = load_records(tmp_path / "sweep"), ("none 1", "script 1", "none 2", "script 2")
    assert Counter(map(short_of, records)) == dict.fromkeys(names, 1)


@pytest.mark.stress
def test_a_termination_of_the_command_ends_the_block_on_its_host(processes, tmp_path) -> None:
    """What it saw is kept, and the worker is free for the next sweep."""
    address, start = processes
    start("left")
    out = tmp_path / "sweep"
    options = ("--model", "bert-tiny", "--threads", "1", "--rounds", "1", "--max-seconds", "100")
    where = ("--scheduler", address, "--batch-sizes", "1,2", "--optimizations", "none")
    where = (*where, "--target-ci", "0.0001")
    command = [sys.executable, "-m", "scalebench_lib.cli", "sweep", str(out), *options, *where]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        wait_until(lambda: b"a block of 2 configs" in run.stdout.readline())
        time.sleep(20)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 143
    assert [r.ended_by for r in load_records(out)] == ["interrupted"] * 2
    next_one = TINY.model_copy(update={"batch_sizes": (1,)})
    assert swept(address, tmp_path / "next", next_one)[0] == []
