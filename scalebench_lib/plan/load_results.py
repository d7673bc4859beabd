"""What a load test found, and the file that keeps it: ``load.json`` in the sweep's folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import ScalebenchError, one_line
from scalebench_lib.files import write_atomically
from scalebench_lib.plan.arrivals import Arrivals
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.simulate import QUANTILES, Batching, Log, ServiceTimes, simulate
from scalebench_lib.record import Software
from scalebench_lib.stats import percentile_interval, supports_percentile
from scalebench_lib.text import pluralize

FILE = "load.json"
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_KEPT = 101
"""Quantiles of service times that are kept of each size of batch."""


@dataclass(frozen=True)
class Deployment:
    """A plan's instances that serve requests in batches."""

    plan: Plan
    batching: Batching

    def __str__(self) -> str:
        kinds = [(one.threads, one.optimization) for one in self.plan.instances]
        instances = " + ".join(
            f"{kinds.count(kind)} × {pluralize(kind[0], 'thread')}, {kind[1]}"
            for kind in dict.fromkeys(kinds)
        )
        return f"{instances}, {self.batching}"


class Percentile(StrictModel):
    """A percentile of the requests' latencies with its 95 % interval; None is beyond what is known.

    Without a value more requests failed than the percentile leaves out.
    """

    q: float
    ms: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, log: Log, q: float) -> Self:
        """Return that of the requests in `log`."""
        found = [1e3 * value for value in percentile_interval(log.latency_s, q)]
        ms, low, high = (value if isfinite(value) else None for value in found)
        return cls(q=q, ms=ms, low=low, high=high)


class LoadRun(StrictModel):
    """A load test: what was asked, and what became of the requests; `shared` is the profile's.

    Without `percentiles` the queue grew, or there were too few requests. `predicted_ms` are by the
    profile, `replayed_ms` by the service times of this run, both simulated with its arrivals.
    `service_ms` are quantiles by size of the batch.
    """

    when: datetime
    software: Software
    shared: dict[str, Any]
    deployment: Deployment
    arrivals: Arrivals
    interrupted: bool
    requests: int
    failed: int
    seconds: float
    overloaded: bool
    slo_ms: float | None
    within_slo: int | None
    percentiles: tuple[Percentile, ...]
    queue_ms: float | None
    mean_service_ms: float | None
    batch_sizes: dict[int, int]
    busy: tuple[float, ...]
    failures: tuple[str, ...]
    service_ms: dict[int, tuple[float, ...]]
    predicted_ms: dict[float, float]
    replayed_ms: dict[float, float]

    @classmethod
    def of(cls, log: Log, deployment: Deployment, predicted: Log | None, **asked: Any) -> Self:
        """Sum up the `log` of a load test of `deployment`."""
        slo_ms, overloaded = asked["slo_ms"], is_overloaded(log)
        answered, sizes = log.answered, np.bincount(log.count)
        service = service_times(log, deployment.batching)
        found = [] if overloaded else supported(len(log.arrivals))
        instances = range(len(deployment.plan.instances))
        return cls(
            when=datetime.now(UTC),
            software=Software.here(),
            deployment=deployment,
            requests=len(log.arrivals),
            failed=int((~answered).sum()),
            seconds=log.seconds,
            overloaded=overloaded,
            within_slo=slo_ms and int((log.latency_s <= slo_ms / 1e3).sum()),
            percentiles=tuple(Percentile.of(log, q) for q in found),
            queue_ms=_mean_ms(log.wait_s[answered]),
            mean_service_ms=_mean_ms((log.latency_s - log.wait_s)[answered]),
            batch_sizes={size: int(sizes[size]) for size in np.flatnonzero(sizes)},
            busy=tuple(log.busy(instance) for instance in instances),
            service_ms={
                size: tuple(1e3 * np.quantile(times, np.linspace(0, 1, _KEPT)))
                for size, times in service.items()
            },
            predicted_ms=percentiles_ms(predicted, found) if predicted else {},
            replayed_ms=percentiles_ms(_replayed(log, deployment, service), found),
            **asked,
        )

    @property
    def rate(self) -> float:
        """Requests that arrived in a second."""
        return self.arrivals.rate

    @property
    def achieved(self) -> float:
        """Requests that were answered in a second."""
        return (self.requests - self.failed) / self.seconds

    def percentile(self, q: float) -> Percentile | None:
        """Return the q-th percentile, if it is known."""
        return next((one for one in self.percentiles if one.q == q), None)

    def holds(self, q: float, slo_ms: float) -> bool | None:
        """Return whether the q-th percentile keeps to `slo_ms`; None where its interval has both.

        It does not where the queue grew.
        """
        found = self.percentile(q)
        if not found or found.low is None or found.low > slo_ms:
            return False
        return True if found.high is not None and found.high <= slo_ms else None


class Loads(StrictModel):
    """Every load test of a sweep's folder, in the order made."""

    schema_version: Literal[1] = 1
    runs: tuple[LoadRun, ...] = ()

    @classmethod
    def load(cls, out: Path) -> Self:
        """Load those in folder `out`, if any; `ScalebenchError` if the file is damaged."""
        path = out / FILE
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ScalebenchError(
                f"{path} is damaged: {one_line(error)}; delete it, and 'load' measures anew"
            ) from None

    @classmethod
    def keep(cls, out: Path, runs: Iterable[LoadRun]) -> None:
        """Add `runs` to those in folder `out`."""
        every = cls(runs=(*cls.load(out).runs, *runs))
        write_atomically(out / FILE, every.model_dump_json(indent=1) + "\n")


def supported(requests: int, *more: float) -> list[float]:
    """Return the percentiles that so many requests have."""
    wanted = sorted({*PERCENTILES, *more})
    return [q for q in wanted if supports_percentile(requests, q)]


def percentiles_ms(log: Log, percentiles: Iterable[float]) -> dict[float, float]:
    """Return `percentiles` of the latencies in `log`."""
    return {q: 1e3 * float(np.percentile(log.latency_s, q)) for q in percentiles}


def is_overloaded(log: Log) -> bool:
    """Return whether the queue grew all the time: requests waited longer in each third.

    Or some were still waiting when the test was given up.
    """
    if len(log.arrivals) < 3 or not log.count.size:
        return False
    if (~np.isfinite(log.wait_s)).any():
        return True
    first, middle, last = (float(part.mean()) for part in np.array_split(log.wait_s, 3))
    service = float(np.median(log.latency_s - log.wait_s))
    return first < middle < last and last - first > 2 * (first + service)


def service_times(log: Log, batching: Batching) -> dict[int, np.ndarray]:
    """Return what instances took in s for batches that were answered, by padded size."""
    took, done = log.ended_s - log.sent_s, np.isfinite(log.ended_s)
    sizes = np.array([batching.padded(count) for count in log.count], dtype=int)
    return {int(size): took[(sizes == size) & done] for size in np.unique(sizes[done])}


def _replayed(log: Log, deployment: Deployment, service: dict[int, np.ndarray]) -> Log:
    sizes, instances = deployment.batching.sizes, deployment.plan.instances
    times = ServiceTimes.of(service, sizes, 1) if service else ServiceTimes({1: [0.0]})
    return simulate(log.arrivals, deployment.batching, [times] * len(instances))


def _mean_ms(values: np.ndarray) -> float | None:
    return 1e3 * float(values.mean()) if values.size else None
