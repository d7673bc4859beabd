"""A sweep on the hosts of a dask cluster: each task is a block, run there as it would be here.

This process deals the blocks out, and alone writes what comes back. A block whose worker dies is
dealt again, to another host, or to the same one when it is back.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.errors import RequestError
from scalebench_lib.files import write_atomically
from scalebench_lib.record import Point, Record, Turn, next_trial
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.block import Block
from scalebench_lib.sweep.hosts import Cluster, require_alike, require_distinct, why
from scalebench_lib.sweep.progress import progress_shown
from scalebench_lib.sweep.remote import Found, Host, Order
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.runner import Progressed, Step
from scalebench_lib.sweep.schedule import Pace
from scalebench_lib.sweep.stop import Stop
from scalebench_lib.text import pluralize

GRACE_S = 20.0
"""A nanny takes some seconds to start a worker that has died anew."""

MOST_LOSSES = 3
"""A host whose worker dies so often gets no more: what it measures may be the cause."""

POLL_S = 1.0
"""Look for workers rarely: this machine may be one of the hosts."""

ANSWER_S = 60.0


@dataclass
class Share:
    """What is left for hosts that count as one machine: for one, or for all where they are alike.

    `queue` is left of round `number`, of which `in_flight` blocks are being measured. A block of
    `enough_s` seconds of turns leaves something for the other hosts.
    """

    run: SweepRun
    hosts: int = 1
    number: int = 0
    queue: list[Trial] = field(default_factory=list)
    in_flight: int = 0
    enough_s: float = 0.0

    def waits(self) -> bool:
        """Whether trials wait for a host; those of the next round do when the last is over."""
        while not (self.queue or self.in_flight or self.number == self.run.sweep.rounds):
            self.number += 1
            self.queue = self.run.schedule.pending(self.number)
            seconds = _seconds(self.queue, Pace.of(self.run.records))
            self.enough_s = min(runner.BLOCK_S, seconds / self.hosts)
        return bool(self.queue)

    def take(self) -> list[Trial]:
        """Take a block's trials from the queue: whole groups, and a part of one that is too long.

        The first two of a group belong together, however long they take.
        """
        groups: dict[Config, list[Trial]] = {}
        for trial in self.queue:
            groups.setdefault(trial.config.group, []).append(trial)
        first, *others = groups.values()
        block, pace = first[:2], Pace.of(self.run.records)
        for more in [*([trial] for trial in first[2:]), *others]:
            limit_s = self.enough_s if more in others else runner.BLOCK_S
            if _seconds([*block, *more], pace) > limit_s:
                break
            block += more
        self.queue = [trial for trial in self.queue if trial not in block]
        self.in_flight += 1
        return block

    def give_back(self, trials: Sequence[Trial]) -> None:
        """A block has ended or is lost: those of its `trials` that are still left wait again."""
        self.in_flight -= 1
        pending = set(self.run.schedule.pending(self.number))
        self.queue[:0] = [trial for trial in trials if trial in pending]


def _seconds(trials: Sequence[Trial], pace: Pace) -> float:
    """Seconds of the turns of `trials`, at most."""
    return sum(map(pace.turns_s, trials))


@dataclass
class Lane:
    """A host, its worker while there is one, and the `trials` of the block that it measures.

    `trouble` is why it measures nothing more.
    """

    host: Host
    share: Share
    worker: str | None
    future: Any = None
    trials: Sequence[Trial] = ()
    gone_at: float = 0.0
    losses: int = 0
    trouble: str | None = None


class HostsRun:
    """A sweep on the hosts of a cluster, checked and ready to run.

    There is one of `runs` for each of the hosts, or one for all where any host may measure.
    """

    def __init__(self, cluster: Cluster, lanes: Sequence[Lane], warm: bool, if_busy: str) -> None:
        self.lanes, self._cluster, self._warm, self._if_busy = lanes, cluster, warm, if_busy
        self._id, self._woken = uuid.uuid4().hex, threading.Event()
        self._shares = list({id(lane.share): lane.share for lane in lanes}.values())
        self.runs = [share.run for share in self._shares]
        self._progressed: Progressed = lambda step: None
        self._say: Callable[[str], None] = lambda line: None
        self._total = 0

    @classmethod
    def prepare(
        cls,
        sweep: Sweep,
        out: Path,
        cluster: Cluster,
        retry_failed: bool = False,
        warm: bool = True,
        if_busy: str = "refuse",
    ) -> HostsRun:
        """Check `sweep`, whose `hosts` are ``each`` or ``any``, against them and folder `out`.

        Writes nothing. Raises `RequestError` as `SweepRun.prepare`, and where a host cannot be
        had.
        """
        hosts = cluster.all_hosts()
        require_distinct(hosts, if_busy)
        first = next(iter(hosts.values()))
        if sweep.hosts == "any":
            require_alike(list(hosts.values()))
            one = Share(SweepRun.on(first.machine, sweep, out, retry_failed), len(hosts))
            lanes = [Lane(host, one, worker) for worker, host in hosts.items()]
        else:
            lanes = [
                Lane(
                    host,
                    Share(SweepRun.on(host.machine, sweep, out, retry_failed, host.name)),
                    worker,
                )
                for worker, host in hosts.items()
            ]
        return cls(cluster, lanes, warm, if_busy)

    def __str__(self) -> str:
        names = ", ".join(lane.host.name for lane in self.lanes)
        return f"{pluralize(len(self.lanes), 'host')}: {names}"

    def run_with_progress(self, budget_s: float, console: Console) -> list[str]:
        """Run what is left, and show where it is; returns the `troubles`."""
        with self.runs[0].alone("beside"), progress_shown(self.runs, console) as shown:
            self.run(shown, shown.say, budget_s)
        return self.troubles

    @property
    def troubles(self) -> list[str]:
        """Which hosts measure nothing more, and why, a line each."""
        return [
            f"host {lane.host.name}: {lane.trouble or 'its worker is gone'}"
            for lane in self.lanes
            if lane.worker is None
        ]

    def run(
        self,
        progressed: Progressed,
        say: Callable[[str], None] = lambda line: None,
        budget_s: float = math.inf,
    ) -> None:
        """Run what is left, on all hosts at once; raises as `run_in_turn`.

        Tells each record by `progressed`, and each block by `say`, in a line.
        """
        self._progressed, self._say = progressed, say
        stop = Stop(time.monotonic() + budget_s)
        first = self.runs[0]
        with nullcontext() if first.locked else first.alone("beside"), stop.at_signals():
            for run in self.runs:
                run.reload()
            first.write_spec()
            self._total = self._left()
            try:
                while self._busy(stop):
                    self._woken.wait(POLL_S)
                    self._woken.clear()
            finally:
                if self._in_flight:
                    self._cluster.end(self._id)

    @property
    def _in_flight(self) -> int:
        return sum(lane.future is not None for lane in self.lanes)

    def _busy(self, stop: Stop) -> bool:
        """Take what has come, deal what waits; whether there is anything to wait for."""
        for lane in self.lanes:
            if lane.future is not None and lane.future.done():
                self._receive(lane)
        self._look_for_workers()
        if stop.asked():
            self._cluster.end(self._id)
        for lane in self.lanes:
            free = lane.worker is not None and lane.future is None and not stop()
            if free and lane.share.waits():
                self._deal(lane, stop.deadline - time.monotonic())
        return bool(self._in_flight) or (not stop() and any(map(self._may_return, self.lanes)))

    def _deal(self, lane: Lane, budget_s: float) -> None:
        """Have a host measure its next block."""
        run = lane.share.run
        lane.trials = lane.share.take()
        bases = [run.schedule.base(trial) for trial in lane.trials]
        order = Order(
            run=self._id,
            folder=run.out.resolve().name or "sweep",
            sweep=run.sweep.model_copy(update={"hosts": "one"}),
            machine=lane.host.machine,
            records=tuple(map(_without_samples, run.records)),
            retry=frozenset(run.retry),
            number=lane.share.number,
            configs=frozenset(trial.config.id for trial in [*lane.trials, *bases]),
            budget_s=None if math.isinf(budget_s) else budget_s,
            trial_timeout=run.trial_timeout,
            warm=self._warm,
            if_busy=self._if_busy,
        )
        lane.future = self._cluster.measure(str(lane.worker), order)
        lane.future.add_done_callback(lambda _: self._woken.set())
        self._say(
            f"round {order.number}, {lane.host.name}: a block of "
            f"{pluralize(len(lane.trials), 'config')}"
        )
        self._tell(lane)

    def _receive(self, lane: Lane) -> None:
        """Write what a block has found; what is left of it waits again."""
        found = _answer(lane.future)
        if found is None:
            self._lose(lane)
            return
        for record in found.records:
            self._keep(lane, record, found.notebooks.get(record.name))
        left = [t for t in lane.trials if found.trouble or t.config.id in found.left]
        lane.share.give_back(left)
        lane.future, lane.trials = None, ()
        if found.trouble:
            lane.worker, lane.trouble = None, found.trouble

    def _keep(self, lane: Lane, record: Record, notebook: str | None) -> None:
        """Write a record as its host's, after its notebook."""
        run, name = lane.share.run, lane.host.name
        any_host = run.host is None
        number = next_trial(run.out, record.config, "*" if any_host else name)
        update = {"trial": number, "host": name, "any_host": any_host}
        record = record.model_copy(update=update)
        if notebook is not None:
            (run.out / "notebooks").mkdir(exist_ok=True)
            write_atomically(run.out / "notebooks" / f"{record.name}.ipynb", notebook)
        record.save(run.out / "records")
        self._tell(lane, run.keep(record))

    def _lose(self, lane: Lane) -> None:
        """A worker is gone, and with it its block: that is dealt again."""
        lost = pluralize(len(lane.trials), "config")
        self._say(f"{lane.host.name}: its worker is gone, {lost} to be measured again")
        if lane.future is not None:
            lane.future.release()  # or it would be run if a worker had this address again
            lane.share.give_back(lane.trials)
        lane.future, lane.trials, lane.worker, lane.gone_at = None, (), None, time.monotonic()
        lane.losses += 1
        if lane.losses == MOST_LOSSES:
            lane.trouble = f"its worker has died {MOST_LOSSES} times"

    def _look_for_workers(self) -> None:
        """See whose worker is gone, and whose is back."""
        alive = self._cluster.workers()
        for lane in self.lanes:
            finished = lane.future is not None and lane.future.status == "finished"
            if lane.worker is not None and lane.worker not in alive and not finished:
                self._lose(lane)
        gone = {one.host.name: one for one in self.lanes if not one.worker and not one.trouble}
        for worker in alive - {lane.worker for lane in self.lanes} if gone else ():
            with suppress(RequestError):  # another's, or one that is just starting
                host = self._cluster.hosts([worker])[worker]
                back = gone.get(host.name)
                if back is not None and not back.host.machine.differs_from(host.machine):
                    back.worker = worker

    def _may_return(self, lane: Lane) -> bool:
        """Whether it is worth while to wait for a host whose worker is gone."""
        gone = lane.worker is None and lane.trouble is None
        return gone and time.monotonic() < lane.gone_at + GRACE_S and lane.share.waits()

    def _left(self) -> int:
        """How many trials are left, in all rounds."""
        rounds = range(1, self.runs[0].sweep.rounds + 1)
        return sum(len(run.schedule.pending(n)) for run in self.runs for n in rounds)

    def _tell(self, lane: Lane, record: Record | None = None) -> None:
        seconds = max(share.run.forecast() / share.hosts for share in self._shares)
        done, doing = self._total - self._left(), f"{pluralize(self._in_flight, 'block')} in turn"
        share = lane.share
        self._progressed(
            Step(share.number, doing, Block(""), done, self._total, seconds, record, share.run)
        )


def _answer(future: Any) -> Found | None:
    """What a block has found; None where that is lost."""
    if future.status == "error":
        return Found(trouble=why(future.exception()))
    with suppress(TimeoutError, OSError):
        if future.status == "finished":
            return Found.model_validate_json(future.result(timeout=ANSWER_S))
    return None


def _without_samples(record: Record) -> Record:
    """What a schedule asks of `record`: of each point one turn, as long as they are on average."""
    points = [point.model_copy(update={"turns": (_mean_turn(point),)}) for point in record.points]
    return record.model_copy(update={"points": tuple(points), "host": None, "any_host": False})


def _mean_turn(point: Point) -> Turn:
    ns = point.wall_ns / len(point.turns) / point.passes_per_sample
    return Turn(cycle=1, start_ns=0, samples_ns=(round(ns),))
