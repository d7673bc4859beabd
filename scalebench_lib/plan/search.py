"""From a rate and a latency limit to deployments, simulated by what was measured; and their proof.

What is seen under load is kept in the sweep's folder.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from math import exp, inf, nan, sqrt
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from scalebench_lib.config import WITHIN, Seconds, StrictModel
from scalebench_lib.cost import MARGIN, fleet
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.decide import CANDIDATES, Context, PlanRequest
from scalebench_lib.plan.load import (
    PERCENTILES,
    Deployment,
    LoadRun,
    LoadTest,
    save_run,
    started_load_test,
)
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import SHARED, Instance
from scalebench_lib.plan.report import FILE
from scalebench_lib.plan.runner import OthersCpu, PlanRunner, Say
from scalebench_lib.plan.simulate import Batching, Log, ServiceTimes, Shape, simulate
from scalebench_lib.record import EXACT_DB, Point, Software
from scalebench_lib.stats import Interval, VarianceEstimate, supports_percentile
from scalebench_lib.text import format_number, pluralize

WAITS_MS = (0.0, 1.0, 2.0, 5.0, 10.0)
_STAGES = ((2_000, 10), (20_000, 5), (100_000, 5))
"""Requests that candidates are simulated with, and how many of the best go on.

In the first stage no batch waits; those that go on do so with each of `WAITS_MS`.
"""

_QUICK = ((500, 2), (2_000, 1), (7_000, 1))
"""For an answer at once, without fat and thin; p99.9 needs 6,636 requests."""

_SEARCH_S = (15.0, 0.3)
"""For the first stage, which begins with those that promise most; and for a quick one."""

_ENOUGH = 20
"""Batches of a size under load, before their times count in simulations."""

_CLOSE, _TRIES = 1.05, 8
"""The highest rate is known when one so much higher failed, or after so many tries."""

_TIED, _AS_HIGH = 1.01, 0.95
"""Tails are tied up to so many times the shortest; rates from such a share of the highest on."""

_Kind = tuple[tuple[Any, ...], ...]
_Samples = dict[Shape, np.ndarray]
_Alike = defaultdict[Deployment, set[int]]


class Target(StrictModel):
    """What is asked for: a percentile of latencies within a limit, at a `rate`; 0: at the most."""

    rate: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    slo_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    percentile: Annotated[float, Field(ge=1, le=99.99)] = 99.0
    max_seconds: Seconds = 20.0


@dataclass(frozen=True)
class Prediction:
    """A deployment at a rate, simulated; with largest batches of `alike` it is the same."""

    deployment: Deployment
    rate: float
    log: Log
    target: Target
    alike: tuple[int, ...] = ()

    @cached_property
    def reached_ms(self) -> float:
        """The percentile that was asked about."""
        return 1e3 * float(np.percentile(self.log.latency_s, self.target.percentile))

    @property
    def median_ms(self) -> float:
        """The median latency."""
        return 1e3 * float(np.median(self.log.latency_s))

    @property
    def title(self) -> str:
        """The deployment, and the batches of others that are not told apart."""
        own = self.deployment.batching.max_batch
        sizes = ", ".join(str(size) for size in self.alike if size != own)
        return f"{self.deployment}" + f" ({sizes}: the same at this rate)" * bool(sizes)

    @property
    def holds(self) -> bool:
        """Whether it keeps to the limit, and the requests do not pile up."""
        return self.reached_ms <= self.target.slo_ms and not self.log.overloaded


@dataclass(frozen=True, eq=False)
class Predictor:
    """Simulates deployments by the samples of the profile, and by load tests that were run."""

    context: Context
    say: Say = lambda _: None
    quick: bool = False
    _services: dict[Any, ServiceTimes] = field(default_factory=dict)

    def _points(self) -> Iterator[tuple[Any, Shape, Point]]:
        """Yield each point of the profile after how its instance is run, and its shape."""
        for record in self.context.records:
            settings = [getattr(record.config, name) for name in WITHIN]
            tokens = record.config.seq_len if self.context.lengths else 0
            for point in record.points:
                yield (point.threads, *settings), (record.config.batch_size, tokens), point

    @cached_property
    def _alone(self) -> Mapping[_Kind, _Samples]:
        """Times of a pass in s, by kind of instance and shape; of an import the means."""
        context, found = self.context, defaultdict[_Kind, dict[Shape, list[float]]](dict)
        for kind, shape, point in self._points():
            found[(kind,)].setdefault(shape, []).extend(ns / 1e9 for ns in point.samples_ns)
        for one in () if context.record else context.profile.instances:
            found[_kind([one])][one.batch_size, 0] = [one.latency_ms / 1e3]
        return {kind: {n: np.array(s) for n, s in some.items()} for kind, some in found.items()}

    @cached_property
    def _together(self) -> Mapping[_Kind, _Samples]:
        """Times in s that instances took under load beside each other, in runs of this profile."""
        found = defaultdict[_Kind, dict[Shape, list[np.ndarray]]](dict)
        for run in self.context.loads:
            known = found[_kind(run.deployment.plan.instances)]
            for shape, times in run.service_s.items():
                known.setdefault(shape, []).append(times)
        return {
            kind: {
                n: every
                for n, some in known.items()
                if (every := np.concatenate(some)).size >= _ENOUGH
            }
            for kind, known in found.items()
        }

    def _profiled(self, one: Instance, batching: Batching) -> bool:
        """Return whether its times are known up to the largest batches, of every length."""
        known = self._alone.get(_kind([one]), {})
        return all(
            any(size >= batching.max_batch for size, tokens in known if tokens == length)
            for length, _ in batching.lengths or ((0, 1.0),)
        )

    def service(self, deployment: Deployment) -> tuple[list[ServiceTimes], float]:
        """Return the instances' times, and their slow-down: 0 where they were measured together.

        Raises `RequestError` if an instance was not measured with batches so large.
        """
        batching, kinds = deployment.batching, _kind(deployment.plan.instances)
        together, found = self._together.get(kinds, {}), []
        for one in deployment.plan.instances:
            if not self._profiled(one, batching):
                engine, threads = optimization_title(one.optimization), one.threads
                raise RequestError(
                    f"max_batch: batches of {batching.max_batch} were not measured with "
                    f"{engine}, {pluralize(threads, 'thread')}: choose smaller ones"
                )
            if (key := (kinds, _kind([one]), tuple(batching.shapes))) not in self._services:
                samples = _in_proportion(self._alone[_kind([one])], together)
                self._services[key] = ServiceTimes.of(samples, batching, one.cores)
            found.append(self._services[key])
        return found, 0.0 if together else self.context.planner.slowdown

    def sqnr_db(self, deployment: Deployment) -> float:
        """Return the SQNR of its optimization in dB; NaN where it is not known."""
        return self.context.sqnr_db.get(deployment.plan.instances[0].optimization, nan)

    def load_tests(self, deployment: Deployment) -> int:
        """Return how many load tests tell the instances' times; 0 where they were too short."""
        kind = _kind(deployment.plan.instances)
        same = [one for one in self.context.loads if _kind(one.deployment.plan.instances) == kind]
        return len(same) if self._together.get(kind) else 0

    def reservations(self, deployment: Deployment) -> Iterator[str]:
        """Yield why requests may take longer than predicted."""
        kinds, shapes = _kind(deployment.plan.instances), deployment.batching.shapes
        yield from self.context.reservations(deployment.plan, kinds in self._together)
        mine = (one for kind, shape, one in self._points() if kind in kinds and shape in shapes)
        if kinds not in self._together and any(one.passes_per_sample > 1 for one in mine):
            yield (
                "passes of less than 1 ms were timed several at once: the tails of requests are "
                "longer than predicted"
            )

    def simulate(self, deployment: Deployment, arrivals: np.ndarray) -> Log:
        """Return what would become of requests that arrive at `arrivals`."""
        times, slowdown = self.service(deployment)
        return simulate(arrivals, deployment.batching, times, slowdown)

    def capacity(self, deployment: Deployment) -> float:
        """Return the requests/s that instances serve which are always busy, with full batches."""
        times, slowdown = self.service(deployment)
        busy = deployment.plan.cores
        alone = ((one.capacity(deployment.batching), one.cores) for one in times)
        return sum(rate * exp(-slowdown * (busy - cores)) for rate, cores in alone)

    def curve(self, deployment: Deployment, target: Target) -> list[Prediction]:
        """Return the deployment at rates that ascend, closest around the highest that holds."""
        sizes = [requests for requests, _ in (_QUICK if self.quick else _STAGES)][1:]
        enough = (size for size in sizes if supports_percentile(size, target.percentile))
        unit = arrival_times("poisson", 1, next(enough, sizes[-1]))
        rates = {target.rate, *np.linspace(0.1, 0.95, 7) * self.capacity(deployment)} - {0.0}
        found = [self._at(deployment, rate, unit, target) for rate in rates]
        found += self._bisected(deployment, target, unit)
        return sorted(found, key=lambda one: one.rate)

    def highest(self, deployment: Deployment, target: Target) -> float:
        """Return the highest rate that is predicted to hold; 0 if none does."""
        return max((o.rate for o in self.curve(deployment, target) if o.holds), default=0.0)

    def deployments(self) -> Iterator[Deployment]:
        """Yield equal instances, as many as fit, a half, a quarter …, whose batches do not wait."""
        every = sorted(self.context.profile.instances, key=lambda o: (_kind([o]), o.batch_size))
        for _, group in groupby(every, key=lambda one: _kind([one])):
            sizes: tuple[int, ...] = ()
            for one in group:
                sizes, most = (*sizes, one.batch_size), self.context.cores // one.cores
                lengths = self.context.lengths
                batching = Batching(max_batch=sizes[-1], sizes=sizes, lengths=lengths)
                for count in {most >> halved for halved in range(most.bit_length())}:
                    plan = Plan.of([one] * count, self.context.planner.slowdown)
                    if self._profiled(one, batching):
                        yield Deployment(plan, batching)

    def search(self, target: Target) -> list[Prediction]:
        """Return the best deployments, the best fat and thin ones among them, the best first.

        Raises `RequestError`, with the highest rate that can be had, if none holds.
        """
        stages, q = _QUICK if self.quick else _STAGES, target.percentile
        if not supports_percentile(most := stages[-1][0], q):
            needed = f"p{q:g} needs {min_requests(q):,} requests, but {most:,} are simulated here"
            raise RequestError(f"percentile: {needed}: ask for a lower one")
        if not (every := list(self.deployments())):
            raise RequestError("lengths: no batch size was measured with all of them: measure one")
        able = [one for one in every if self.capacity(one) > target.rate]
        able.sort(key=lambda one: self._promise(one, target))
        alike = _Alike(set)
        for stage, (requests, most) in enumerate(stages):
            found = self._simulated(able, target, requests, first=not stage)
            if target.rate:
                found = self._without_ties(found, target, most, alike)
            best = found[: most if target.rate else min(most, 3)]
            baselines = [] if self.quick else self._to_compare(found)
            kept = dict.fromkeys([*(one.deployment for one in best), *baselines])
            able = list(kept) if stage else [w for one in kept for w in _with_waits(one)]
        if found and found[0].holds:
            return [replace(one, alike=tuple(sorted(alike[one.deployment]))) for one in found]
        raise RequestError(self._why_nothing(target))

    def _promise(self, one: Deployment, target: Target) -> tuple[bool, float]:
        """Return a key: first full batches within the limit, then a soon answer or capacity."""
        took_s, capacity = self.service(one)[0][0].mean_s.values(), self.capacity(one)
        soon = min(took_s) / (1 - target.rate / capacity) if target.rate else -capacity
        return 1e3 * max(took_s) > target.slo_ms, soon

    def _simulated(
        self, able: Sequence[Deployment], target: Target, requests: int, first: bool
    ) -> list[Prediction]:
        """Return `able` at the target's rate, or each at its highest, the best first."""
        unit, found = arrival_times("poisson", 1, requests), list[Prediction]()
        given_up = time.monotonic() + (_SEARCH_S[self.quick] if first else inf)
        in_time = itertools.takewhile(lambda _: time.monotonic() < given_up, enumerate(able, 1))
        for number, one in in_time:
            self.say(f"{number} of {len(able)} simulated, {requests:,} requests each")
            always = not (first or self.quick) and baseline_name(one, self.context.cores)
            exact = self.sqnr_db(one) >= EXACT_DB  # and compared with others that are
            rates = (o.rate for o in found if self.sqnr_db(o.deployment) >= EXACT_DB or not exact)
            least = 0.0 if always else 0.8 * max(rates, default=0.0)
            asked = [self._at(one, target.rate, unit, target)] if target.rate else []
            tried = (each for each in self._bisected(one, target, unit, least) if each.holds)
            found += asked or list(tried)[-1:]
        return sorted(found, key=lambda o: (-o.rate, o.reached_ms, o.deployment.plan.cores))

    def _without_ties(
        self, found: list[Prediction], target: Target, most: int, alike: _Alike
    ) -> list[Prediction]:
        """Return `found`, ties among the first `most` in the order of `_by_highest`.

        Of tied ones that differ in the size of their batches alone the first stays; the others'
        sizes are added to `alike`.
        """
        kept = dict[Any, Prediction]()
        while found and len(kept) < most:
            limit_ms = _TIED * found[0].reached_ms
            tied = [one for one in found if not one.reached_ms > limit_ms]
            for one in self._by_highest(tied, target) if len(tied) > 1 else tied:
                batching, kind = one.deployment.batching, _kind(one.deployment.plan.instances)
                first = kept.setdefault((limit_ms, kind, batching.max_wait_ms), one)
                alike[first.deployment].add(batching.max_batch)
            found = found[len(tied) :]
        return [*kept.values(), *found]

    def _by_highest(self, tied: Sequence[Prediction], target: Target) -> list[Prediction]:
        """Return `tied`, first those that hold the highest rate; of these, the smallest batches."""
        unit, highest = arrival_times("poisson", 1, _QUICK[0][0]), dict[Deployment, float]()
        for one in tied:
            least = max([target.rate, *(_AS_HIGH * rate for rate in highest.values())])
            tried = self._bisected(one.deployment, target, unit, least)
            rates = (each.rate for each in tried if each.holds)
            highest[one.deployment] = max(rates, default=0.0)
        enough = _AS_HIGH * max(highest.values())

        def rank(one: Prediction) -> tuple[bool, bool, int]:
            low = highest[one.deployment] < enough
            return not one.holds, low, one.deployment.batching.max_batch

        return sorted(tied, key=rank)

    def _at(self, one: Deployment, rate: float, unit: np.ndarray, target: Target) -> Prediction:
        return Prediction(one, rate, self.simulate(one, unit / rate), target)

    def _bisected(
        self, one: Deployment, target: Target, unit: np.ndarray, least: float = 0.0
    ) -> Iterator[Prediction]:
        """Yield the deployment at each rate of a bisection for its highest, `least` the first."""
        low, capacity = least, self.capacity(one)
        rate, high = low or capacity / 2, capacity
        while rate < high and high - low > 0.01 * high > 1e-5 * capacity:
            yield (found := self._at(one, rate, unit, target))
            if found.holds:
                low = rate
            elif rate == least:
                return
            else:
                high = rate
            rate = (low + high) / 2

    def _to_compare(self, found: Sequence[Prediction]) -> list[Deployment]:
        """Return the best fat, the best thin, and the best exact one."""
        cores = self.context.cores
        named = {baseline_name(one.deployment, cores): one.deployment for one in reversed(found)}
        exact = [one.deployment for one in found if self.sqnr_db(one.deployment) >= EXACT_DB]
        return [*(one for name, one in named.items() if name), *exact[:1]]

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
        machines, _ = fleet(Interval(best.rate, VarianceEstimate(0.0)), 0.0, target.rate)
        return (
            f"rate: nothing serves {target.rate:g} requests/s with {limit} on {cores}: the highest "
            f"is {format_number(best.rate)}, by {best.deployment}; always busy it would serve "
            f"{format_number(self.capacity(best.deployment))}, but requests would wait too long. "
            f"It takes {pluralize(machines, 'machine')}, {MARGIN:.0%} of each left unused"
        )


