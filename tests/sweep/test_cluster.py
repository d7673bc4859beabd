"""Sweeps on the hosts of a cluster: workers in this process whose trials take no time, and, slow,
worker processes that are killed."""

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

from scalebench_lib import cli
from scalebench_lib.config import Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.record import Record, Software, load_records
from scalebench_lib.results import Results
from scalebench_lib.sweep import cluster as clusters
from scalebench_lib.sweep import hosts as of_hosts
from scalebench_lib.sweep import remote, runner, stop
from scalebench_lib.sweep.cluster import HostsRun, Share
from scalebench_lib.sweep.hosts import Cluster, cluster_at
from scalebench_lib.sweep.locks import PLACE
from scalebench_lib.sweep.remote import LABEL, Host
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.runner import Step
from scalebench_lib.sweep.schedule import Pace, Schedule, sweep_schedules
from tests.factories import machine, measured
from tests.fake_workers import SMALL, FakeKernels, FakeTrials, Happens, short
from tests.sweep.test_runner import at, short_of
from tests.test_cli import command
from tests.tools.kill_often import unpaired
from tests.waiting import wait_until

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

SWEEP = Sweep(
    batch_sizes=(1, 4), optimizations=("none", "script", "bf16"), max_seconds=2, hosts="each"
)
ANY = SWEEP.model_copy(update={"hosts": "any"})
ALL = ["none 1", "script 1", "bf16 1", "none 4", "script 4", "bf16 4"]
NAMES = {0: "left", 1: "right", 2: "right"}
"""The hosts of this process's workers, by these; the last one comes where the second is gone."""


@contextmanager
def workers() -> Iterator[distributed.LocalCluster]:
    """Two workers in this process, which play a host each."""
    with distributed.LocalCluster(
        n_workers=2,
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
    trials, on = FakeTrials(), SweepRun.on
    trials.memory = 10**6

    def with_fakes(*arguments: object, **more: object) -> SweepRun:
        run = on(*arguments, **more)
        run.start = trials
        return run

    monkeypatch.setattr(SweepRun, "on", with_fakes)
    monkeypatch.setattr(remote, "Kernels", lambda warm: nullcontext(FakeKernels()))
    monkeypatch.setattr(remote, "host_name", lambda worker: NAMES[worker.name])
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: SMALL))
    monkeypatch.setattr(runner, "available_bytes", trials.available_bytes)
    monkeypatch.setattr(clusters, "POLL_S", 0.05)
    monkeypatch.setattr(remote, "_ended", set())
    for module in (runner, stop, remote):
        monkeypatch.setattr(module, "time", trials.clock)
    return trials


def swept(
    local: distributed.LocalCluster,
    out: Path,
    sweep: Sweep = SWEEP,
    say: Callable[[str], None] = lambda line: None,
    progressed: Callable[[Step], None] = lambda step: None,
) -> HostsRun:
    """The sweep, run on the hosts; those of one process would wait for each other's lock."""
    with cluster_at(local.scheduler_address) as cluster:
        hosts = HostsRun.prepare(sweep, out, cluster, if_busy="beside")
        hosts.run(progressed, say)
    return hosts


def on_worker() -> str:
    """The host whose trial calls this."""
    return NAMES[distributed.get_worker().name]


# What is measured where


def test_every_host_measures_every_config_and_is_named(local, trials, tmp_path: Path) -> None:
    """In its record and their files; each by its own records."""
    steps, lines = list[Step](), list[str]()
    hosts = swept(local, tmp_path, say=lines.append, progressed=steps.append)
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
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (steps[-1].done, steps[-1].total) == (24, 24)
    assert sorted(lines)[0] == "round 1, left: a block of 6 configs"
    assert len(lines) == 4
    assert [run.host for run in hosts.runs] == ["left", "right"]


def test_a_sweep_of_several_hosts_is_read_as_such(local, trials, tmp_path: Path) -> None:
    """By status, report and compare; and nothing is left to do."""
    swept(local, tmp_path)
    schedules = sweep_schedules(tmp_path)
    assert list(schedules) == ["left", "right"]
    assert {(len(one.done), len(one.left)) for one in schedules.values()} == {(6, 0)}
    assert len(Results.load(tmp_path).table["machine"].unique()) == 2
    trials.events.clear()
    swept(local, tmp_path)
    assert trials.events == []


