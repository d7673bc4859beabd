"""Where a sweep stands: what its records say of the visits that were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scalebench_lib.config import Sweep, Visit
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.pool import Key, Pooled, gathered, pool
from scalebench_lib.record import Record, load_records
from scalebench_lib.reference import reference_for, require_one_machine

SPEC = "sweep.yaml"

ALL_SPENT = 0.9
"""Share of its time from which on a point has had it: the last turn is never cut short."""


@dataclass
class State:
    """The visits of a sweep, sorted. `left` are the next visit of each config that needs one."""

    done: list[Visit] = field(default_factory=list)
    failed: list[tuple[Visit, Record]] = field(default_factory=list)
    left: list[Visit] = field(default_factory=list)


class Judge:
    """Decides what is left of `sweep` on `machine`, given its records so far.

    A config is done when each of its points is within ``target_ci``, has had its time, or has
    been visited in every round. What failed is left alone, but for the config ids in `retry`.
    Where every host measures the sweep, each has a judge with its records.
    """

    def __init__(
        self, sweep: Sweep, machine: Machine, retry: Iterable[str] = (), host: str | None = None
    ) -> None:
        self.sweep = sweep
        self.visits = [v.model_copy(update={"host": host}) for v in sweep.visits(machine)]
        self.retry = set(retry)

    def state(self, out: Path, records: list[Record]) -> State:
        """Where the sweep in folder `out` stands with `records`."""
        latest = {record.config_id: record for record in records}
        state = self._placed(gathered(records), latest)
        if state.left and records:  # those that are not done by their visits or time
            pooled = pool(records, reference_for(out, records))
            state = self._placed(pooled, latest)
        return state

    def _placed(self, pooled: dict[Key, Pooled], latest: dict[str, Record]) -> State:
        state = State()
        pooled = {(point.config.id, point.threads): point for point in pooled.values()}
        for visit in self.visits:
            self._place(state, visit, pooled, latest.get(visit.config.id))
        return state

    def _place(
        self, state: State, visit: Visit, pooled: dict[Key, Pooled], latest: Record | None
    ) -> None:
        if latest and latest.status != "ok" and latest.config_id not in self.retry:
            state.failed.append((visit, latest))
            return
        points = {count: pooled.get((visit.config.id, count)) for count in visit.threads}
        missing = tuple(count for count, point in points.items() if not self._finished(point))
        if missing:
            state.left.append(self._next(visit, missing, latest, points.values()))
        else:
            state.done.append(visit)

    def _finished(self, point: Pooled | None) -> bool:
        return point is not None and (
            len(point.visits) >= self.sweep.rounds
            or point.half_width <= self.sweep.target_ci
            or point.spent_s >= ALL_SPENT * self.sweep.max_seconds
        )

    def _next(
        self,
        visit: Visit,
        threads: tuple[int, ...],
        latest: Record | None,
        points: Iterable[Pooled | None],
    ) -> Visit:
        """The next visit: its share of the time, or more where setting up would cost more."""
        share = self.sweep.max_seconds / self.sweep.rounds
        if latest and latest.setup:
            share = max(share, latest.setup.seconds / len(threads))
            share = min(share, self.sweep.max_seconds)
        number = 1 + max((len(point.visits) for point in points if point), default=0)
        change = {"threads": threads, "max_seconds": share, "number": number}
        return visit.model_copy(update=change)


def sweep_state(out: Path) -> State:
    """Where the sweep in folder `out` stands, on the machine that measured it.

    Raises `RequestError` where `out` holds no sweep, or records of several machines.
    """
    if not (out / SPEC).exists():
        raise RequestError(f"{out} holds no sweep: start one with 'scalebench sweep {out}'")
    records = load_records(out)
    require_one_machine(records)
    by_place: dict[str | None, list[Record]] = {}
    for record in records:
        by_place.setdefault(record.place, []).append(record)
    state = State()
    for place, own in by_place.items() or [(None, [])]:
        machine = own[0].machine if own else Machine.here()
        found = Judge(Sweep.load(out / SPEC), machine, host=place).state(out, own)
        state.done += found.done
        state.failed += found.failed
        state.left += found.left
    return state
