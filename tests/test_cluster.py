"""Sweeps of several hosts: real schedulers and worker processes, on this machine."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from scalebench_lib.config import Config, Sweep, Visit
from scalebench_lib.errors import RequestError
from scalebench_lib.files import DamagedError, sealed
from scalebench_lib.record import Record, Software, load_records, next_visit
from scalebench_lib.reference import Reference, reference_for, require_one_machine
from scalebench_lib.results import load_results, results_table
from scalebench_lib.sweep import cluster as clusters
from scalebench_lib.sweep import fleet as fleets
from scalebench_lib.sweep import remote
from scalebench_lib.sweep.cluster import cluster_at
from scalebench_lib.sweep.fleet import Fleet
from scalebench_lib.sweep.locks import PLACE
from scalebench_lib.sweep.remote import LABEL, Found, Host
from scalebench_lib.sweep.runner import Step
from scalebench_lib.sweep.state import sweep_state
from tests.madeup import machine, measured
from tests.test_cli import QUICK, command
from tests.waiting import wait_until

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")


def quiet(_: Step) -> None:
    """No progress to be seen."""


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """The address of a scheduler of our own, on this machine alone."""
    code = (
        "import asyncio, sys; from distributed import Scheduler\n"
        "async def main():\n"
        "    async with Scheduler(host='127.0.0.1', port=0, dashboard=False) as s:\n"
        "        print(s.address, flush=True); await s.finished()\n"
        "asyncio.run(main())"
    )
    start = [sys.executable, "-c", code]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def worker(address: str, folder: Path, **env: str) -> Iterator[subprocess.Popen]:
    """A worker process, without a nanny; `env` is added to its environment."""
    code = (
        "import asyncio, sys; from distributed import Worker\n"
        "async def main():\n"
        "    async with Worker(sys.argv[1], nthreads=1, dashboard=False) as w:\n"
        "        print('there', flush=True); await w.finished()\n"
        "asyncio.run(main())"
    )
    start = [sys.executable, "-c", code, address]
    told = {**os.environ, **env}
    with subprocess.Popen(
        start, stdout=subprocess.PIPE, text=True, cwd=folder, env=told
    ) as process:
        try:
            assert process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


Start = Callable[[str], subprocess.Popen]


def place(folder: Path, name: str) -> str:
    """A runtime folder in `folder`: a worker that has one of its own plays a host of its own."""
    path = folder / f"runtime-{name}"
    path.mkdir(mode=0o700, exist_ok=True)
    return str(path)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A scheduler's address, and the runtime folder of the host ``left``, whose worker stays."""
    folder = tmp_path_factory.mktemp("cluster")
    runtime = place(folder, "left")
    with scheduler(folder) as address, worker(address, folder, **{LABEL: "left", PLACE: runtime}):
        yield address, runtime


@pytest.fixture
def cluster(left: tuple[str, str], tmp_path: Path) -> Iterator[tuple[str, Start]]:
    """The scheduler's address, and what makes another host join, for this test."""
    address, _ = left
    with ExitStack() as stack:

        def start(name: str, **env: str) -> subprocess.Popen:
            told = {LABEL: name, PLACE: place(tmp_path, name), **env}
            return stack.enter_context(worker(address, tmp_path, **told))

        yield address, start
    with cluster_at(address) as connected:
        wait_until(lambda: len(connected.alive()) == 1)


def tiny(hosts: str, sizes: tuple[int, ...], **change: object) -> Sweep:
    """A sweep of moments."""
    return Sweep(
        model="bert-tiny",
        batch_sizes=sizes,
        optimizations=("none",),
        threads=(1,),
        max_seconds=0.2,
        rounds=1,
        hosts=hosts,
        **change,
    )


def swept(sweep: Sweep, out: Path, address: str, progress: Callable[[Step], None] = quiet) -> Fleet:
    """The sweep, run on the cluster."""
    with cluster_at(address) as connected:
        fleet = Fleet.prepare(sweep, out, connected, retry_failed=False)
        with fleet.alone():
            fleet.run(progress)
    return fleet


def test_every_host_measures_every_config_and_is_named(cluster, tmp_path: Path) -> None:
    """In the record, its file, the results, and the reference speed; then nothing is left."""
    address, start = cluster
    start("right")
    out, steps = tmp_path / "sweep", list[Step]()
    fleet = swept(tiny("each", (1, 2)), out, address, steps.append)
    records = load_records(out)
    assert Counter((r.host, r.config.batch_size, r.status) for r in records) == {
        (host, size, "ok"): 1 for host in ("left", "right") for size in (1, 2)
    }
    for record in records:
        assert f"-{record.host}-v1" in record.name
        assert (out / "records" / f"{record.name}.json").exists()
        notebook = (out / "notebooks" / f"{record.name}.ipynb").read_text()
        assert str(tmp_path) not in notebook
    assert fleet.trouble == []
    assert steps[-1].done == steps[-1].total == 4
    assert len(load_results(out)["machine"].unique()) == 2
    assert set(Reference.load(out).probe_ns) == {"1 @left", "1 @right"}
    with cluster_at(address) as connected:
        again = Fleet.prepare(tiny("each", (1, 2)), out, connected, retry_failed=False).state
    for state in (sweep_state(out), again):
        assert (len(state.done), state.failed, state.left) == (4, [], [])


