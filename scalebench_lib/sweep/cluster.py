"""A sweep on the hosts of a dask cluster: each task is a block, run there as it would be here.

`HostsRun`, in this process, deals the blocks out and writes all records; `describe`,
`measure_block` and `end_blocks` run on the hosts' workers. dask sends pickles: use it on networks
that you trust, or with ``tls://``.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import os
import pickle
import platform
import re
import tempfile
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from scalebench_lib.allocators import require_installed
from scalebench_lib.config import StrictModel, Sweep, Trial
from scalebench_lib.errors import RequestError, ScalebenchError, reason_of
from scalebench_lib.files import write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS, PROJECT
from scalebench_lib.record import Record, Software, next_trial_number
from scalebench_lib.sweep.block import Block
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import lock_machine
from scalebench_lib.sweep.progress import Display
from scalebench_lib.sweep.runner import Round, StopRequest, SweepProgress
from scalebench_lib.sweep.sweep_run import SweepRun
from scalebench_lib.text import pluralize

HOST = "SCALEBENCH_HOST"
"""The environment variable that gives a worker's host another name than the system's."""

CONNECT_S = 10.0
"""Time limit of the scheduler's answer, and then of the first worker."""

POLL_S = 1.0
"""Poll the hosts rarely: this machine may be one of them."""


class Host(StrictModel):
    """A host as its worker (an address) describes it."""

    worker: str
    name: str
    machine: Machine
    software: Software


def describe(dask_worker: Any) -> str:
    """Return the `Host` of the worker that runs this, in JSON."""
    if getattr(dask_worker, "nanny", None):
        _undo_nanny_environment()
    name = os.environ.get(HOST) or platform.node().partition(".")[0]
    return Host(
        worker=dask_worker.address,
        name=re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:63] or "host",
        machine=Machine.here(),
        software=software_here(),
    ).model_dump_json()


def _undo_nanny_environment() -> None:
    """Unset the variables that dask's nannies set, such as OMP_NUM_THREADS."""
    config = importlib.import_module("dask.config")
    for name, value in config.get("distributed.nanny.pre-spawn-environ").items():
        if os.environ.get(name) == str(value):
            del os.environ[name]


