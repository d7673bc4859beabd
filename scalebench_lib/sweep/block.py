"""A block: trials that are alive together and take turns, in shuffled cycles.

All points of a block meet the same states of the machine, so that their ratios are free of its
drift (randomized multiple interleaved trials: Abedi and Brecht, ICPE 2017). One trial computes at a
time: all others are stopped, and this process waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scalebench_lib.config import Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.protocol import TURN_S, EndedBy, PointProgress, TurnResult, end_reason
from scalebench_lib.record import Record


class Process(Protocol):
    """A trial that is set up, such as a `trial_process.TrialProcess`."""

    trial: Trial
    out: Path
    setup_s: float

    @property
    def peak_bytes(self) -> int:
        """The peak of its memory so far."""

    def turn(self, cycle: int, threads: int, seconds: float) -> TurnResult:
        """Let it take a turn; raise `MeasurementError` where it fails, dies or hangs."""

    def end(self, reason: EndedBy) -> Record:
        """Let it recheck, and write its record; raise `MeasurementError` where that fails."""

    def kill(self) -> None:
        """End it, whatever it is doing."""


@dataclass(eq=False)
class Member:
    """A trial of a block; a `remeasured` base is only there to be compared with."""

    process: Process
    group: Hashable
    remeasured: bool = False
    failure: str | None = None
    ended: bool = False
    points: dict[int, PointProgress] = field(init=False)

    def __post_init__(self) -> None:
        self.points = {threads: PointProgress() for threads in self.trial.threads}

    @property
    def trial(self) -> Trial:
        return self.process.trial


@dataclass
class Block:
    """The members of a block; `name` is in their records, `seed` shuffles its cycles.

    `changed` is called between turns.
    """

    name: str
    seed: str = ""
    changed: Callable[[], None] = lambda: None
    members: list[Member] = field(default_factory=list)
    cycle: int = 0
    end_reasons: dict[Hashable, EndedBy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311

    @property
    def running(self) -> list[Member]:
        """The members whose groups still take turns."""
        left = [m for m in self.members if m.group not in self.end_reasons]
        return [m for m in left if m.failure is None and not m.ended]

    def add(self, process: Process, group: Hashable, remeasured: bool = False) -> Member:
        """Add a trial that is set up and stands still."""
        self.members.append(Member(process, group, remeasured))
        return self.members[-1]

    def run(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Take cycles until every group is done, or, after a cycle, the sweep is `stopping`."""
        while self.running and not (self.cycle and stopping()):
            self.take_cycle()

    def take_cycle(self) -> None:
        """Give a turn to every point whose group is not done, in shuffled order."""
        self.cycle += 1
        points = [(member, threads) for member in self.running for threads in member.points]
        for member, threads in self._random.sample(points, len(points)):
            if member.failure is None:
                self._turn(member, threads)
                self.changed()
        for group in {member.group for member in self.running}:
            if reason := self._done(group):
                self.end_reasons[group] = reason

    def _turn(self, member: Member, threads: int) -> None:
        try:
            member.points[threads].add(member.process.turn(self.cycle, threads, TURN_S))
        except MeasurementError as error:
            member.failure = str(error)
            member.process.kill()  # it may still compute, and holds memory

    def _done(self, group: Hashable) -> EndedBy | None:
        """Return why the group needs no more turns, or None; a base alone needs none."""
        counted = [m for m in self.running if m.group == group and not m.remeasured]
        if not counted:
            return "max_seconds"
        points = (point for member in counted for point in member.points.values())
        return end_reason(points, counted[0].trial.target_ci, counted[0].trial.max_seconds)

    def end(self) -> Iterator[tuple[Member, Record | str]]:
        """End the members, bases first as in set-up; yield the record of each, or why it has none.

        Without a whole cycle nothing is kept. A group that is not done is interrupted.
        """
        for member in self.members:
            if self.cycle or member.failure is not None:
                found = self._record_of(member)
                member.ended = True
                yield member, found
        self.kill()

    def _record_of(self, member: Member) -> Record | str:
        if member.failure is not None:
            return member.failure
        try:
            return member.process.end(self.end_reasons.get(member.group, "interrupted"))
        except MeasurementError as error:
            return str(error)

    def kill(self) -> None:
        for member in self.members:
            member.process.kill()