def test_hosts_that_are_alike_deal_the_configs_among_them(local, trials, tmp_path: Path) -> None:
    """PositiveInt groups, each with its base; they count as one machine."""
    swept(local, tmp_path, ANY)
    records = load_records(tmp_path)
    assert Counter(map(short_of, records)) == dict.fromkeys(ALL, 2)
    for number in (1, 2):
        hosts = {(r.host, r.config.batch_size) for r in records if r.round == number}
        assert sorted(host for host, _ in hosts) == ["left", "right"]
    assert unpaired(tmp_path) == []
    assert {record.any_host for record in records} == {True}
    assert {(r.trial, r.round) for r in records} == {(1, 1), (2, 2)}
    assert list(sweep_schedules(tmp_path)) == [None]
    assert len(Results.load(tmp_path).table["machine"].unique()) == 1
    trials.events.clear()
    swept(local, tmp_path, ANY)
    assert trials.events == []


def test_a_round_ends_before_the_next_one_is_dealt(local, trials, tmp_path: Path) -> None:
    """So that there is a whole page early."""
    rounds = list[int]()
    swept(local, tmp_path, ANY, progressed=lambda step: rounds.append(step.round))
    assert rounds == sorted(rounds)


@pytest.mark.parametrize("sweep", [SWEEP, ANY], ids=["each", "any"])
def test_what_does_not_fit_into_a_block_is_dealt_again(local, trials, tmp_path, sweep) -> None:
    """With its base, which is the only thing that is measured more often."""
    trials.peak, trials.memory = lambda trial: 300, 700
    swept(local, tmp_path, sweep)
    found = Counter((r.host_label, short_of(r)) for r in load_records(tmp_path))
    assert {name for _, name in found} == set(ALL)
    assert all(count == 2 for (_, name), count in found.items() if "none" not in name)
    assert unpaired(tmp_path) == []
    assert all(one.left == [] for one in sweep_schedules(tmp_path).values())


def test_what_failed_on_a_host_is_a_record_and_is_left_alone(local, trials, tmp_path) -> None:
    """As here; the other host is not concerned."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "turn" and short(trial) == "script 4" and on_worker() == "right":
            raise MeasurementError("no luck")

    trials.happens = happens
    swept(local, tmp_path)
    failed = [r for r in load_records(tmp_path) if r.status != "ok"]
    assert [(r.host, short_of(r), r.reason) for r in failed] == [("right", "script 4", "no luck")]
    assert len(load_records(tmp_path)) == 23


def test_only_what_a_schedule_asks_is_sent_to_a_host() -> None:
    """Not the samples, of which there may be many."""
    records = [measured(trial.config, SMALL) for trial in SWEEP.trials(SMALL)]
    records = [r.model_copy(update={"host": "left", "block": "0000000a"}) for r in records]
    sent = [clusters._without_samples(record) for record in records]
    sent = [Record.model_validate_json(record.model_dump_json()) for record in sent]
    assert {len(point.samples_ns) for record in sent for point in record.points} == {1}
    assert {record.host for record in sent} == {None}
    here, there = (Schedule(SWEEP, SMALL, found) for found in (records, sent))
    assert [here.pending(n) for n in (1, 2)] == [there.pending(n) for n in (1, 2)]
    for size, seconds in Pace.of(records).turns.items():
        assert Pace.of(sent).turns[size] == pytest.approx(seconds)


# How blocks are dealt


def share(trials: FakeTrials, out: Path, hosts: int, **change: object) -> Share:
    """What is left of a sweep for hosts that are alike, none of which has begun."""
    found = Share(SweepRun.on(SMALL, ANY.model_copy(update=change), out), hosts)
    assert found.waits()
    return found


def taken(share: Share) -> list[int]:
    """The batch sizes of the next block."""
    return [trial.config.batch_size for trial in share.take()]


def test_a_host_takes_its_part_of_the_round_in_whole_groups(trials, tmp_path: Path) -> None:
    """None gets all of it, though a block could hold it."""
    found = share(trials, tmp_path, 2, batch_sizes=(1, 2, 3, 4))
    assert [taken(found) for _ in range(2)] == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]]
    assert not found.waits()


def test_a_group_that_is_too_long_for_a_block_is_dealt_in_parts(trials, tmp_path: Path) -> None:
    """Of two trials at least."""
    found = share(trials, tmp_path, 2, batch_sizes=(1,), max_seconds=400.0)
    assert [taken(found) for _ in range(2)] == [[1, 1], [1]]
    found = share(trials, tmp_path, 2, batch_sizes=(1,), max_seconds=2000.0)
    assert [taken(found) for _ in range(2)] == [[1, 1], [1]]


def test_what_is_given_back_comes_first(trials, tmp_path: Path) -> None:
    """The round is not over before."""
    found = share(trials, tmp_path, 2)
    first = found.take()
    found.take()
    assert not found.waits()
    found.give_back(first)
    assert found.waits()
    assert found.take() == first
    assert found.number == 1


# Faults


def test_a_block_whose_worker_is_gone_is_dealt_to_another(trials, tmp_path, monkeypatch) -> None:
    """All records in the end, none twice but bases; what the lost one still says is not heard."""
    gone, lines = threading.Event(), list[str]()
    with workers() as local:
        trials.happens = dying(local, gone)
        hosts = swept(local, tmp_path, ANY, say=lambda line: said(line, lines, gone))
    assert "right: its worker is gone, 3 configs to be measured again" in lines
    assert Counter(map(short_of, load_records(tmp_path))) == dict.fromkeys(ALL, 2)
    assert {record.host for record in load_records(tmp_path)} == {"left"}
    assert unpaired(tmp_path) == []
    assert [(lane.host.name, lane.worker is None) for lane in hosts.lanes] == [
        ("left", False),
        ("right", True),
    ]


def dying(local: distributed.LocalCluster, gone: threading.Event) -> Happens:
    """The worker on the right is gone in the second cycle; its thread sees that later."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        worker = distributed.get_worker()
        if phase == "turn" and cycle == 2 and worker.name == 1 and not gone.is_set():
            worker.loop.add_callback(worker.close, executor_wait=False)
            assert gone.wait(60)

    return happens