@pytest.mark.slow
def test_two_workers_on_one_host_never_measure_at_once(left, cluster, tmp_path: Path) -> None:
    """Nor do two that are called different hosts, but are one machine: the lock is the host's."""
    address, start = cluster
    start("also left", **{PLACE: left[1]})
    swept(tiny("any", (1, 2, 4)), tmp_path / "sweep", address)
    records = load_records(tmp_path / "sweep")
    assert [r.status for r in records] == ["ok"] * 3
    assert {r.host for r in records} == {"left", "also_left"}
    assert {r.any_host for r in records} == {True}
    ordered = sorted(records, key=lambda r: r.started)
    assert all(one.finished <= other.started for one, other in pairwise(ordered))
    assert len(results_table(records)["machine"].unique()) == 1


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("tcp://127.0.0.1:1", "no scheduler at 'tcp://127.0.0.1:1'"),
        ("carrier-pigeon://home", "no scheduler at 'carrier-pigeon://home'"),
    ],
)
def test_a_wrong_address_is_told_in_one_line(address, complaint, tmp_path, monkeypatch) -> None:
    """With exit code 2, and nothing is written."""
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 0.5)
    with pytest.raises(RequestError, match=complaint) as caught, cluster_at(address):
        pass
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, in one line."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(RequestError, match=r"pip install 'scalebench\[cluster\]'"),
        cluster_at("tcp://x"),
    ):
        pass


def host(name: str, **change: object) -> Host:
    """A host as it would describe itself, with this software."""
    told = {
        "machine": machine(cores=2, smt=False),
        "software": Software.here(),
        "code": remote.code_digest(),
        "available_bytes": 2**34,
    }
    return Host(name=name, **{**told, **change})


def test_only_hosts_that_are_alike_stand_in_for_each_other() -> None:
    """The field that differs is named."""
    other = host("b", machine=machine(cores=4, smt=False))
    with pytest.raises(RequestError, match=r"a and b differ in cores.*leave '--any-host' out"):
        fleets._alike([host("a"), other])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"software": Software(python="2.7", scalebench="0", versions={})}, "host b has other sof"),
        ({"code": "another"}, "scalebench's code .* against another"),
        ({"trouble": "allocator 'x' is not installed"}, "host b: allocator 'x' is not"),
    ],
)
def test_hosts_need_the_same_software(change: dict, complaint: str) -> None:
    """Two checkouts of one version can differ too."""
    clusters._require_able(host("b"), ["default"])
    with pytest.raises(RequestError, match=complaint):
        clusters._require_able(host("b", **change), ["default"])


def lane(record: Record) -> fleets.Lane:
    """A host that was asked for the visit of `record`."""
    visit = Visit(config=record.config, threads=(1,), number=record.visit)
    return fleets.Lane(host("a"), "tcp://a", None, 0, visit)


def sent(record: bytes | None) -> Found:
    """What a worker sends."""
    return Found(record, None, "it broke", "warm", full=False, available_bytes=0)


def test_what_a_host_sends_is_checked_before_it_is_written() -> None:
    """Its seal, its schema, and that it is what was asked for."""
    record = measured(Config(batch_size=1), machine(cores=2, smt=False))
    good = sealed(record.model_dump_json(indent=1)).encode()
    assert fleets._checked(sent(good), lane(record)) == record
    unsealed = record.model_dump_json(indent=1).encode()
    for bad in (
        good[:-9],
        unsealed,
        good.replace(b"ok", b"no", 1),
        sealed('{\n "a": 1\n}').encode(),
    ):
        with pytest.raises(DamagedError, match="arrived damaged"):
            fleets._checked(sent(bad), lane(record))
    other = record.model_copy(update={"visit": 2})
    with pytest.raises(DamagedError, match="the record of another visit"):
        fleets._checked(sent(good), lane(other))
    with pytest.raises(DamagedError, match="it broke"):
        fleets._checked(sent(None), lane(record))


def test_hosts_are_not_mixed_with_a_sweep_of_one_machine(tmp_path: Path) -> None:
    """Nor is one machine's sweep gone on with on a cluster."""
    here = measured(Config(batch_size=1), machine(cores=2, smt=False))
    there = measured(Config(batch_size=2), machine(cores=4, smt=False))
    require_one_machine([r.model_copy(update={"host": h}) for r, h in ((here, "a"), (there, "b"))])
    with pytest.raises(RequestError, match="differ in their host"):
        require_one_machine([here, there.model_copy(update={"host": "b"})])
    (tmp_path / "sweep.yaml").write_text(tiny("one", (1,)).dump())
    with pytest.raises(RequestError, match="holds another sweep, of one machine"):
        fleets.usable_records(tiny("each", (1,)), tmp_path)


