"""A sweep of several hosts: every config on each of them, or spread over any, all alike.

One visit at a time on a host, and only this process writes: what a worker sends is checked first.
A host that goes away may come back, as another worker, before its sweep is given up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scalebench_lib.config import Sweep, Visit
from scalebench_lib.errors import RequestError, one_line
from scalebench_lib.files import DamagedError, unsealed, write_atomically
from scalebench_lib.record import Record, Status, load_records
from scalebench_lib.reference import reference_for
from scalebench_lib.sweep.cluster import Cluster
from scalebench_lib.sweep.folder import disk_errors_told, sweep_up, usable_records
from scalebench_lib.sweep.locks import folder_to_itself
from scalebench_lib.sweep.remote import Found, Host
from scalebench_lib.sweep.rounds import Rounds
from scalebench_lib.sweep.runner import Job, Progress, Step
from scalebench_lib.sweep.state import State

GRACE_SECONDS = 20.0
"""A nanny takes some seconds to start a worker that has died anew."""

POLL_SECONDS = 0.2


@dataclass
class Lane:
    """A host and the visit that it is at; without a worker since `gone_at`, if it has none."""

    host: Host
    worker: str
    rounds: Rounds
    available_bytes: int
    visit: Visit | None = None
    future: Any = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    gone_at: float | None = None
    closed: bool = False


@dataclass
class Fleet:
    """A sweep on the hosts of a cluster, checked and ready to run; `Job`'s counterpart.

    `trouble` tells what the hosts could not do.
    """

    sweep: Sweep
    out: Path
    cluster: Cluster
    hosts: dict[str, tuple[Host, str]]
    jobs: dict[str, Job]
    visit_timeout: float | None = None
    trouble: list[str] = field(default_factory=list)
    _lanes: list[Lane] = field(default_factory=list)

    @classmethod
    def prepare(cls, sweep: Sweep, out: Path, cluster: Cluster, retry_failed: bool) -> Fleet:
        """Check `sweep` against the hosts and folder `out`; writes nothing.

        `sweep.hosts` is ``each`` or ``any``. Raises `RequestError` as `Job.prepare`, where hosts
        that are to stand in for each other differ, or software differs from this one.
        """
        hosts = cluster.hosts(sweep.allocators)
        records = usable_records(sweep, out)
        if sweep.hosts == "any":
            first = _alike([host for host, _ in hosts.values()])
            one = Job.of(sweep, first.machine, first.software, out, records, retry_failed)
            return cls(sweep, out, cluster, hosts, dict.fromkeys(hosts, one))
        jobs = {}
        for name, (host, _) in hosts.items():
            own = [record for record in records if record.place == name]
            jobs[name] = Job.of(
                sweep, host.machine, host.software, out, own, retry_failed, host=name
            )
        return cls(sweep, out, cluster, hosts, jobs)

    @property
    def machine(self) -> str:
        """The hosts and what they are, a line each."""
        return "\n".join(f"{name}: {host.machine}" for name, (host, _) in self.hosts.items())

    @property
    def records(self) -> list[Record]:
        """All that these hosts have found."""
        return [record for job in self._different() for record in job.records]

    @property
    def state(self) -> State:
        """Where the sweep stands now, on these hosts."""
        state = State()
        for found in (job.state for job in self._different()):
            state.done += found.done
            state.failed += found.failed
            state.left += found.left
        return state

    def forecast(self) -> float:
        """Seconds that the sweep will still take, at most."""
        seconds = max(job.forecast() for job in self._different())
        return seconds / len(self.hosts) if self.sweep.hosts == "any" else seconds

    def _different(self) -> list[Job]:
        return list({id(job): job for job in self.jobs.values()}.values())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other sweeps out of this folder; the hosts see to themselves."""
        with disk_errors_told(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            with folder_to_itself(self.out):
                sweep_up(self.out)
                self._catch_up()
                yield

    def _catch_up(self) -> None:
        """What another sweep has finished since `prepare` counts."""
        records = load_records(self.out)
        for name, job in self.jobs.items():
            mine = {name, None} if self.sweep.hosts == "each" else {None}
            job.records[:] = [record for record in records if record.place in mine]

    def run(self, progress: Progress, budget_s: float = float("inf")) -> None:
        """Run what is left, on all hosts at once; call it `alone`.

        Whatever ends it ends the kernels on the hosts.
        """
        deadline = time.monotonic() + budget_s
        self._different()[0].write_spec()
        rounds = {id(job): Rounds(job, deadline) for job in self._different()}
        self._lanes = [
            Lane(host, worker, rounds[id(self.jobs[name])], host.available_bytes)
            for name, (host, worker) in self.hosts.items()
        ]
        try:
            while self._busy(progress):
                time.sleep(POLL_SECONDS)
        finally:
            if any(lane.future for lane in self._lanes):
                self.cluster.end_all()

    def _busy(self, progress: Progress) -> bool:
        """Take and give out visits; whether there is anything to wait for."""
        alive = self.cluster.alive()
        for lane in self._lanes:
            if lane.future is not None and lane.future.done():
                self._take(lane, progress)
            elif not lane.closed and lane.gone_at is None and lane.worker not in alive:
                self._lose(lane)
            if lane.gone_at is not None and not lane.closed:
                self._look_for(lane, alive)
        for lane in self._lanes:
            if not lane.closed and lane.gone_at is None and lane.future is None:
                self._give(lane, progress)
        waiting = [lane for lane in self._lanes if lane.gone_at is not None and not lane.closed]
        return any(lane.future is not None for lane in self._lanes) or any(
            lane.rounds.left for lane in waiting
        )

    def _give(self, lane: Lane, progress: Progress) -> None:
        job, rounds = lane.rounds.job, lane.rounds
        while planned := rounds.next():
            visit = job.numbered(planned, "*" if self.sweep.hosts == "any" else lane.host.name)
            visit = visit.model_copy(update={"host": lane.host.name})
            lane.visit, lane.began = visit, datetime.now(UTC)
            progress(self._step(lane, None))
            if lack := job.why_not(visit, lane.available_bytes):
                self._keep(lane, self._without_points(lane, "skipped", lack), progress)
                continue
            limit_s = self.visit_timeout or rounds.forecast.visit_limit(visit)
            lane.future = self.cluster.submit(lane.worker, self.out.name, visit, limit_s)
            return

    def _take(self, lane: Lane, progress: Progress) -> None:
        """What has become of the lane's visit."""
        future, lane.future = lane.future, None
        if future.status in ("cancelled", "lost"):
            self._lose(lane)
        elif future.status == "error":
            self._close(lane, " ".join(str(future.exception()).split()) or "an unknown error")
        else:
            found = Found(*future.result())
            lane.available_bytes = found.available_bytes
            if found.full:
                self._close(lane, f"cannot write to its disk ({found.reason})")
            else:
                self._judge(lane, found, progress)

    def _judge(self, lane: Lane, found: Found, progress: Progress) -> None:
        try:
            record = _checked(found, lane)
        except DamagedError as error:
            record = self._without_points(lane, "failed", str(error), found)
        if changed := lane.host.machine.differs_from(record.machine):
            self._close(lane, f"is no longer what it was ({changed})")
        else:
            self._keep(lane, record, progress, found.notebook)

    def _keep(
        self, lane: Lane, record: Record, progress: Progress, notebook: bytes | None = None
    ) -> None:
        assert lane.visit is not None  # noqa: S101 - it is what was made
        any_host = self.sweep.hosts == "any"
        record = record.model_copy(update={"host": lane.host.name, "any_host": any_host})
        if notebook is not None:
            folder = self.out / "notebooks"
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"{record.name}.ipynb", notebook.decode("utf-8"))
        record.save(self.out / "records")
        lane.rounds.made(lane.visit, record)
        progress(self._step(lane, record))
        lane.visit = None
        if not lane.rounds.left and not lane.rounds.in_hand:
            reference_for(self.out, self.records).save(self.out)

    def _without_points(
        self, lane: Lane, status: Status, reason: str, found: Found | None = None
    ) -> Record:
        assert lane.visit is not None  # noqa: S101 - it is what was not made
        kind = found.kind if found else "none"
        machine = lane.host.machine
        record = Record.without_points(lane.visit, machine, status, reason, lane.began, kind)
        return record.model_copy(update={"software": lane.host.software})

    def _step(self, lane: Lane, record: Record | None) -> Step:
        assert lane.visit is not None  # noqa: S101 - it is what is told
        rounds = list({id(one.rounds): one.rounds for one in self._lanes}.values())
        seconds = max(one.seconds_left() for one in rounds)
        if self.sweep.hosts == "any":
            seconds /= max(1, sum(not one.closed for one in self._lanes))
        done, total = (sum(getattr(one, what) for one in rounds) for what in ("done", "total"))
        return Step(lane.rounds.number, lane.visit, record, done, total, seconds)

    def _lose(self, lane: Lane) -> None:
        """The worker is gone; its visit is made elsewhere, or when the host is back."""
        lane.future, lane.gone_at = None, time.monotonic()
        self._put_back(lane)

    def _look_for(self, lane: Lane, alive: set[str]) -> None:
        """Another worker on the lane's host takes over; after some time it is given up."""
        assert lane.gone_at is not None  # noqa: S101 - it is why we look
        new = alive - {worker for _, worker in self.hosts.values()}
        try:
            found = self.cluster.described(new, list(self.sweep.allocators)) if new else {}
        except RequestError:
            found = {}  # a worker that is just starting
        if lane.host.name in found and not lane.host.machine.differs_from(
            found[lane.host.name][0].machine
        ):
            self.hosts[lane.host.name] = found[lane.host.name]
            lane.worker, lane.gone_at = found[lane.host.name][1], None
        elif time.monotonic() - lane.gone_at > GRACE_SECONDS:
            self._close(lane, "is gone")

    def _put_back(self, lane: Lane) -> None:
        if lane.visit is not None:
            lane.rounds.back(lane.visit.model_copy(update={"host": None}))
            lane.visit = None

    def _close(self, lane: Lane, why: str) -> None:
        self._put_back(lane)
        lane.closed = True
        self.trouble.append(f"host {lane.host.name}: {why}")


def _alike(hosts: list[Host]) -> Host:
    """The first of `hosts`; `RequestError` where another one differs from it."""
    for other in hosts[1:]:
        if differs := hosts[0].machine.differs_from(other.machine):
            raise RequestError(
                f"any_host: {hosts[0].name} and {other.name} differ in {differs}, and only hosts "
                "that are alike can stand in for each other: leave '--any-host' out"
            )
    return hosts[0]


def _checked(found: Found, lane: Lane) -> Record:
    """The record that a worker has sent; `DamagedError` where it is not what was asked for."""
    if found.record is None:
        raise DamagedError(found.reason or "the notebook wrote no record")
    try:
        record = Record.model_validate_json(unsealed(found.record, required=True))
    except ValidationError as error:
        raise DamagedError(f"the record arrived damaged: {one_line(error)}") from None
    except DamagedError as error:
        raise DamagedError(f"the record arrived damaged: {error}") from None
    visit = lane.visit
    if visit is None or (record.config, record.visit) != (visit.config, visit.number):
        raise DamagedError(f"the host sent the record of another visit ({record.name})")
    return record
