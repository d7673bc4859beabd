"""What load tests found, and the file that keeps it: ``load.json`` in the sweep's folder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, ValidationError

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import ScalebenchError, one_line
from scalebench_lib.files import write_atomically
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.simulate import Batching, Log, ServiceTimes, simulate
from scalebench_lib.record import Software
from scalebench_lib.stats import percentile_interval, supports_percentile
from scalebench_lib.text import pluralize

FILE = "load.json"
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_ENOUGH, _KEPT = 20, 101
"""Of batches of a size, before their times are kept; and how many quantiles of them."""

_Known = Annotated[float, BeforeValidator(lambda value: inf if value is None else value)]
"""JSON has no infinity: pydantic writes null."""


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


class LoadRun(StrictModel):
    """A load test of a deployment; `shared` is that of its profile.

    `percentiles` are in ms with their 95 % intervals, infinite where failed requests reach them.
    There are none where the queue grew all the time (`overloaded`), or of too few requests.
    `predicted_ms` are by the profile, `replayed_ms` by the service times of this run, both
    simulated with its arrivals. `service_ms` are quantiles by size of the batch.
    """

    when: datetime
    software: Software
    shared: dict[str, Any]
    deployment: Deployment
    arrivals: str
    rate: float
    slo_ms: float
    percentile: float
    interrupted: bool
    failures: tuple[str, ...]
    requests: int
    failed: int
    seconds: float
    overloaded: bool
    within_slo: int
    percentiles: dict[float, tuple[_Known, _Known, _Known]]
    queue_ms: float
    mean_service_ms: float
    batch_sizes: dict[int, int]
    busy: tuple[float, ...]
    service_ms: dict[int, tuple[float, ...]]
    predicted_ms: dict[float, float]
    replayed_ms: dict[float, float]

    @classmethod
    def of(cls, log: Log, deployment: Deployment, predicted: Log, **asked: Any) -> Self:
        """Sum up the `log` of a load test of `deployment`."""
        wanted, latency_ms = {*PERCENTILES, asked["percentile"]}, 1e3 * log.latency_s
        known = [q for q in sorted(wanted) if supports_percentile(latency_ms.size, q)]
        service = _service_s(log, deployment.batching)
        answered, sizes = np.isfinite(latency_ms), np.bincount(log.count)
        found = {} if log.overloaded else {q: percentile_interval(latency_ms, q) for q in known}
        return cls(
            when=datetime.now(UTC),
            software=Software.here(),
            deployment=deployment,
            requests=latency_ms.size,
            failed=int((~answered).sum()),
            seconds=log.seconds,
            overloaded=log.overloaded,
            within_slo=int((latency_ms <= (asked["slo_ms"] or inf)).sum()),
            percentiles=found,
            queue_ms=1e3 * _mean(log.wait_s[answered]),
            mean_service_ms=1e3 * _mean((log.latency_s - log.wait_s)[answered]),
            batch_sizes={int(size): int(sizes[size]) for size in np.flatnonzero(sizes)},
            busy=tuple(log.busy(number) for number in range(len(deployment.plan.instances))),
            service_ms={
                size: tuple(1e3 * np.quantile(times, np.linspace(0, 1, _KEPT)))
                for size, times in service.items()
                if len(times) >= _ENOUGH
            },
            predicted_ms=_percentiles_ms(predicted, found),
            replayed_ms=_percentiles_ms(_replayed(log, deployment, service), found),
            **asked,
        )

    @property
    def reached_ms(self) -> float:
        """The percentile that was asked about; infinite where it is not known."""
        return self.percentiles.get(self.percentile, (inf,))[0]

    @property
    def holds(self) -> bool | None:
        """Whether the percentile keeps to the limit; None where its interval holds both."""
        _, low, high = self.percentiles.get(self.percentile, (inf, inf, inf))
        return True if high <= self.slo_ms else False if low > self.slo_ms else None


class Loads(StrictModel):
    """Every load test of a sweep's folder, in the order made."""

    schema_version: Literal[1] = 1
    runs: tuple[LoadRun, ...] = ()

    @classmethod
    def load(cls, out: Path) -> Self:
        """Load those in folder `out`, if any; `ScalebenchError` if the file is damaged."""
        path = out / FILE
        try:
            return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()
        except ValidationError as error:
            raise ScalebenchError(
                f"{path} is damaged: {one_line(error)}; delete it, and 'load' measures anew"
            ) from None

    @classmethod
    def keep(cls, out: Path, run: LoadRun) -> None:
        """Add `run` to those in folder `out`."""
        every = cls(runs=(*cls.load(out).runs, run))
        write_atomically(out / FILE, every.model_dump_json(indent=1) + "\n")


def requests_for(q: float) -> int:
    """Return how many requests the q-th percentile needs."""
    return next(count for count in itertools.count(2) if supports_percentile(count, q))


def _service_s(log: Log, batching: Batching) -> dict[int, np.ndarray]:
    """Return what instances took for batches that were answered, by padded size."""
    took, done = log.ended_s - log.sent_s, np.isfinite(log.ended_s)
    sizes = np.array([batching.padded(count) for count in log.count], dtype=int)
    return {int(size): took[(sizes == size) & done] for size in np.unique(sizes[done])}


def _replayed(log: Log, deployment: Deployment, service: dict[int, np.ndarray]) -> Log:
    if not service:
        return log
    times = ServiceTimes.of(service, deployment.batching.sizes, 1)
    return simulate(log.arrivals, deployment.batching, [times] * len(deployment.plan.instances))


def _percentiles_ms(log: Log, percentiles: dict[float, Any]) -> dict[float, float]:
    return {q: 1e3 * float(np.percentile(log.latency_s, q)) for q in percentiles}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
