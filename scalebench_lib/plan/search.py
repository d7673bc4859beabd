"""From a rate and a latency limit to deployments, by simulating what was measured."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from math import exp
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from scalebench_lib.config import Seconds, StrictModel
from scalebench_lib.errors import RequestError
from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.decide import Context
from scalebench_lib.plan.load_results import Deployment, LoadRun, Loads, requests_for
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.plan.simulate import Batching, Log, ServiceTimes, simulate
from scalebench_lib.record import load_records
from scalebench_lib.text import format_number, pluralize

WAITS_MS = (0.0, 1.0, 2.0, 5.0, 10.0)
_STAGES = ((2_000, 50), (20_000, 5), (100_000, 5))
"""Requests that candidates are simulated with, and how many of the best go on."""

_SEARCH_S = 15.0
"""For the first stage, which begins with those of most capacity."""

_Kind = tuple[tuple[Any, ...], ...]
_Samples = dict[int, np.ndarray]


class Target(StrictModel):
    """What is asked for: a percentile of latencies within a limit, at a `rate`; 0: at the most.

    A load test lasts `seconds`, or half as long again as the percentile needs.
    """

    rate: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    slo_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    percentile: Annotated[float, Field(ge=1, le=99.99)] = 99.0
    seconds: Seconds = 20.0

    def seconds_at(self, rate: float) -> float:
        """Return how long a load test lasts."""
        return max(self.seconds, 1.5 * requests_for(self.percentile) / rate)


@dataclass(frozen=True)
class Prediction:
    """A deployment at a rate, simulated."""

    deployment: Deployment
    rate: float
    log: Log
    target: Target

    @cached_property
    def reached_ms(self) -> float:
        """The percentile that was asked about."""
        return 1e3 * float(np.percentile(self.log.latency_s, self.target.percentile))

    @property
    def holds(self) -> bool:
        """Whether it keeps to the limit, and the requests do not pile up."""
        return self.reached_ms <= self.target.slo_ms and not self.log.overloaded

    @property
    def rank(self) -> tuple[float, ...]:
        """What to sort by: the highest rate, then the shortest latency, then fewest cores."""
        deployment = self.deployment
        return -self.rate, self.reached_ms, deployment.plan.cores, deployment.batching.max_wait_ms


@dataclass(frozen=True, eq=False)
class Predictor:
    """Simulates deployments by the samples of the profile, and by load tests that were run."""

    context: Context
    _services: dict[Any, ServiceTimes] = field(default_factory=dict)

    @cached_property
    def _alone(self) -> Mapping[_Kind, _Samples]:
        """Times of a pass in s, by kind of instance and batch size; of an import the means."""
        profile, found = self.context.profile, dict[_Kind, _Samples]()
        for one in profile.instances:
            found.setdefault(_kind([one]), {})[one.batch_size] = np.array([one.latency_ms / 1e3])
        samples: dict[tuple[_Kind, int], list[int]] = {}
        for record in load_records(self.context.out) if self.context.record else ():
            config = record.config
            for point in record.points if profile.holds(record) else ():
                kind: _Kind = ((point.threads, config.optimization, config.smt, config.allocator),)
                samples.setdefault((kind, config.batch_size), []).extend(point.samples_ns)
        for (kind, size), some in samples.items():
            if kind in found:
                found[kind][size] = np.array(some) / 1e9
        return found

    @cached_property
    def runs(self) -> list[LoadRun]:
        """The load tests of this profile with the software of the sweep."""
        software, shared = self.context.record and self.context.record.software, self._shared
        every = [one for one in Loads.load(self.context.out).runs if one.shared == shared]
        return [one for one in every if software and not one.software.differs_from(software)]

    @property
    def _shared(self) -> Mapping[str, Any]:
        return self.context.profile.shared

    @cached_property
    def _together(self) -> Mapping[_Kind, _Samples]:
        """Times in s that instances took under load beside each other, by the latest runs."""
        found: dict[_Kind, _Samples] = {}
        for run in self.runs:
            known = found.setdefault(_kind(run.deployment.plan.instances), {})
            known |= {size: np.array(times) / 1e3 for size, times in run.service_ms.items()}
        return found

    def service(self, deployment: Deployment) -> tuple[list[ServiceTimes], float]:
        """Return the instances' times, and their slow-down: 0 where they were measured together.

        Raises `RequestError` if an instance was not profiled.
        """
        sizes, kinds = deployment.batching.sizes, _kind(deployment.plan.instances)
        together, found = self._together.get(kinds, {}), []
        for one in deployment.plan.instances:
            if not (alone := self._alone.get(_kind([one]))):
                raise RequestError(f"{one.optimization}, {one.threads} threads: not profiled")
            if (key := (kinds, _kind([one]), sizes)) not in self._services:
                samples = _in_proportion(alone, together)
                self._services[key] = ServiceTimes.of(samples, sizes, one.cores)
            found.append(self._services[key])
        return found, 0.0 if together else self.context.planner.slowdown

    def simulate(self, deployment: Deployment, arrivals: np.ndarray) -> Log:
        """Return what would become of requests that arrive at `arrivals`."""
        times, slowdown = self.service(deployment)
        return simulate(arrivals, deployment.batching, times, slowdown)

    def capacity(self, deployment: Deployment) -> float:
        """Return the requests/s that instances serve which are always busy, with full batches."""
        times, slowdown = self.service(deployment)
        busy = deployment.plan.cores
        return sum(one.capacity * exp(-slowdown * (busy - one.cores)) for one in times)

    def highest(self, deployment: Deployment, target: Target, requests: int = 20_000) -> float:
        """Return the highest rate that is predicted to hold; 0 if none does."""
        most, unit = target.model_copy(update={"rate": 0.0}), arrival_times("poisson", 1, requests)
        return max((one.rate for one in self._predicted(deployment, most, unit, 0.0)), default=0.0)

    def deployments(self) -> Iterator[Deployment]:
        """Yield equal instances, as many as fit, a half, a quarter …, with every batching."""
        every = sorted(self.context.profile.instances, key=lambda o: (_kind([o]), o.batch_size))
        for _, group in groupby(every, key=lambda one: _kind([one])):
            sizes: tuple[int, ...] = ()
            for one in group:
                sizes, most = (*sizes, one.batch_size), self.context.cores // one.cores
                waits = WAITS_MS if one.batch_size > 1 else WAITS_MS[:1]
                for count in {most >> halved for halved in range(most.bit_length())}:
                    plan = Plan.of([one] * count, self.context.planner.slowdown)
                    for wait in waits:
                        batching = Batching(max_batch=sizes[-1], max_wait_ms=wait, sizes=sizes)
                        yield Deployment(plan, batching)

    def search(self, target: Target) -> list[Prediction]:
        """Return the best deployments, the best first, and the best fat and thin ones.

        Raises `RequestError`, with the highest rate that can be had, if none holds.
        """
        able = [one for one in self.deployments() if self.capacity(one) > target.rate]
        able.sort(key=self.capacity, reverse=True)
        given_up, baselines = time.monotonic() + _SEARCH_S, list[Prediction]()
        for requests, keep in _STAGES:
            unit, found = arrival_times("poisson", 1, requests), list[Prediction]()
            for one in able:
                if baselines or time.monotonic() < given_up:
                    least = 0.8 * max((other.rate for other in found), default=0.0)
                    found += self._predicted(one, target, unit, least)
            found.sort(key=lambda one: one.rank)
            baselines = baselines or self._first_of_each(found)
            able = [one.deployment for one in found[: keep if target.rate else keep // 5]]
        if found and found[0].holds:
            known = {one.deployment for one in found}
            return [*found, *(one for one in baselines if one.deployment not in known)]
        raise RequestError(self._why_nothing(target))

    def _predicted(
        self, one: Deployment, target: Target, unit: np.ndarray, least: float
    ) -> Iterator[Prediction]:
        """Yield the deployment at the target's rate; or at its highest, found by bisection."""
        if target.rate:
            log = self.simulate(one, unit / target.rate)
            yield Prediction(one, target.rate, log, target)
            return
        best, low, capacity = list[Prediction](), least, self.capacity(one)
        rate, high = low or capacity / 2, capacity
        while rate < high and high - low > 0.01 * high > 1e-5 * capacity:
            found = Prediction(one, rate, self.simulate(one, unit / rate), target)
            if found.holds:
                low, best = rate, [found]
            elif rate == least:
                return
            else:
                high = rate
            rate = (low + high) / 2
        yield from best

    def _first_of_each(self, found: Sequence[Prediction]) -> list[Prediction]:
        cores = self.context.cores
        named = {baseline(one.deployment, cores): one for one in reversed(found)}
        return [one for name, one in named.items() if name]

    def _why_nothing(self, target: Target) -> str:
        limit = f"p{target.percentile:g} within {target.slo_ms:g} ms"
        cores = pluralize(self.context.cores, "core")
        if not target.rate:
            fastest = min(self.context.profile.instances, key=lambda one: one.latency_ms)
            return (
                f"slo_ms: no rate has {limit} on {cores}: the fastest pass, batch "
                f"{fastest.batch_size}, takes {format_number(fastest.latency_ms)} ms in the median"
            )
        best = self.search(target.model_copy(update={"rate": 0.0}))[0]
        return (
            f"rate: nothing serves {target.rate:g} requests/s with {limit} on {cores}: the highest "
            f"is {format_number(best.rate)}, by {best.deployment}; always busy it would serve "
            f"{format_number(self.capacity(best.deployment))}, but requests would wait too long"
        )


def baseline(one: Deployment, cores: int) -> str:
    """Return ``fat`` for one instance on all cores, ``thin`` for one of a thread on each."""
    if one.plan.cores < cores:
        return ""
    thin = {(each.threads, each.smt) for each in one.plan.instances} == {(1, False)}
    return "thin" if thin else "fat" if len(one.plan.instances) == 1 else ""


def _kind(instances: Iterable[Instance]) -> _Kind:
    """Return how instances are run, whatever their batches."""
    return tuple((one.threads, one.optimization, one.smt, one.allocator) for one in instances)


def _in_proportion(alone: _Samples, together: _Samples) -> _Samples:
    """Return times `together`; of other sizes those `alone`, slower in proportion."""
    ratios = [np.median(together[n]) / np.median(alone[n]) for n in together if n in alone]
    factor = float(np.median(ratios)) if ratios else 1.0
    return {**{size: times * factor for size, times in alone.items()}, **together}
