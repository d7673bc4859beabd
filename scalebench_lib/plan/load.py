"""Open-loop load on the instances of a plan: requests arrive on time, however slow the answers.

The batcher is in this process. A request's latency counts from its scheduled arrival to the end of
its pass, so that a server, or a batcher, that stops is seen in it (no coordinated omission).
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf, isnan, nan
from multiprocessing.connection import Connection
from select import select

import numpy as np

from scalebench_lib.errors import MeasurementError
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.runner import PlanRunner, Workers
from scalebench_lib.plan.simulate import Batching, Log

PATIENCE_S = 10.0
"""A request that has waited so long ends the run: the queue only grows."""

_HEAD_START_S = 0.05


@dataclass(eq=False)
class LoadTest:
    """Sends requests to `workers` that are ready.

    An instance that does not answer a batch within `limit_s`, or dies, is ended; `failures` says
    so, and its requests have failed. The run goes on with the others.
    """

    workers: Workers
    batching: Batching
    limit_s: float = 30.0
    patience_s: float = PATIENCE_S
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = {pipe: number for number, pipe in enumerate(self.workers.by_pipe)}
        self._free = deque(self._numbers)
        self._busy: dict[Connection, int] = {}

    @property
    def log(self) -> Log:
        """What became of the requests so far; of a run that was interrupted, up to the first
        batch that was not answered yet.
        """
        begun = next((n for n, one in enumerate(self._batches) if isnan(one[3])), None)
        batches = self._batches[:begun]
        arrived = int(np.searchsorted(self._arrivals, self._now_s(), side="right"))
        served = sum(int(one[1]) for one in batches)
        seen = served if begun is not None else max(served, arrived)
        return Log.of(self._arrivals[:seen], batches)

    def run(self, arrivals: np.ndarray) -> Log:
        """Serve requests that arrive at `arrivals`, in s; return when all are answered, or none
        can be, or one has waited for longer than `patience_s`.
        """
        self._arrivals, self._batches = arrivals, list[list[float]]()
        times, ready = arrivals, self.batching.ready_s(arrivals)
        first, self._start_ns = 0, time.perf_counter_ns() + round(_HEAD_START_S * 1e9)
        with _without_garbage_collection():
            while self._busy or (self._free and first < len(times)):
                now = self._now_s()
                if first < len(times) and now - times[first] > self.patience_s:
                    self._arrivals = arrivals[: np.searchsorted(arrivals, now)]
                    first = len(times)
                due = ready[first] if self._free and first < len(times) else inf
                if due <= now:
                    first += self._send(times, first, now)
                else:
                    self._receive(due - now)
        return self.log

    def _now_s(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) / 1e9

    def _send(self, times: np.ndarray, first: int, now: float) -> int:
        """Send a batch to the instance that has idled longest; return how many requests it has."""
        pipe, count = self._free.popleft(), self.batching.count(times, first, now)
        size = self.batching.padded(count)
        self._busy[pipe] = len(self._batches)
        self._batches.append([self._numbers[pipe], count, now, nan])
        self.workers.by_pipe[pipe].send({"start_ns": 0, "batch_size": size})
        return count

    def _receive(self, wait_s: float) -> None:
        """Wait so long at most for answers, or until an instance has hung."""
        oldest = min((self._batches[batch][2] for batch in self._busy.values()), default=inf)
        until_hung = oldest + self.limit_s - self._now_s()
        for pipe in select(list(self._busy), [], [], max(0.0, min(wait_s, until_hung, 1.0)))[0]:
            batch = self._batches[self._busy.pop(pipe)]
            try:
                ended_ns = self.workers.by_pipe[pipe].receive()["ended_ns"]
            except MeasurementError as error:
                self._fail(pipe, batch, str(error))
            else:
                batch[3] = (ended_ns - self._start_ns) / 1e9
                self._free.append(pipe)
        for pipe, number in list(self._busy.items()):
            if self._now_s() - self._batches[number][2] > self.limit_s:
                why = f"an instance did not answer within {self.limit_s:.3g} s"
                self._fail(pipe, self._batches[self._busy.pop(pipe)], why)

    def _fail(self, pipe: Connection, batch: list[float], why: str) -> None:
        batch[3] = inf
        self.failures.append(f"{why}, after {batch[2]:.1f} s")
        self.workers.by_pipe[pipe].close()


@contextmanager
def ready(runner: PlanRunner, plan: Plan, batching: Batching) -> Iterator[LoadTest]:
    """Start the instances of `plan`, and yield a load test of them; no process is left.

    Raises `MeasurementError` if one does not start.
    """
    runner.say(f"starting {plan}")
    specs = [one.model_copy(update={"batch_sizes": batching.sizes}) for one in runner.specs(plan)]
    with Workers(specs) as workers:
        workers.answers(runner.limits.setup_s * len(batching.sizes))
        yield LoadTest(workers, batching, runner.limits.batch_s)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
