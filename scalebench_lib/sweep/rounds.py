"""The visits of a job dealt out to several hosts, round by round."""

from __future__ import annotations

import time

from scalebench_lib.config import Visit
from scalebench_lib.record import Record
from scalebench_lib.sweep.forecast import Forecast
from scalebench_lib.sweep.runner import Job


class Rounds:
    """Deals out the visits of a job, round by round, to however many hosts; counts points."""

    def __init__(self, job: Job, deadline: float) -> None:
        self.job, self.deadline = job, deadline
        self.forecast = Forecast(job.records)
        self.number = self.done = self.total = self.in_hand = 0
        self.left: list[Visit] = []

    def next(self) -> Visit | None:
        """A visit to be made now; None: there is no more, or the round must end first."""
        while not self.left and not self.in_hand and self.number < self.job.sweep.rounds:
            self.number += 1
            self.left = [v for v in self.job.visits_of_round(self.number) if self._in_time(v)]
            self.done, self.total = 0, sum(len(visit.threads) for visit in self.left)
        if not self.left:
            return None
        self.in_hand += 1
        return self.left.pop(0)

    def _in_time(self, visit: Visit) -> bool:
        return time.monotonic() + self.forecast.visit_seconds(visit) <= self.deadline

    def back(self, visit: Visit) -> None:
        """`visit` was not made."""
        self.in_hand -= 1
        self.left.insert(0, visit)

    def made(self, visit: Visit, record: Record) -> None:
        """`visit` has its `record`."""
        self.in_hand -= 1
        self.done += len(visit.threads)
        self.job.keep(record)
        self.forecast.learn(record)
        self.left = [one for one in self.left if self._in_time(one)]

    def seconds_left(self) -> float:
        """At most, by one host."""
        return self.forecast.seconds(self.left, self.job.sweep.rounds)