def test_visits_are_numbered_by_host_or_by_all_of_them(tmp_path: Path) -> None:
    """As their files are named."""
    config = Config(batch_size=1)
    for name, visit in (("a", 1), ("a", 2), ("b-v7", 1)):
        record = measured(config, machine(cores=2, smt=False))
        record.model_copy(update={"host": name, "visit": visit}).save(tmp_path / "records")
    assert len(load_records(tmp_path)) == 3
    assert [next_visit(tmp_path, config, host) for host in ("", "a", "b-v7", "*")] == [1, 3, 2, 3]


def test_each_host_has_a_reference_speed_of_its_own(tmp_path: Path) -> None:
    """And a later sweep of the same hosts is read with the same."""
    found = []
    for name, cores in (("a", 2), ("b", 4)):
        record = measured(Config(batch_size=1), machine(cores=cores, smt=False))
        probes = [(1000 * cores,) * len(p.samples_ns) for p in record.points]
        points = tuple(
            p.model_copy(update={"probe_before_ns": q, "probe_after_ns": q})
            for p, q in zip(record.points, probes, strict=True)
        )
        found.append(record.model_copy(update={"host": name, "points": points}))
    reference_for(tmp_path / "one", found).save((tmp_path / "one", (tmp_path / "one").mkdir())[0])
    kept = Reference.load(tmp_path / "one")
    assert kept.probe_ns["1 @a"] == 2000
    assert kept.probe_ns["1 @b"] == 4000
    (tmp_path / "two").mkdir()
    assert reference_for(tmp_path / "two", found[1:]).probe_ns == kept.probe_ns
    assert len(results_table(found, kept)) == 6


@pytest.mark.slow
def test_a_host_that_dies_has_its_visit_made_elsewhere(cluster, tmp_path, monkeypatch) -> None:
    """20 configs, one of two workers killed in the middle of a visit: complete, none doubled."""
    monkeypatch.setattr(fleets, "GRACE_SECONDS", 1.0)
    address, start = cluster
    doomed = start("doomed")
    sizes, out, begun = tuple(range(1, 21)), tmp_path / "sweep", list[str]()

    def progress(step: Step) -> None:
        if step.record is None and step.visit.host == "doomed":
            begun.append(step.visit.name)
            if len(begun) == 4:
                threading.Timer(0.5, doomed.kill).start()

    fleet = swept(tiny("any", sizes), out, address, progress)
    records = load_records(out)
    assert Counter(r.config.batch_size for r in records) == dict.fromkeys(sizes, 1)
    assert {r.status for r in records} == {"ok"}
    assert Counter(r.host for r in records)["doomed"] == 3
    assert fleet.trouble == ["host doomed: is gone"]
    for name in ("doomed", "left"):
        own = sorted((r for r in records if r.host == name), key=lambda r: r.started)
        assert all(one.finished <= other.started for one, other in pairwise(own))


@pytest.mark.slow
def test_a_host_that_is_gone_is_waited_for_and_then_left(cluster, tmp_path, monkeypatch) -> None:
    """Where every host counts, what it has left is told; when it is back the sweep goes on."""
    monkeypatch.setattr(fleets, "GRACE_SECONDS", 1.0)
    address, start = cluster
    doomed = start("doomed")
    out, sweep = tmp_path / "sweep", tiny("each", (1, 2))

    def progress(step: Step) -> None:
        if (
            step.record is None
            and step.visit.config.batch_size == 2
            and step.visit.host == "doomed"
        ):
            doomed.send_signal(signal.SIGKILL)

    fleet = swept(sweep, out, address, progress)
    assert Counter(r.host for r in load_records(out)) == {"doomed": 1, "left": 2}
    assert len(fleet.state.left) == 1
    start("doomed")
    assert swept(sweep, out, address).state.left == []
    assert Counter(r.host for r in load_records(out)) == {"doomed": 2, "left": 2}


@pytest.mark.slow
def test_an_interrupt_ends_the_kernels_of_the_hosts(cluster, tmp_path: Path) -> None:
    """With its exit code; what is done is kept, and the worker is free for the next."""
    address, _ = cluster
    out, sweep = tmp_path / "sweep", tiny("each", (1, 2, 4))
    options = ("--batch-sizes", "1,2,4", "--optimizations", "none", *QUICK, "--scheduler", address)
    with subprocess.Popen(command("sweep", out, *options), stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: list(out.glob("records/*.json")))
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 143
    kept = {r.name for r in load_records(out)}
    assert swept(sweep, out, address).state.left == []
    assert len(load_records(out)) == 3
    assert kept <= {r.name for r in load_records(out)}