@dataclass(frozen=True, eq=False)
class LoadVerifier:
    """Runs deployments under load; each run is kept in the sweep's folder, and `show` gets it."""

    predictor: Predictor
    runner: PlanRunner
    target: Target
    show: Callable[[LoadRun], None]
    kind: str = "poisson"

    def run(self, deployment: Deployment, times: np.ndarray, rate: float) -> LoadRun:
        """Return what `deployment` does with requests at `times`, in s; `rate` was asked for."""
        self.predictor.service(deployment)  # raises before anything starts
        with started_load_test(self.runner, deployment) as test:
            return self._run(test, deployment, times, rate)

    def verify(self, found: Sequence[Prediction]) -> list[LoadRun]:
        """Run the best three, and the best fat and thin; return the runs, the best first.

        Where no rate was asked for, each has nine tenths of the highest that was predicted. Raises
        `MeasurementError` if none could be started.
        """
        runs, reasons, cores = list[LoadRun](), list[str](), self.predictor.context.cores
        baselines = (one for one in found[CANDIDATES:] if baseline_name(one.deployment, cores))
        for one in (*found[:CANDIDATES], *baselines):
            try:
                rate = self.target.rate or 0.9 * one.rate
                runs.append(self.run(one.deployment, self.times(rate), rate))
            except MeasurementError as error:
                reasons.append(f"{one.deployment}: {error}")
        if not runs:
            raise MeasurementError(f"nothing could be run: {'; '.join(reasons)}")
        return sorted(runs, key=lambda run: (run.holds is False, -run.rate, run.reached_ms))

    def highest(self, deployment: Deployment) -> list[LoadRun]:
        """Find the highest rate that holds, by bracketing and bisection from the predicted on."""
        held, failed, runs = 0.0, inf, list[LoadRun]()
        rate = self.predictor.highest(deployment, self.target) or 1.0
        with started_load_test(self.runner, deployment) as test:
            while failed > held * _CLOSE and len(runs) < _TRIES and not test.failures:
                runs.append(self._run(test, deployment, self.times(rate), rate))
                if runs[-1].reached_ms <= self.target.slo_ms:
                    held = max(held, rate)
                else:
                    failed = min(failed, rate)
                rate = held * 1.3 if failed == inf else sqrt(held * failed) if held else failed / 2
        return runs

    def times(self, rate: float) -> np.ndarray:
        """Return the arrivals of a test: half as many again as the percentile needs, at least."""
        needed = 1.5 * min_requests(self.target.percentile)
        return arrival_times(self.kind, rate, round(max(rate * self.target.max_seconds, needed)))

    def _run(
        self, test: LoadTest, deployment: Deployment, times: np.ndarray, rate: float
    ) -> LoadRun:
        """Run a test; what was seen is kept and shown, also where it is interrupted."""
        self.runner.say(f"{len(times):,} requests in {times[-1]:.0f} s")
        interrupted, others = True, OthersCpu(self.runner.machine)
        try:
            test.run(times)
            interrupted = False
        finally:
            if len((log := test.log).arrivals):
                predicted_ms = 1e3 * self.predictor.simulate(deployment, log.arrivals).latency_s
                wanted = {*PERCENTILES, self.target.percentile}
                run = LoadRun(
                    when=datetime.now(UTC),
                    software=Software.here(),
                    shared=dict(self.predictor.context.profile.shared),
                    deployment=deployment,
                    kind=self.kind,
                    rate=len(times) / times[-1],
                    asked_rate=rate,
                    other_cpus=others.mean,
                    slo_ms=self.target.slo_ms,
                    percentile=self.target.percentile,
                    interrupted=interrupted,
                    failures=tuple(test.failures),
                    predicted_ms={q: float(np.percentile(predicted_ms, q)) for q in wanted},
                    arrivals_s=tuple(log.arrivals.tolist()),
                    batches=tuple(log.batches),
                )
                save_run(run, self.predictor.context.out)
                self.show(run)
        return run


