"""Open-loop load on a plan's instances: requests arrive on time, however slow the answers.

The batcher is in this process. A request's latency counts from its scheduled arrival until the
batcher has its answer: whatever stops in between is seen in it (no coordinated omission).
"""

from __future__ import annotations

import gc
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from math import inf, isnan, nan
from multiprocessing.connection import Connection
from pathlib import Path
from select import select
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ValidationError

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import MeasurementError, ScalebenchError, validation_message
from scalebench_lib.files import write_atomically
from scalebench_lib.machine import available_bytes
from scalebench_lib.plan.arrivals import request_lengths
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.runner import MEMORY_SHARE, PlanRunner, Workers
from scalebench_lib.plan.simulate import Batching, Log, ServiceTimes, Shape, simulate
from scalebench_lib.record import Software
from scalebench_lib.stats import percentile_interval, supports_percentile

FILE = "load.jsonl"
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

PATIENCE_S = 10.0
"""A request that has waited so long ends the run: the queue only grows."""

_HEAD_START_S = 0.05

_Ended = Annotated[float, BeforeValidator(lambda value: inf if value is None else value)]
"""JSON has no infinity: pydantic writes null."""


@dataclass(frozen=True)
class Deployment:
    """A plan's instances that serve requests in batches."""

    plan: Plan
    batching: Batching

    def __str__(self) -> str:
        counts = Counter(one.label for one in self.plan.instances)
        kinds = " + ".join(f"{count} × {label}" for label, count in counts.items())
        return f"{kinds}, {self.batching}"


class LoadRun(StrictModel):
    """A load test of a deployment, with every request; `shared` is that of its profile.

    `batches` are those of its `Log`. `predicted_ms` are percentiles of the same arrivals, simulated
    by what was known before. `asked_rate` is 0 for a trace, `other_cpus` as in `PlanRunner`; older
    runs lack both.
    """

    when: datetime
    software: Software
    shared: dict[str, Any]
    deployment: Deployment
    kind: str
    rate: float
    asked_rate: float | None = None
    other_cpus: float | None = None
    slo_ms: float
    percentile: float
    interrupted: bool
    failures: tuple[str, ...]
    predicted_ms: dict[float, float]
    arrivals_s: tuple[float, ...]
    batches: tuple[tuple[int, int, float, _Ended], ...]

    @cached_property
    def log(self) -> Log:
        """What became of the requests."""
        return Log.of(np.array(self.arrivals_s), self.batches)

    @cached_property
    def percentiles(self) -> dict[float, tuple[float, float, float]]:
        """Percentiles of latencies in ms with their 95 % intervals; infinite where requests failed.

        None where the queue grew all the time, or there were too few requests.
        """
        latency_ms, wanted = 1e3 * self.log.latency_s, sorted({*PERCENTILES, self.percentile})
        known = [q for q in wanted if supports_percentile(latency_ms.size, q)]
        return {q: percentile_interval(latency_ms, q) for q in known if not self.log.overloaded}

    @property
    def reached_ms(self) -> float:
        """The percentile that was asked about; infinite where it is not known."""
        return self.percentiles.get(self.percentile, (inf,))[0]

    @property
    def holds(self) -> bool | None:
        """Whether the percentile keeps to the limit; None where its interval holds both, and where
        it is not known for want of requests.
        """
        if not self.log.overloaded and self.percentile not in self.percentiles:
            return None
        _, low, high = self.percentiles.get(self.percentile, (inf, inf, inf))
        return True if high <= self.slo_ms else False if low > self.slo_ms else None

    @cached_property
    def service_s(self) -> dict[Shape, np.ndarray]:
        """What instances took for the batches that were answered, by shape."""
        found, shapes = (
            defaultdict[Shape, list[float]](list),
            self.deployment.batching.shapes_of(self.log),
        )
        for shape, took in zip(shapes, self.log.ended_s - self.log.sent_s, strict=True):
            if np.isfinite(took):
                found[shape].append(took)
        return {shape: np.array(times) for shape, times in found.items()}

    @cached_property
    def late_ms(self) -> float:
        """How late the batcher sent batches that could go to an instance: the 99th percentile."""
        log, free_s, late = self.log, dict[int, float](), list[float]()
        ready_s = self.deployment.batching.ready_s(log.arrivals)
        firsts = np.cumsum(log.count) - log.count
        for first, (instance, _, sent, ended) in zip(firsts, log.batches, strict=True):
            late.append(sent - max(ready_s[first], free_s.get(instance, 0.0)))
            free_s[instance] = ended
        return 1e3 * float(np.percentile(late, 99)) if late else 0.0

    @property
    def replay(self) -> Log:
        """The same arrivals, simulated with the service times of this run."""
        times = ServiceTimes.of(self.service_s, self.deployment.batching, 1)
        instances = [times] * len(self.deployment.plan.instances)
        return simulate(self.log.arrivals, self.deployment.batching, instances)