def said(line: str, lines: list[str], gone: threading.Event) -> None:
    """Keep `line`; let the worker's thread go on when it tells that the worker is gone."""
    lines.append(line)
    if "is gone" in line:
        gone.set()


def test_a_host_that_is_back_gets_its_block_again(trials, tmp_path: Path) -> None:
    """Where nobody else can have it."""
    gone, lines = threading.Event(), list[str]()
    with workers() as local:
        trials.happens = dying(local, gone)

        def say(line: str) -> None:
            said(line, lines, gone)
            if "is gone" in line:
                local.scale(3)

        swept(local, tmp_path, say=say)
    found = Counter((r.host, short_of(r)) for r in load_records(tmp_path))
    assert found == {(host, name): 2 for host in ("left", "right") for name in ALL}
    assert "right: its worker is gone, 6 configs to be measured again" in lines


def test_a_host_that_stays_away_is_told_and_the_sweep_goes_on_later(
    trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other hosts do their part."""
    monkeypatch.setattr(clusters, "GRACE_S", 0.2)
    gone = threading.Event()
    with workers() as local:
        trials.happens = dying(local, gone)
        hosts = swept(local, tmp_path, say=lambda line: said(line, [], gone))
        assert {record.host for record in load_records(tmp_path)} == {"left"}
        assert hosts.troubles == ["host right: its worker is gone"]
        local.scale(3)
        wait_until(lambda: len(local.scheduler_info["workers"]) == 2)
        swept(local, tmp_path)
    found = Counter((r.host, short_of(r)) for r in load_records(tmp_path))
    assert found == {(host, name): 2 for host in ("left", "right") for name in ALL}


def test_a_host_with_trouble_gets_no_more_and_is_told(local, trials, tmp_path: Path) -> None:
    """What it has written counts."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "end" and short(trial) == "none 4" and on_worker() == "right":
            raise OSError(28, "No space left on device")

    trials.happens = happens
    hosts = swept(local, tmp_path, ANY)
    assert [line for line in hosts.troubles if "No space left on device" in line] == hosts.troubles
    assert len(hosts.troubles) == 1
    found = Counter(map(short_of, load_records(tmp_path)))
    assert all(count == 2 for name, count in found.items() if "none" not in name)
    assert set(found) == set(ALL)


def test_an_unknown_fault_on_a_host_is_told_in_one_line(local, trials, tmp_path: Path) -> None:
    """And ends nothing but its part."""

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if on_worker() == "right":
            raise ZeroDivisionError("one\ntwo")

    trials.happens = happens
    hosts = swept(local, tmp_path)
    assert hosts.troubles == ["host right: one"]
    assert {record.host for record in load_records(tmp_path)} == {"left"}


def test_a_host_whose_workers_die_again_and_again_gets_no_more(trials, tmp_path) -> None:
    """What it measures may be the cause."""
    found, released = share(trials, tmp_path, 1), SimpleNamespace(release=lambda: None)
    hosts = HostsRun(None, [lane := clusters.Lane(host("a"), found, None)], True, "refuse")
    for _ in range(clusters.MOST_LOSSES):
        assert lane.trouble is None
        lane.worker, lane.trials, lane.future = "tcp://a", found.take(), released
        hosts._lose(lane)
    assert lane.trouble == "its worker has died 3 times"


@pytest.mark.usefixtures("heeding_interrupts")
def test_an_interrupt_ends_the_blocks_in_flight_with_their_cycle(local, trials, tmp_path) -> None:
    """Their records are kept and say so; the sweep goes on later."""
    first = threading.Lock()

    def happens(phase: str, trial: Trial, cycle: int) -> None:
        if phase == "turn" and cycle == 2:
            if first.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: remote._ended, 60)

    trials.happens = happens
    with pytest.raises(KeyboardInterrupt):
        swept(local, tmp_path)
    early = load_records(tmp_path)
    assert {record.ended_by for record in early} == {"interrupted"}
    assert {len(point.turns) for record in early for point in record.points} == {2}
    assert trials.alive == []
    trials.happens = lambda *_: None
    swept(local, tmp_path)
    assert all(one.left == [] for one in sweep_schedules(tmp_path).values())


