"""Decide which trials of a sweep are left, in which order, and how long they take.

A trial is done when its record was not ended early, in a block with its group's base. So a group
that a kill left half done, a failure that is retried, and an axis that is added later are one case:
what is left is measured, and each block has its base.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from scalebench_lib.config import SPEC, Config, Sweep, Trial, base_of
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.processes import KILLED, OUT_OF_MEMORY
from scalebench_lib.protocol import TURN_S
from scalebench_lib.record import SCHEMA, Point, Record, Status, load_records, require_one_machine
from scalebench_lib.results import no_sweep_message

TRIAL_S = 4.0
"""Seconds of a trial outside its turns, until the first one has been seen."""

END_S = TRIAL_S / 2
"""Those of them in which it rechecks and saves."""


@dataclass(frozen=True)
class Schedule:
    """The trials of `sweep` on `machine` by their state, which `records` decide.

    Failures are retried for the config ids in `retry`. With the `other` environment's schedule, a
    trial counts only if its block has one of the same config there, too.
    """

    sweep: Sweep
    machine: Machine
    records: Sequence[Record]
    retry: Set[str] = frozenset()
    other: Schedule | None = None

    @cached_property
    def trials(self) -> list[Trial]:
        """One trial of every config."""
        return self.sweep.trials(self.machine)

    @property
    def done(self) -> list[Trial]:
        return self._by_state["done"]

    @property
    def failed(self) -> list[tuple[Trial, Record]]:
        """Trials that failed or were skipped, with their last record."""
        failed = self._by_state["failed"]
        return [(trial, self._by_config[trial.config.id][-1]) for trial in failed]

    @property
    def left(self) -> list[Trial]:
        """Trials of configs that need another one, in this round or a later one."""
        return self._by_state["left"]

    @property
    def finished(self) -> int:
        """How many trials of its configs have ended, well or not."""
        return sum(len(self._by_config.get(trial.config.id, ())) for trial in self.trials)

    def pending(self, number: int) -> list[Trial]:
        """Return the trials left in round `number` in the order of set-up: by batch size, bases
        first, the rest shuffled."""
        left = [trial for trial in self.left if self._rounds_done(trial) < number]
        shuffled = random.Random(f"{self.sweep.seed} {number}").sample(left, len(left))  # noqa: S311
        return sorted(
            shuffled, key=lambda one: (one.config.batch_size, one.config != self.base(one).config)
        )

    def base(self, trial: Trial) -> Trial:
        return self._bases[trial.config.group]

    def skip_reason(self, trial: Trial) -> str | None:
        """Return why to skip `trial`, or None: a smaller batch has died, and is not retried."""
        if trial.config.id in self._measured:
            return None
        for records in self._by_config.values():
            last, reason = records[-1], records[-1].reason or ""
            final = reason.startswith((OUT_OF_MEMORY, KILLED)) and last.config_id not in self.retry
            if final and _same_but_batch(last.config, trial.config):
                return f"batch {last.config.batch_size} ended so: {reason.partition(':')[0]}"
        return None

    @cached_property
    def _bases(self) -> dict[Config, Trial]:
        groups: dict[Config, dict[Config, Trial]] = defaultdict(dict)
        for trial in self.trials:
            groups[trial.config.group][trial.config] = trial
        return {group: members[base_of(members)] for group, members in groups.items()}

    @cached_property
    def _by_config(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            found[record.config_id].append(record)
        return found

    @cached_property
    def _measured(self) -> set[str]:
        return {record.config_id for record in self.records if record.status == "ok"}

    @cached_property
    def _blocks(self) -> dict[str, dict[str, Status]]:
        """The status of the configs of each block, by their ids."""
        blocks: dict[str, dict[str, Status]] = defaultdict(dict)
        for record in self.records:
            blocks[str(record.block)][record.config_id] = record.status
        return blocks

    @cached_property
    def _by_state(self) -> dict[str, list[Trial]]:
        states: dict[str, list[Trial]] = {"done": [], "failed": [], "left": []}
        for trial in self.trials:
            records = self._by_config.get(trial.config.id)
            if records and records[-1].status != "ok" and trial.config.id not in self.retry:
                states["failed"].append(trial)
            else:
                needed = 1 if trial.config.group in self._slow_groups else self.sweep.rounds
                states["left" if self._rounds_done(trial) < needed else "done"].append(trial)
        return states

    def _rounds_done(self, trial: Trial) -> int:
        records = self._by_config.get(trial.config.id, [])
        return len({record.block for record in records if self._counts(record, trial)})

    def _counts(self, record: Record, trial: Trial) -> bool:
        """Return whether `record` is a whole trial, at all thread counts, with its base."""
        whole = record.status == "ok" and record.ended_by != "interrupted" and record.block
        if not whole or not set(trial.threads) <= {point.threads for point in record.points}:
            return False
        if self.other and not self.other._took_turns_with(record):
            return False
        base, block = self.base(trial).config.id, self._blocks[str(record.block)]
        # A trial alone in its block does not fit into memory together with its base.
        alone = base not in block and list(block.values()).count("ok") == 1
        return base not in self._measured or block.get(base) == "ok" or alone

    def _took_turns_with(self, record: Record) -> bool:
        """Return whether a trial of the config took turns with that of `record`, or failed."""
        mine = self._by_config.get(record.config_id)
        failed = mine is not None and mine[-1].status != "ok"
        return failed or self._blocks[str(record.block)].get(record.config_id) == "ok"

    @cached_property
    def _slow_groups(self) -> set[Config]:
        """The groups whose single cycle takes more than their time for all rounds."""
        turns: dict[Config, dict[tuple[str, int], float]] = defaultdict(dict)
        for record in self.records:
            for point in record.points if record.schema_version == SCHEMA else ():
                turns[record.config.group][record.config_id, point.threads] = mean_turn_s(point)
        limit = self.sweep.max_seconds
        return {group for group, s in turns.items() if sum(s.values()) > len(s) * limit}


def _same_but_batch(one: Config, other: Config) -> bool:
    """Return whether `one` is `other` with a smaller batch; SMT makes no difference."""
    alike = {"batch_size": other.batch_size, "smt": other.smt}
    return one.batch_size < other.batch_size and one.model_copy(update=alike) == other


def mean_turn_s(point: Point) -> float:
    """Return the mean time of a turn of `point`, without its warm-up."""
    return point.wall_ns / len(point.turns) / 1e9


_Seen = defaultdict[int, list[float]]


class DurationForecast:
    """Seconds of set-ups (with ends), and of turns, by the batch sizes of `records`."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.setups, self.turns = _Seen(list), _Seen(list)
        for record in records:
            size = record.config.batch_size
            if record.setup and record.points:
                self.setups[size].append(record.setup.seconds + END_S)
            for point in record.points:
                self.turns[size].append(mean_turn_s(point))

    def trial_s(self, trial: Trial) -> float:
        setup_s = _at(self.setups, trial.config.batch_size, unknown=TRIAL_S)
        return setup_s + self.turns_s(trial)

    def turns_s(self, trial: Trial) -> float:
        """Return the most that the turns of `trial` take in its block; none is cut short."""
        turn = _at(self.turns, trial.config.batch_size, unknown=TURN_S, constant=TURN_S)
        return len(trial.threads) * max(trial.max_seconds, turn)


def _at(seen: _Seen, batch_size: int, unknown: float, constant: float = 0.0) -> float:
    """Return the mean at the nearest batch size; all but `constant` grows with the batch."""
    if not seen:
        return unknown
    nearest = min(seen, key=lambda size: max(size, batch_size) / min(size, batch_size))
    mean = fmean(seen[nearest])
    return mean + max(0.0, mean - constant) * max(0.0, batch_size / nearest - 1)


def schedules_by_host(out: Path) -> dict[str | None, Schedule]:
    """Return the schedule of the sweep in folder `out` for each host that measured it.

    Raises `RequestError` where `out` holds no sweep, or records of several machines.
    """
    if not (out / SPEC).exists():
        raise RequestError(no_sweep_message(out, "sweep"))
    sweep, records = Sweep.load(out / SPEC), load_records(out)
    require_one_machine(records)
    hosts: dict[str | None, list[Record]] = defaultdict(list)
    for record in records:
        hosts[record.host_label].append(record)
    if not hosts:
        return {None: Schedule(sweep, Machine.here(), [])}
    return {host: Schedule(sweep, found[0].machine, found) for host, found in hosts.items()}