def software_here() -> Software:
    """Return this process's software, with a digest of scalebench's code: a version may change."""
    files = [NOTEBOOKS / "measure.ipynb", *sorted((PROJECT / "scalebench_lib").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    here = Software.here()
    return here.model_copy(update={"versions": {**here.versions, "scalebench's code": digest}})


def measure_block(
    run: SweepRun,
    number: int,
    configs: Container[str],
    budget_s: float,
    sweep_id: str,
    warm: bool,
    if_busy: str,
) -> tuple[list[Record], dict[str, str], set[str]]:
    """Measure a block of round `number` of `run` here: as many of `configs` (ids) as fit.

    Returns the new records, bases first, their notebooks by name, and the ids that are left.
    """
    worker, known = importlib.import_module("distributed").get_worker(), len(run.records)
    stop = _HostStop(sweep_id, worker, budget_s)
    require_installed(run.sweep.allocators)
    _quieten(worker)
    scratch = tempfile.TemporaryDirectory(dir=worker.local_directory)  # dask's, after a kill too
    with scratch as folder:
        out = Path(folder) / run.out.name
        run = replace(run, out=out, python=Interpreter.here())
        with lock_machine(str(out), if_busy), Kernels(warm) as run.kernels:
            this_round = Round([run], number, stop, wanted=configs)
            if this_round.queue and not stop():
                this_round.run_block()
        notebooks = {path.stem: path.read_text("utf-8") for path in out.glob("notebooks/*.ipynb")}
    left = {trial.config.id for trial in this_round.queue}
    return run.records[known:], notebooks, left


_ended: set[str] = set()


def end_blocks(sweep_id: str) -> None:
    """End the blocks of a sweep with the cycle in flight, and those that begin later."""
    _ended.add(sweep_id)


class _HostStop(StopRequest):
    """Ends a block at its deadline, when its sweep is ended, and when nobody waits for it."""

    def __init__(self, sweep_id: str, worker: Any, budget_s: float) -> None:
        super().__init__(time.monotonic() + budget_s)
        self._sweep_id, self._worker, self._key = sweep_id, worker, worker.get_current_task()

    def asked(self) -> bool:
        task = self._worker.state.tasks.get(self._key)
        return self._sweep_id in _ended or task is None or task.state == "cancelled"


def _quieten(worker: Any) -> None:
    """Let a worker do its periodic work rarely from now on, since that would slow turns down.

    A worker takes 3 % of a CPU, in 100 slices a second; a quiet one 0.2 %, in 5. A nanny and a
    scheduler (1.3 %, in 50, each) are left alone.
    """
    for call in worker.periodic_callbacks.values():
        call.callback_time = max(call.callback_time, 2000)  # ms; at 3000 it complains


@contextmanager
def client_of(address: str) -> Iterator[Any]:
    """Connect to the scheduler at `address`; raise `RequestError` where that cannot be."""
    try:
        distributed = importlib.import_module("distributed")
        for name in ("distributed", "distributed.client", "tornado"):  # we say it in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except ModuleNotFoundError:
        raise RequestError(
            "scheduler: needs dask.distributed: pip install -e '.[cluster]'"
        ) from None
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise RequestError(f"scheduler: none at {address!r} ({reason_of(error)})") from None
    try:
        yield client
    finally:
        with suppress(Exception):  # the sweep has ended
            client.close(timeout=2)


def hosts_of(client: Any, if_busy: str, alike: bool) -> list[Host]:
    """Return the hosts of all workers, by name; raise `RequestError` where they do not fit."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError:
        address = client.scheduler.address
        raise RequestError(
            f"scheduler: no workers at {address}: start some with "
            f"'dask worker {address} --nthreads 1'"
        ) from None
    answers = client.run(describe, on_error="return")
    hosts = sorted((_checked(*answer) for answer in answers.items()), key=lambda host: host.name)
    for a, b in combinations(hosts, 2):
        same = a.machine.identity is not None and a.machine.identity == b.machine.identity
        if a.name == b.name or (same and if_busy != "ignore"):
            raise RequestError(
                f"host {a.name} has two workers, {a.worker} and {b.worker}, which would disturb "
                "each other: start one a host"
            )
        differs = a.machine.differs_from(b.machine) or a.machine.other_setting(b.machine)
        if alike and differs:
            raise RequestError(
                f"any_host: {a.name} and {b.name} differ in {differs}, and only hosts that are "
                "alike can stand in for each other: leave '--any-host' out"
            )
    return hosts


def _checked(worker: str, answer: Any) -> Host:
    """Return the host of `worker` from its `answer`; `RequestError` for other software."""
    try:
        host = Host.model_validate_json(answer)
    except ValidationError:
        raise RequestError(
            f"worker {worker} lacks this scalebench ({answer!r:.80}): install this checkout there"
        ) from None
    if differs := software_here().differs_from(host.software):
        raise RequestError(
            f"host {host.name} has other software than this one ({differs}): make them the same"
        )
    return host


@dataclass
class Lane:
    """A host, and the `trials` of round `number` that it measures."""

    host: Host
    run: SweepRun
    number: int = 0
    trials: Sequence[Trial] = ()
    future: Any = None


class HostsRun:
    """A sweep on the hosts of a cluster: ``each`` of them, or ``any``.

    `runs` has one run for each host, or a single one where any host may measure. The constructor
    checks hosts and folder `out`, writes nothing, and raises `RequestError` as `SweepRun.prepare`.
    """

    def __init__(
        self, sweep: Sweep, out: Path, client: Any, retry_failed: bool, warm: bool, if_busy: str
    ) -> None:
        any_host = sweep.hosts == "any"
        hosts = hosts_of(client, if_busy, alike=any_host)
        prepare = partial(SweepRun.prepare, sweep, out, retry_failed)
        self.runs = [
            prepare(machine=host.machine, host=None if any_host else host.name)
            for host in (hosts[:1] if any_host else hosts)
        ]
        self.lanes = list(map(Lane, hosts, self.runs * len(hosts)))
        self._id = uuid.uuid4().hex
        self._measure = partial(measure_block, sweep_id=self._id, warm=warm, if_busy=if_busy)
        self._client, self._rounds, self._total = client, range(1, sweep.rounds + 1), 0
        self._tried, self._failures = set[tuple[str | None, int, str]](), list[str]()

    def __str__(self) -> str:
        names = ", ".join(lane.host.name for lane in self.lanes)
        return f"{pluralize(len(self.lanes), 'host')}: {names}"

    def run_with_progress(self, budget_s: float, console: Console) -> list[str]:
        """Run what is left, on all hosts at once; return which hosts have failed, and why.

        Raises as `run_rounds`.
        """
        stop = StopRequest(time.monotonic() + budget_s)
        with (
            self.runs[0].locked("ignore"),
            Display(self.runs, console) as self._display,
            stop.at_signals(),
        ):
            for run in self.runs:
                run.reload()
                self._total += sum(len(run.schedule.pending(n)) for n in self._rounds)
            try:
                while self._deal(stop):
                    while not self._receive_ended():
                        time.sleep(POLL_S)
                        if stop.asked():
                            self._end()
            except BaseException:
                self._end()
                raise
        return self._failures

    def _end(self) -> None:
        """End the blocks in flight with their cycles."""
        with suppress(Exception):  # the cluster may be what has failed
            self._client.run(end_blocks, self._id, on_error="ignore")

    def _deal(self, stop: StopRequest) -> bool:
        """Have every idle host measure a block; return whether blocks are in flight."""
        for lane in self.lanes:
            if not (lane.trials or stop()):
                lane.number, lane.trials = self._next(lane)
                if lane.trials:
                    self._submit(lane, stop.deadline - time.monotonic())
        return any(lane.trials for lane in self.lanes)

    def _next(self, lane: Lane) -> tuple[int, list[Trial]]:
        """Return the first round that is not over, and those of its groups that a host takes.

        Of n hosts it takes 1/n of the groups that wait, so that the others get some.
        """
        run, peers = lane.run, [peer for peer in self.lanes if peer.run is lane.run]
        taken = [trial.config for peer in peers for trial in peer.trials]
        for number in self._rounds:
            pending = run.schedule.pending(number)
            if left := [t for t in pending if (run.host, number, t.config.id) not in self._tried]:
                groups = list(dict.fromkeys(t.config.group for t in left if t.config not in taken))
                chosen = groups[: math.ceil(len(groups) / len(peers))]
                return number, [t for t in left if t.config.group in chosen]
        return 0, []

    def _submit(self, lane: Lane, budget_s: float) -> None:
        """Have a host measure its trials.

        The scheduler unpickles function and arguments, and may lack scalebench: it gets a function
        that is pickled by value, and bytes.
        """

        def call(block: bytes) -> Any:
            return pickle.loads(block)()  # noqa: S301 - our own

        schedule = lane.run.schedule
        trials = [*lane.trials, *map(schedule.base, lane.trials)]
        ids = {trial.config.id for trial in trials}
        block = pickle.dumps(partial(self._measure, lane.run, lane.number, ids, budget_s))
        lane.future = self._client.submit(call, block, workers=[lane.host.worker], pure=False)
        configs = pluralize(len(lane.trials), "config")
        self._display.say(f"round {lane.number}, {lane.host.name}: a block of {configs}")
        self._show(lane)

    def _receive_ended(self) -> bool:
        """Receive the blocks that have ended, or lost their worker; return whether any has."""
        try:
            alive = self._client.nthreads()
        except (OSError, RuntimeError) as error:
            raise ScalebenchError(
                f"stopped: the scheduler no longer answers ({reason_of(error)}); what is done is "
                "kept, and the same command goes on"
            ) from None
        running = [lane for lane in self.lanes if lane.trials]
        ended = [r for r in running if r.future.status != "pending" or r.host.worker not in alive]
        for lane in ended:
            self._receive(lane)
        return bool(ended)

    def _receive(self, lane: Lane) -> None:
        """Write the records of a host's block; all of it is left where the host fails."""
        ids = {trial.config.id for trial in lane.trials}
        records, notebooks, left = [], {}, ids
        try:
            if lane.future.status == "pending":
                raise ScalebenchError("its worker is gone")
            records, notebooks, left = lane.future.result(timeout=60)
        except Exception as error:  # the other hosts go on
            self.lanes.remove(lane)
            self._failures.append(f"host {lane.host.name}: {reason_of(error)}")
            configs = pluralize(len(ids), "config")
            self._display.say(f"{self._failures[-1]}, {configs} to be measured again")
        lane.trials, lane.future = (), None  # released: a late answer is lost
        self._tried |= {(lane.run.host, lane.number, tried) for tried in ids - left}
        for record in records:
            self._save(lane, record, notebooks.get(record.name))

    def _save(self, lane: Lane, record: Record, notebook: str | None) -> None:
        """Write a record as its host's, after its notebook."""
        run, name, any_host = lane.run, lane.host.name, lane.run.host is None
        number = next_trial_number(run.out, record.config, "*" if any_host else name)
        record = record.model_copy(update={"trial": number, "host": name, "any_host": any_host})
        if notebook is not None:
            (run.out / "notebooks").mkdir(exist_ok=True)
            write_atomically(run.out / "notebooks" / f"{record.name}.ipynb", notebook)
        record.save(run.out / "records")
        self._show(lane, run.add(record))

    def _show(self, lane: Lane, record: Record | None = None) -> None:
        blocks = pluralize(sum(bool(lane.trials) for lane in self.lanes), "block")
        seconds = sum(run.seconds_left() for run in self.runs) / len(self.lanes)
        done, of = len(self._tried), self._total
        doing = f"{blocks} in turn"
        self._display.show(
            SweepProgress(lane.number, doing, Block(""), done, of, seconds, record, lane.run)
        )