def test_a_time_budget_ends_the_blocks_on_their_hosts(
    local, trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have it from the start."""
    monkeypatch.setattr(clusters, "time", trials.clock)
    sweep = SWEEP.model_copy(update={"max_seconds": 1000.0, "batch_sizes": (1,)})
    with cluster_at(local.scheduler_address) as cluster:
        hosts = HostsRun.prepare(sweep, tmp_path, cluster, if_busy="beside")
        hosts.run(lambda step: None, budget_s=60.0)
    records = load_records(tmp_path)
    assert {record.ended_by for record in records} == {"interrupted"}
    assert {record.round for record in records} == {1}
    assert trials.clock.now < 1000 + 3 * 60


def test_a_block_that_nobody_waits_for_ends_with_its_cycle(local, trials, tmp_path: Path) -> None:
    """As when this command is killed."""
    begun = threading.Event()
    trials.happens = lambda phase, *_: begun.set() if phase == "turn" else None
    with cluster_at(local.scheduler_address) as cluster:
        sweep = ANY.model_copy(update={"max_seconds": 86_000.0})
        hosts = HostsRun.prepare(sweep, tmp_path, cluster, if_busy="beside")
        lane = hosts.lanes[0]
        assert lane.share.waits()
        hosts._deal(lane, float("inf"))
        assert begun.wait(60)
    wait_until(lambda: trials.alive == [], 60)
    assert load_records(tmp_path) == []


# What is refused


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "carrier-pigeon://home"])
def test_a_wrong_address_is_told_in_one_line(address: str, tmp_path: Path, monkeypatch) -> None:
    """Nothing is written."""
    monkeypatch.setattr(of_hosts, "CONNECT_S", 0.5)
    with pytest.raises(RequestError, match=f"none at '{address}'") as caught, cluster_at(address):
        pass
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, in one line."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    missing = r"pip install 'scalebench\[cluster\]'"
    with pytest.raises(RequestError, match=missing), cluster_at("tcp://x"):
        pass


class FakeClient:
    """Of a scheduler without workers, or of one that is `gone`."""

    def __init__(self, gone: bool = False) -> None:
        self.gone = gone

    def nthreads(self) -> dict[str, int]:
        """As dask's."""
        if self.gone:
            raise OSError("Timed out\nafter a while")
        return {}


def test_a_scheduler_without_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that starts one."""
    monkeypatch.setattr(of_hosts, "CONNECT_S", 0.0)
    with pytest.raises(RequestError, match=r"no workers at tcp://x: .*'dask worker tcp://x"):
        Cluster(FakeClient(), "tcp://x").all_hosts()


def test_a_scheduler_that_is_gone_is_told() -> None:
    """And that the sweep can be gone on with."""
    told = r"the scheduler at tcp://x no longer answers \(Timed out\); what is done is kept"
    with pytest.raises(ScalebenchError, match=told):
        Cluster(FakeClient(gone=True), "tcp://x").workers()


def host(name: str, identity: str | None = None, **change: object) -> Host:
    """A host as it would describe itself, with this software."""
    on = machine(cores=2, smt=False).model_copy(update={"identity": identity})
    told = {"machine": on, "software": Software.here(), "code": remote.code_digest()}
    return Host(name=name, **{**told, **change})


def test_two_workers_on_one_host_are_refused() -> None:
    """By the host's name, or as one machine since the same start."""
    two = {"tcp://a": host("a"), "tcp://b": host("a")}
    for if_busy in ("refuse", "beside"):
        with pytest.raises(RequestError, match="host a has two workers, tcp://a and tcp://b"):
            of_hosts.require_distinct(two, if_busy)
    two = {"tcp://a": host("a", "same"), "tcp://b": host("b", "same")}
    with pytest.raises(RequestError, match="two workers"):
        of_hosts.require_distinct(two, "wait")
    of_hosts.require_distinct(two, "beside")
    of_hosts.require_distinct({"tcp://a": host("a"), "tcp://b": host("b")}, "refuse")


def test_only_hosts_that_are_alike_stand_in_for_each_other() -> None:
    """What differs is named."""
    other = host("b", machine=machine(cores=4, smt=False))
    of_hosts.require_alike([host("a"), host("b")])
    with pytest.raises(RequestError, match=r"a and b differ in cores.*leave '--any-host' out"):
        of_hosts.require_alike([host("a"), other])


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            {"software": Software(python="2.7", scalebench="0", versions={})},
            "host b has other software",
        ),
        ({"code": "another"}, "scalebench's code .* against another"),
        (ModuleNotFoundError("no", name="scalebench_lib"), "worker tcp://b lacks scalebench_lib"),
        ({"name": "b"}, "worker tcp://b has another scalebench"),
        ('{"name": "b"}', "worker tcp://b has another scalebench"),
    ],
)
def test_hosts_need_the_same_software(answer: object, complaint: str) -> None:
    """Two checkouts of one version can differ, too."""
    alike = isinstance(answer, dict) and "name" not in answer
    told = host("b", **answer).model_dump_json() if alike else answer
    with pytest.raises(RequestError, match=complaint) as caught:
        of_hosts._checked("tcp://b", told)
    assert "\n" not in str(caught.value)
    assert of_hosts._checked("tcp://b", host("b").model_dump_json()).name == "b"