def _with_waits(one: Deployment) -> Iterator[Deployment]:
    """Yield the deployment with each of `WAITS_MS`; batches of one do not wait."""
    for wait in WAITS_MS if one.batching.max_batch > 1 else WAITS_MS[:1]:
        yield replace(one, batching=one.batching.model_copy(update={"max_wait_ms": wait}))


def baseline_name(one: Deployment, cores: int) -> str:
    """Return ``fat`` for one instance on all cores, ``thin`` for one of a thread on each."""
    if one.plan.cores < cores:
        return ""
    thin = {(each.threads, each.smt) for each in one.plan.instances} == {(1, False)}
    return "thin" if thin else "fat" if len(one.plan.instances) == 1 else ""


def _kind(instances: Iterable[Instance]) -> _Kind:
    """Return how instances are run, whatever their batches."""
    return tuple((one.threads, *one.settings.values()) for one in instances)


def _in_proportion(alone: _Samples, together: _Samples) -> _Samples:
    """Return times `together`; of other sizes those `alone`, slower in proportion."""
    ratios = [np.median(together[n]) / np.median(alone[n]) for n in together if n in alone]
    factor = float(np.median(ratios)) if ratios else 1.0
    return {**{size: times * factor for size, times in alone.items()}, **together}


def min_requests(q: float) -> int:
    """Return how many requests the q-th percentile needs."""
    return next(count for count in itertools.count(2) if supports_percentile(count, q))


