"""Which trials of a sweep are left, in which order, and how long they take.

The records alone say what is done: a trial that was not ended early, in a block with its group's
base. So a group that a kill left half done, a failure that is tried again, an axis that is added
later are all one case: what is left is measured, and each block brings its base.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from scalebench_lib.config import Config, Sweep, Trial, base_of
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.processes import KILLED, OUT_OF_MEMORY
from scalebench_lib.protocol import TURN_S
from scalebench_lib.record import (
    SCHEMA,
    Point,
    Record,
    Status,
    load_records,
    require_one_machine,
)

SPEC = "sweep.yaml"

TRIAL_S = 4.0
"""Seconds of a trial beside its turns, until the first one has been seen."""


@dataclass(frozen=True)
class Schedule:
    """The trials of `sweep` on `machine`, sorted by what `records` say of them.

    What failed is left alone, but for the config ids in `retry`. With `others`, the records of
    another environment, a trial counts where its block has one of the same config there too.
    """

    sweep: Sweep
    machine: Machine
    records: Sequence[Record]
    retry: frozenset[str] = frozenset()
    others: Sequence[Record] | None = None

    @cached_property
    def trials(self) -> list[Trial]:
        """One trial of every config."""
        return self.sweep.trials(self.machine)

    @cached_property
    def done(self) -> list[Trial]:
        """Those that need no further trial."""
        return [trial for trial in self.trials if not self._left(trial) and not self._failed(trial)]

    @cached_property
    def failed(self) -> list[tuple[Trial, Record]]:
        """Those that failed or were skipped, with their last record."""
        latest = self._latest
        return [(trial, latest[trial.config.id]) for trial in self.trials if self._failed(trial)]

    @cached_property
    def left(self) -> list[Trial]:
        """Those that need another trial in this round or a later one."""
        return [trial for trial in self.trials if self._left(trial) and not self._failed(trial)]

    def pending(self, number: int) -> list[Trial]:
        """What is left of round `number`, in the order to set it up: smaller batches first, in
        each batch size the bases first, the rest shuffled."""
        left = [trial for trial in self.left if self._rounds_done(trial) < number]
        shuffled = random.Random(f"{self.sweep.seed} {number}").sample(left, len(left))  # noqa: S311
        return sorted(
            shuffled, key=lambda one: (one.config.batch_size, one.config != self.base(one).config)
        )

    def base(self, trial: Trial) -> Trial:
        """The trial of the base of the group of `trial`."""
        return self._bases[trial.config.group]

    def skip_reason(self, trial: Trial) -> str | None:
        """Why `trial` is not tried: a smaller batch alike has died, and is not retried. Or None."""
        if trial.config.id in self._measured_ids:
            return None
        for record in self._latest.values():
            died = (record.reason or "").startswith((OUT_OF_MEMORY, KILLED))
            final = died and record.config_id not in self.retry
            if final and _same_but_batch(record.config, trial.config):
                reason = str(record.reason).partition(":")[0]
                return f"batch {record.config.batch_size} ended so: {reason}"
        return None

    @cached_property
    def _bases(self) -> dict[Config, Trial]:
        groups: dict[Config, dict[Config, Trial]] = {}
        for trial in self.trials:
            groups.setdefault(trial.config.group, {})[trial.config] = trial
        return {group: members[base_of(members)] for group, members in groups.items()}

    @cached_property
    def _latest(self) -> dict[str, Record]:
        return {record.config_id: record for record in self.records}

    @cached_property
    def _measured_ids(self) -> set[str]:
        return {record.config_id for record in self.records if record.status == "ok"}

    @cached_property
    def _blocks(self) -> dict[str, dict[str, Status]]:
        return _by_block(self.records)

    @cached_property
    def _other_blocks(self) -> dict[str, dict[str, Status]]:
        return _by_block(self.others or ())

    @cached_property
    def _failed_there(self) -> set[str]:
        latest = {record.config_id: record.status for record in self.others or ()}
        return {config_id for config_id, status in latest.items() if status != "ok"}

    def _failed(self, trial: Trial) -> bool:
        latest = self._latest.get(trial.config.id)
        return bool(latest and latest.status != "ok" and latest.config_id not in self.retry)

    def _left(self, trial: Trial) -> bool:
        needed = 1 if self._too_long(trial) else self.sweep.rounds
        return self._rounds_done(trial) < needed

    def _rounds_done(self, trial: Trial) -> int:
        return len({r.block for r in self._records_of(trial) if self._counts(r, trial)})

    def _records_of(self, trial: Trial) -> list[Record]:
        return self._by_config.get(trial.config.id, [])

    @cached_property
    def _by_config(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.config_id, []).append(record)
        return found

    def _counts(self, record: Record, trial: Trial) -> bool:
        """Whether `record` is a whole trial, at all thread counts, in a block with its base."""
        whole = record.status == "ok" and record.ended_by != "interrupted" and record.block
        if not whole or not set(trial.threads) <= {point.threads for point in record.points}:
            return False
        if not self._met(record):
            return False
        base, block = self.base(trial).config.id, self._blocks[str(record.block)]
        # Alone in its block: it does not fit into memory together with its base.
        alone = base not in block and list(block.values()).count("ok") == 1
        return base not in self._measured_ids or block.get(base) == "ok" or alone

    def _met(self, record: Record) -> bool:
        """Whether the other environment, if there is one, took turns with `record`, or cannot."""
        if self.others is None or record.config_id in self._failed_there:
            return True
        return self._other_blocks.get(str(record.block), {}).get(record.config_id) == "ok"

    def _too_long(self, trial: Trial) -> bool:
        """Whether a single cycle of its group takes more than its time for all rounds."""
        points = self._points.get(trial.config.group, {}).values()
        cycle = sum(map(turn_seconds, points))
        return cycle > len(points) * self.sweep.max_seconds

    @cached_property
    def _points(self) -> dict[Config, dict[tuple[str, int], Point]]:
        """The latest points of each group."""
        found: dict[Config, dict[tuple[str, int], Point]] = {}
        for record in self.records:
            for point in record.points if record.schema_version == SCHEMA else ():
                found.setdefault(record.config.group, {})[record.config_id, point.threads] = point
        return found


def _by_block(records: Iterable[Record]) -> dict[str, dict[str, Status]]:
    """What became of the configs of each block, by their ids."""
    blocks: dict[str, dict[str, Status]] = {}
    for record in records:
        if record.block:
            blocks.setdefault(record.block, {})[record.config_id] = record.status
    return blocks


def turn_seconds(point: Point) -> float:
    """Seconds that a turn of `point` took, on average, its warm-up left out."""
    return point.wall_ns / len(point.turns) / 1e9


@dataclass
class Pace:
    """How long set-ups, turns and ends take: what was seen, by batch size, tells the rest.

    Seconds; nothing is known before the first trial has been set up.
    """

    setups: dict[int, list[float]] = field(default_factory=dict)
    turns: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Pace:
        """What `records` tell."""
        pace = cls()
        for record in records:
            if record.setup and record.points:
                pace.learn_setup(record.config.batch_size, record.setup.seconds + TRIAL_S / 2)
            for point in record.points:
                pace.learn_turn(record.config.batch_size, turn_seconds(point))
        return pace

    def learn_setup(self, batch_size: int, seconds: float) -> None:
        """A trial of `batch_size` took so long beside its turns."""
        self.setups.setdefault(batch_size, []).append(seconds)

    def learn_turn(self, batch_size: int, seconds: float) -> None:
        """A turn at `batch_size` took so long."""
        self.turns.setdefault(batch_size, []).append(seconds)

    def trial_s(self, trial: Trial) -> float:
        """Seconds of `trial`: beside its turns, and in them."""
        return self.setup_s(trial) + self.turns_s(trial)

    def setup_s(self, trial: Trial) -> float:
        """Seconds of `trial` beside its turns."""
        return self._at(self.setups, trial.config.batch_size, TRIAL_S, lambda seconds: seconds)

    def turns_s(self, trial: Trial) -> float:
        """Seconds of the turns of `trial` in its block, at most: one is never cut short."""
        turn = self._at(
            self.turns, trial.config.batch_size, TURN_S, lambda seconds: max(0, seconds - TURN_S)
        )
        return len(trial.threads) * max(trial.max_seconds, turn)

    @staticmethod
    def _at(
        seen: dict[int, list[float]],
        batch_size: int,
        unknown: float,
        grows: Callable[[float], float],
    ) -> float:
        """The mean at the nearest batch size seen; what `grows` of it does so with the batch."""
        if not seen:
            return unknown
        nearest = min(seen, key=lambda size: max(size, batch_size) / min(size, batch_size))
        mean = sum(seen[nearest]) / len(seen[nearest])
        return mean + grows(mean) * max(0.0, batch_size / nearest - 1)


def sweep_schedules(out: Path) -> dict[str | None, Schedule]:
    """Where the sweep in folder `out` stands, on the machine that measured it: by host, of several.

    Raises `RequestError` where `out` holds no sweep, or records of several machines.
    """
    if not (out / SPEC).exists():
        raise RequestError(f"{out} holds no sweep: start one with 'scalebench sweep {out}'")
    records = load_records(out)
    require_one_machine(records)
    hosts: dict[str | None, list[Record]] = {} if records else {None: []}
    for record in records:
        hosts.setdefault(record.host_label, []).append(record)
    sweep = Sweep.load(out / SPEC)
    return {
        host: Schedule(sweep, found[0].machine if found else Machine.here(), found)
        for host, found in hosts.items()
    }


def _same_but_batch(one: Config, other: Config) -> bool:
    alike = {"batch_size": other.batch_size, "smt": other.smt}
    return one.batch_size < other.batch_size and one.model_copy(update=alike) == other