def test_a_folder_is_of_one_machine_of_each_host_or_of_any(local, trials, tmp_path: Path) -> None:
    """As it was begun."""
    swept(local, tmp_path / "each")
    swept(local, tmp_path / "any", ANY)
    run_of = {"one": SWEEP.model_copy(update={"hosts": "one"}), "each": SWEEP, "any": ANY}
    for folder in ("each", "any"):
        for kind, sweep in run_of.items():
            if kind != folder:
                with pytest.raises(RequestError, match=f"holds a sweep of {folder} of several"):
                    SweepRun.prepare(sweep, tmp_path / folder)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sweep.yaml").write_text(run_of["one"].dump())
    with pytest.raises(RequestError, match="holds a sweep of one machine: use another folder"):
        swept(local, tmp_path / "one")


def test_a_host_is_called_what_its_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit for file names."""
    monkeypatch.setenv(LABEL, "../rack 7/ü")
    assert remote.host_name(None) == "rack_7"
    monkeypatch.delenv(LABEL)
    monkeypatch.setattr(remote.platform, "node", lambda: "node-3.example.org")
    assert remote.host_name(None) == "node-3"


def test_what_nannies_set_is_nothing_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """They tell workers to compute with one thread; what the user has set stays."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    remote.describe(SimpleNamespace(nanny=None))
    assert os.environ["OMP_NUM_THREADS"] == "1"
    told = remote.describe(SimpleNamespace(nanny="tcp://x"))
    assert "OMP_NUM_THREADS" not in Host.model_validate_json(told).software.environment
    assert os.environ["MKL_NUM_THREADS"] == "4"