def read_planned_deployment(
    out: Path, max_batch: int, max_wait_ms: float | None, lengths: str | None = None
) -> tuple[Context, Deployment]:
    """Return the deployment in ``plan.json``, with other batching and `lengths` if asked for.

    Raises `RequestError` where there is none.
    """
    try:
        values = json.loads((out / FILE).read_bytes())
        planned = TypeAdapter(Deployment).validate_python(values["deployment"])
    except (OSError, ValueError, KeyError):
        raise RequestError(
            f"{out / FILE} has no plan for requests: make one first, with 'scalebench plan {out} "
            "--rate … --slo-ms …'"
        ) from None
    mixed = lengths or planned.batching.lengths
    one_length = SHARED if not mixed else [name for name in SHARED if name != "seq_len"]
    shared = {name: values[name] for name in one_length if name in values}
    context = Context.load(out, PlanRequest.of(slo_ms=1.0, lengths=mixed, **shared))
    most = max_batch or planned.batching.max_batch
    wait = planned.batching.max_wait_ms if max_wait_ms is None else max_wait_ms
    sizes = sorted({size for size in context.profile.batch_sizes if size < most} | {most})
    asked = {"max_batch": most, "max_wait_ms": wait, "sizes": sizes, "lengths": context.lengths}
    return context, Deployment(planned.plan, Batching.from_input(asked))
