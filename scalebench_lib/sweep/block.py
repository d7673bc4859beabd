"""A block: trials that are alive together and take turns, in shuffled cycles.

All points of a block meet the same minutes and the same states of the machine, so that their
ratios are free of its drift (randomized multiple interleaved trials: Abedi and Brecht, ICPE 2017).
A block takes its trials, and what groups they belong to, from its caller. One trial works at a
time; all others, and this process, stand still.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scalebench_lib.config import Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.protocol import TURN_S, Answer, EndedBy, Progress, ended_by
from scalebench_lib.record import Record


class Process(Protocol):
    """A trial that is set up: `trial_process.TrialProcess`, or a test's."""

    trial: Trial
    out: Path
    setup_s: float

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has held so far."""

    def turn(self, cycle: int, threads: int, seconds: float) -> Answer:
        """Let it take a turn; `MeasurementError` where it fails, dies or hangs."""

    def end(self, reason: EndedBy) -> Record:
        """Let it write its record; `MeasurementError` where that fails."""

    def kill(self) -> None:
        """End it, whatever it is doing."""


@dataclass
class Member:
    """A trial of a block. `again`: it is a base that was measured before, and here only to be
    compared with: its time counts for nobody."""

    process: Process
    group: Hashable
    base: bool = False
    again: bool = False
    points: dict[int, Progress] = field(default_factory=dict)
    medians_ns: dict[int, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def trial(self) -> Trial:
        """What is measured."""
        return self.process.trial


Changed = Callable[[], None]
Ended = Callable[[Member, Record | str], None]
"""Gets the record of a member, or why it failed."""


@dataclass
class Block:
    """The members of a block; `name` is in their records, `seed` shuffles its cycles.

    `changed` is called between turns.
    """

    name: str
    seed: str = ""
    changed: Changed = lambda: None
    members: list[Member] = field(default_factory=list)
    cycle: int = 0
    reasons: dict[Hashable, EndedBy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311

    def add(
        self, process: Process, group: Hashable, base: bool = False, again: bool = False
    ) -> Member:
        """Take in a trial that is set up and stands still."""
        points = {threads: Progress() for threads in process.trial.threads}
        self.members.append(Member(process, group, base, again, points))
        return self.members[-1]

    def run(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Take cycles until every group is done, or, after a cycle, somebody is `stopping`."""
        while self.running and not (self.cycle and stopping()):
            self.take_cycle()

    @property
    def running(self) -> list[Member]:
        """The members whose groups still take turns."""
        return [m for m in self.members if m.failure is None and m.group not in self.reasons]

    def take_cycle(self) -> None:
        """A turn of every point whose group is not done, in shuffled order."""
        self.cycle += 1
        points = [(member, threads) for member in self.running for threads in member.points]
        for member, threads in self._random.sample(points, len(points)):
            if member.failure is None:
                self._turn(member, threads)
                self.changed()
        for group in dict.fromkeys(member.group for member in self.running):
            if reason := self._done(group):
                self.reasons[group] = reason

    def _turn(self, member: Member, threads: int) -> None:
        try:
            answer = member.process.turn(self.cycle, threads, TURN_S)
        except MeasurementError as error:
            member.failure = str(error)
            member.process.kill()  # it may still compute, and holds memory
            return
        member.points[threads].add(answer)
        member.medians_ns[threads] = answer.median_ns

    def _done(self, group: Hashable) -> EndedBy | None:
        """Why the group needs no more turns, if it does not; nobody waits for a base alone."""
        asking = [m for m in self.running if m.group == group and not m.again]
        if not asking:
            return "max_seconds"
        points = [point for member in asking for point in member.points.values()]
        trial = asking[0].trial
        return ended_by(points, trial.target_ci, trial.max_seconds)

    def end(self, ended: Ended) -> None:
        """Let the members end, one after another, bases first, and hand over what became of each.

        Without a whole cycle there is nothing to keep. A group that is not done is interrupted.
        """
        for member in sorted(self.members, key=lambda member: not member.base):
            if member.failure is None and self.cycle:
                ended(member, self._record_of(member))
            else:
                member.process.kill()
                if member.failure is not None:
                    ended(member, member.failure)

    def _record_of(self, member: Member) -> Record | str:
        try:
            return member.process.end(self.reasons.get(member.group, "interrupted"))
        except MeasurementError as error:
            return str(error)

    def kill(self) -> None:
        """End all members that are still there, at once."""
        for member in self.members:
            member.process.kill()

    def remove(self, member: Member) -> None:
        """Let go of a member that has had no turn."""
        member.process.kill()
        self.members.remove(member)

    def medians(self) -> Iterator[tuple[Trial, int, float, Progress]]:
        """What the points have so far: trial, threads, median in ns, progress."""
        for member in self.members:
            for threads, median_ns in member.medians_ns.items():
                yield member.trial, threads, median_ns, member.points[threads]