def read_load_runs(out: Path) -> list[LoadRun]:
    """Return every load test of folder `out`, in the order made; `ScalebenchError` if damaged."""
    path = out / FILE
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [LoadRun.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise ScalebenchError(
            f"{path} is damaged: {validation_message(error)}; delete it, and 'load' measures anew"
        ) from None


def save_run(run: LoadRun, out: Path) -> None:
    """Add `run` to those in folder `out`."""
    path = out / FILE
    before = path.read_bytes() if path.exists() else b""
    write_atomically(path, before + run.model_dump_json().encode() + b"\n")


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
        self._busy: dict[Connection, list[float]] = {}

    @property
    def log(self) -> Log:
        """What became of the requests; of a run that was interrupted, of those in the batches
        before the first that was being computed.
        """
        open_ = next((n for n, one in enumerate(self._batches) if isnan(one[3])), None)
        served = int(sum(one[1] for one in self._batches[:open_]))
        return Log.of(self._arrivals[: max(served, self._arrived)], self._batches[:open_])

    def run(self, arrivals: np.ndarray) -> Log:
        """Serve requests that arrive at `arrivals`, in s.

        It ends when all are answered, or none can be, or one has waited for `patience_s`.
        """
        self._arrivals, self._batches, self._arrived = arrivals, list[list[float]](), 0
        self._lengths = request_lengths(self.batching.lengths, len(arrivals)).tolist()
        ready_s, first = self.batching.ready_s(arrivals), 0
        gc.collect()
        gc.disable()
        try:
            self._start_ns = time.perf_counter_ns() + round(_HEAD_START_S * 1e9)
            while self._busy or (self._free and first < len(arrivals)):
                now = self._now_s()
                if first < len(arrivals) and now - arrivals[first] > self.patience_s:
                    self._arrivals = arrivals[: np.searchsorted(arrivals, now)]
                    first = len(arrivals)
                due = ready_s[first] if self._free and first < len(arrivals) else inf
                if due <= now:
                    first += self._send(first, now)
                else:
                    self._receive(due - now)
        finally:
            gc.enable()
        self._arrived = int(np.searchsorted(self._arrivals, self._now_s(), side="right"))
        return self.log

    def _now_s(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) / 1e9

    def _send(self, first: int, now: float) -> int:
        """Send a batch to the instance that has idled longest; return how many requests it has."""
        pipe, count = self._free.popleft(), self.batching.count(self._arrivals, first, now)
        self._busy[pipe] = [self._numbers[pipe], count, now, nan]
        self._batches.append(self._busy[pipe])
        shape = self.batching.shape(self._lengths[first : first + count])
        self.workers.by_pipe[pipe].send({"start_ns": 0, "shape": shape})
        return count

    def _receive(self, wait_s: float) -> None:
        """Wait for answers, a second at most; end instances that hang."""
        for pipe in select(list(self._busy), [], [], min(wait_s, 1.0))[0]:
            try:
                self.workers.by_pipe[pipe].receive()
            except MeasurementError as error:
                self._fail(pipe, str(error))
            else:
                self._busy.pop(pipe)[3] = self._now_s()
                self._free.append(pipe)
        for pipe, batch in list(self._busy.items()):
            if self._now_s() - batch[2] > self.limit_s:
                self._fail(pipe, f"an instance did not answer within {self.limit_s:.3g} s")

    def _fail(self, pipe: Connection, why: str) -> None:
        batch = self._busy.pop(pipe)
        batch[3] = inf
        self.failures.append(f"{why}, with a batch of {batch[2]:.1f} s")
        self.workers.by_pipe[pipe].close()


@contextmanager
def started_load_test(runner: PlanRunner, deployment: Deployment) -> Iterator[LoadTest]:
    """Start the instances, and yield a load test of them; no process is left.

    Raises `MeasurementError` if one does not start.
    """
    runner.say(f"starting {deployment}")
    batching, plan = deployment.batching, deployment.plan
    models = max(1, len(batching.lengths))  # an instance has one for each length
    needed_mb = models * sum(one.memory_mb or 0.0 for one in plan.instances)
    free_mb = available_bytes() / 1e6
    if needed_mb > MEMORY_SHARE * free_mb:
        raise MeasurementError(f"its instances need {needed_mb:.0f} MB, {free_mb:.0f} MB are free")
    shapes = tuple(batching.shapes)
    specs = [one.model_copy(update={"shapes": shapes}) for one in runner.specs(plan)]
    with Workers(specs) as workers:
        workers.answers(runner.limits.setup_s * len(shapes))
        yield LoadTest(workers, batching, runner.limits.batch_s)