def test_a_worker_is_quiet_during_a_block() -> None:
    """And as before afterwards."""
    often, rarely = SimpleNamespace(callback_time=10.0), SimpleNamespace(callback_time=60_000.0)
    worker = SimpleNamespace(periodic_callbacks={"a": often, "b": rarely})
    with remote._quiet(worker):
        assert (often.callback_time, rarely.callback_time) == (2000.0, 60_000.0)
    assert (often.callback_time, rarely.callback_time) == (10.0, 60_000.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--any-host"], "any_host: is of a cluster"),
        (["--scheduler", "tcp://x:1", "--against", "python"], "against: takes turns on one mach"),
        (["--scheduler", "nowhere://x"], "scheduler: none at 'nowhere://x'"),
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
    monkeypatch.setattr(cli, "report", pages.append)
    trials.happens = at("end", "script 4", MeasurementError("no luck"))
    options = ("--batch-sizes", "1,4", "--optimizations", "none,script", "--if-busy", "beside")
    where = ("--scheduler", local.scheduler_address)
    code, told, complaint = scalebench("sweep", tmp_path, *options, *where)
    assert told.startswith(f"2 hosts: left, right\n{SMALL}\nleft: 4 configs to measure in 2 rounds")
    assert "round 1, left: a block of 4 configs\n" in told
    assert "round 2, right, BERT, batch 1 of 16 tokens, none, SMT off: 1 thread 100 ms" in told
    assert code == 1
    assert complaint == f"scalebench: 1 config failed: 'scalebench status {tmp_path}' says why\n"
    assert pages == [tmp_path]
    code, told, _ = scalebench("status", tmp_path)
    assert (code, told.splitlines()[0]) == (0, "7 done, 1 failed, 0 left")
    assert "SMT off on " in told
    code, told, _ = scalebench("sweep", tmp_path, *options, *where, "--dry-run")
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
            env = {LABEL: name, PLACE: str(runtime)}
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


def measured_by(address: str, out: Path, sweep: Sweep = TINY, **how: object) -> HostsRun:
    """The sweep, run on the workers at `address`."""
    with cluster_at(address) as cluster:
        hosts = HostsRun.prepare(sweep, out, cluster, if_busy="beside")
        hosts.run(lambda step: None, **how)
    return hosts


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_block(processes, tmp_path, monkeypatch) -> None:
    """20 configs, one of two workers killed in the middle: all records, none twice but bases."""
    monkeypatch.setattr(runner, "BLOCK_S", 1.3)  # four trials
    address, start = processes
    start("left")
    doomed, out, lines = start("doomed"), tmp_path / "sweep", list[str]()

    def say(line: str) -> None:
        lines.append(line)
        if sum("doomed: a block" in one for one in lines) == 2 and "doomed" in line:
            threading.Timer(4.0, doomed.kill).start()

    measured_by(address, out, say=say)
    records = load_records(out)
    found = Counter(map(short_of, records))
    assert set(found) == {f"{name} {size}" for name in TINY.optimizations for size in range(1, 11)}
    assert {record.status for record in records} == {"ok"}
    assert all(count == 1 for name, count in found.items() if "none" not in name)
    assert unpaired(out) == []
    assert any("doomed: its worker is gone, 4 configs" in line for line in lines)
    assert {record.host for record in records} == {"left", "doomed"}
    assert [path.name for path in out.glob("*/*") if path.name.startswith(".")] == []


@pytest.mark.slow
def test_two_workers_with_one_lock_never_measure_at_once(processes, tmp_path: Path) -> None:
    """Though they are called different hosts: who comes second gets nothing, and is told."""
    address, start = processes
    for name in ("left", "also left"):
        start(name, place="left")
    sweep = TINY.model_copy(update={"batch_sizes": (1, 2), "max_seconds": 1.0})
    with cluster_at(address) as cluster:
        hosts = HostsRun.prepare(sweep, tmp_path / "sweep", cluster, if_busy="beside")
        hosts._if_busy = "refuse"
        hosts.run(lambda step: None)
    assert "this machine is measuring" in hosts.troubles[0]
    assert len(hosts.troubles) == 1
    records, names = load_records(tmp_path / "sweep"), ("none 1", "script 1", "none 2", "script 2")
    assert Counter(map(short_of, records)) == dict.fromkeys(names, 1)


@pytest.mark.slow
def test_a_termination_of_the_command_ends_the_block_on_its_host(processes, tmp_path) -> None:
    """What it saw is kept, and the worker is free for the next sweep."""
    address, start = processes
    start("left")
    out = tmp_path / "sweep"
    options = ("--model", "bert-tiny", "--threads", "1", "--rounds", "1", "--max-seconds", "100")
    where = ("--scheduler", address, "--batch-sizes", "1,2", "--optimizations", "none")
    where = (*where, "--target-ci", "0.0001")
    with subprocess.Popen(command("sweep", out, *options, *where), stdout=subprocess.PIPE) as run:
        wait_until(lambda: b"a block of 2 configs" in run.stdout.readline())
        time.sleep(20)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 143
    assert [r.ended_by for r in load_records(out)] == ["interrupted"] * 2
    hosts = measured_by(address, tmp_path / "next", TINY.model_copy(update={"batch_sizes": (1,)}))
    assert hosts.troubles == []
