"""From a request to a decision: the plan to run, its baselines, and the verification by running.

A plan that was run counts as measured in every later decision of the same machine and software.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from math import ceil, inf, nan
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from scalebench_lib.config import PositiveInt, StrictModel
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Core, Machine
from scalebench_lib.plan.arrivals import Lengths
from scalebench_lib.plan.interference import (
    PlanRun,
    PlanRuns,
    fit_slowdown_per_core,
    published_runs,
)
from scalebench_lib.plan.load import LoadRun, read_load_runs
from scalebench_lib.plan.placement import PlacedInstance, place
from scalebench_lib.plan.planner import BatchPlanner, Plan, split_evenly, unbeaten
from scalebench_lib.plan.profile import SHARED, Instance, Profile
from scalebench_lib.plan.runner import Limits, PlanRunner, PlanTiming, Say, paired
from scalebench_lib.plan.simulate import Batching
from scalebench_lib.record import Record, Software, model_files_digest
from scalebench_lib.results import Results
from scalebench_lib.stats import Ratio, unpaired
from scalebench_lib.text import format_number, pluralize

CANDIDATES = 3
"""How many plans, or deployments, a verification runs besides fat and thin."""


class PlanRequest(StrictModel):
    """A question: the best plan for `batch_size`, or of most throughput within `slo_ms`.

    0 `cores` means all of them; an empty `optimization` means any. Requests have
    `lengths`; `shared` names values of `SHARED` where the sweep has several.
    """

    batch_size: PositiveInt = 0
    cores: PositiveInt = 0
    optimization: str = ""
    slo_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.0
    lengths: Lengths = ()
    shared: Mapping[str, Any] = {}

    @classmethod
    def of(cls, **values: Any) -> PlanRequest:
        """Check `values`, of which None, 0 and the empty text mean: not given.

        Raises `RequestError` where they are wrong or too few.
        """
        given = {name: value for name, value in values.items() if value}
        if not {"batch_size", "slo_ms"} & given.keys():
            raise RequestError("slo_ms: name a latency limit, or the size of a batch to split")
        if "lengths" in given and (other := given.keys() & {"batch_size", "seq_len"}):
            raise RequestError(
                f"lengths: are of requests, which have no {min(other)}: leave it out"
            )
        shared = {name: given.pop(name) for name in SHARED if name in given}
        return cls.from_input({**given, "shared": shared})


@dataclass(frozen=True)
class Context:
    """The evidence for decisions: the profile, the cores to use, and what was run.

    `records` are the profile's; none where the sweep was imported, whose runs are `published`.
    `loads` are the load tests of this profile with the software of the sweep. Where requests have
    `lengths`, the profile is that of the longest, and the records are of all.
    """

    out: Path
    profile: Profile
    machine: Machine
    cores: int
    records: tuple[Record, ...]
    plan_runs: PlanRuns
    published: tuple[Plan, ...] = ()
    loads: tuple[LoadRun, ...] = ()
    lengths: Lengths = ()

    @classmethod
    def load(cls, out: Path, request: PlanRequest) -> Context:
        """Read what the sweep in `out` has for `request`; `RequestError` says what it lacks."""
        results = Results.load(out)
        several = [{"seq_len": length} for length, _ in request.lengths] or [{}]
        profiles = [Profile.of(results.table, {**request.shared, **one}) for one in several]
        profile, held = profiles[-1], [one for one in results.records if one.points]
        records = tuple(one for some in reversed(profiles) for one in held if some.holds(one))
        together = results.imported.together if results.imported else ()
        published = tuple(published_runs(profile, together))
        machine = records[0].machine if records else _published_machine(profile, published)
        profile = replace(profile, instances=tuple(_on_any_cores(profile.instances, machine)))
        learned, cores = PlanRuns.load(out), machine.max_threads(smt=False)
        if request.lengths and not records:
            raise RequestError("lengths: an import cannot be planned for several: leave them out")
        evidence = out, profile, machine, cores, records, learned, published
        context = cls(*evidence, lengths=request.lengths)
        return replace(context, loads=tuple(filter(context._counts, read_load_runs(out))))

    @property
    def record(self) -> Record | None:
        """One of `records`."""
        return next(iter(self.records), None)

    def _counts(self, run: PlanRun | LoadRun) -> bool:
        """Return whether `run` is of this profile, with the software of the sweep."""
        same, record = run.shared == self.profile.shared, self.record
        return bool(same and record and not run.software.differs_from(record.software))

    def decide(self, request: PlanRequest) -> Decision:
        """Return the plan that was measured, or else is predicted, to be best; nothing is run.

        Raises `RequestError` for what cannot be had, with the nearest that can.
        """
        context = self.narrowed(request)
        best = context._best(request)
        size = best.batch_size
        return Decision(context, request, best, context.fat(size), context.thin(size))

    def narrowed(self, request: PlanRequest) -> Context:
        """Keep only the cores and the optimization that `request` allows."""
        if request.cores > self.cores:
            raise RequestError(
                f"cores: {request.cores} is more than the "
                f"{pluralize(self.cores, 'core')} of {self.profile.shared['machine']}, "
                f"where this sweep was measured: use at most {self.cores}"
            )
        chosen = request.optimization
        profile = self.profile.only(chosen) if chosen else self.profile
        return replace(self, profile=profile, cores=request.cores or self.cores)

    @cached_property
    def planner(self) -> BatchPlanner:
        """The planner, with the slow-down that the runs so far show."""
        return BatchPlanner(self.profile.instances, self.cores, self.slowdown or 0.0)

    @cached_property
    def runs(self) -> list[Plan]:
        """The plans of this profile that were run with the software of the sweep, or published."""
        seen = filter(self._counts, self.plan_runs.observations)
        return [*self.published, *(one.plan for one in seen)]

    @property
    def slowdown(self) -> float | None:
        """How instances slow each other down (see `planner`); None where nothing is known."""
        return fit_slowdown_per_core(self.runs, self.profile.optimizations)

    @cached_property
    def _measured(self) -> dict[Plan, Plan]:
        """The runs that keep to these cores and optimizations, by plan."""
        known = set(self.profile.optimizations)
        fitting = [one for one in self.runs if one.cores <= self.cores]
        return {plan: plan for plan in fitting if plan.optimizations <= known}

    def known(self, plan: Plan) -> Plan:
        """Return `plan` as it was measured, if it was run."""
        return self._measured.get(plan, plan)

    def _ranked(self, plans: Iterable[Plan], batch_size: int) -> list[Plan]:
        """Return `plans` and the runs of this batch: the fastest, then the smallest, first."""
        run = [plan for plan in self._measured if plan.batch_size == batch_size]
        known = dict.fromkeys(self.known(plan) for plan in (*run, *plans))
        return sorted(known, key=lambda plan: (plan.latency_ms, plan.cores))

    def fastest(self, batch_size: int) -> Plan:
        """Return the fastest plan, measured or else predicted; `RequestError` if there is none."""
        baselines = filter(None, (self.fat(batch_size), self.thin(batch_size)))
        return self._ranked([*baselines, self.planner.best(batch_size)], batch_size)[0]

    def frontier(self) -> list[Plan]:
        """Return the plans that none beats in both latency and throughput, ascending."""
        predicted = map(self.known, self.planner.frontier())
        return unbeaten([*predicted, *self._measured])

    def within_latency(self, slo_ms: float) -> Plan:
        """Return the plan of most throughput, of any batch size, that takes at most `slo_ms`.

        Raises `RequestError`, with the fastest plan, if none meets the limit.
        """
        frontier = self.frontier()
        if within := [plan for plan in frontier if plan.latency_ms <= slo_ms]:
            return within[-1]
        raise RequestError(
            f"slo_ms: nothing answers within {slo_ms:g} ms on {pluralize(self.cores, 'core')}: the "
            f"fastest is {frontier[0].summary}"
        )

    def _best(self, request: PlanRequest) -> Plan:
        if not request.batch_size:
            return self.within_latency(request.slo_ms)
        best = self.fastest(request.batch_size)
        if request.slo_ms and best.latency_ms > request.slo_ms:
            less = self.within_latency(request.slo_ms)
            raise RequestError(
                f"slo_ms: batch {request.batch_size} takes at least "
                f"{format_number(best.latency_ms, 4)} ms; "
                f"within {request.slo_ms:g} ms the largest is {less.summary}"
            )
        return best

    def fat(self, batch_size: int) -> Plan | None:
        """Return one instance on all cores, as most people serve; None if it is not known."""
        whole = [one for one in self.profile.instances if one.cores == self.cores]
        sized = sorted((one.latency_ms, one) for one in whole if one.batch_size == batch_size)
        plans = self._ranked([Plan.of([one]) for _, one in sized[:1]], batch_size)
        return next((p for p in plans if len(p.instances) == 1 and p.cores == self.cores), None)

    def thin(self, batch_size: int) -> Plan | None:
        """Return one thread on every core, batches as even as can be; None if not all are known."""
        sizes = split_evenly(batch_size, self.cores)
        slowest_first = sorted(self.profile.instances, key=lambda one: -one.latency_ms)
        single = {one.batch_size: one for one in slowest_first if _is_thin(one)}
        profiled = [single[size] for size in sizes if size in single]
        whole = [Plan.of(profiled, self.planner.slowdown)] if len(profiled) == self.cores else []
        plans = (one for one in self._ranked(whole, batch_size) if _is_thin(*one.instances))
        return next((one for one in plans if [i.batch_size for i in one.instances] == sizes), None)

    def promising(self, batch_size: int) -> list[Plan]:
        """Return the plans to verify, the best first, each of its own kind.

        They are the best with instances of at most, and of at least, 1, 2, 4 … cores, the best
        that leave cores idle, and those that were run before.
        """
        found = [*self._of_every_kind(batch_size), self.planner.best(batch_size)]
        return self._ranked(found, batch_size)[:CANDIDATES]

    def _of_every_kind(self, batch_size: int) -> Iterator[Plan]:
        every = self.profile.instances
        for cores in (2**power for power in range(self.cores.bit_length())):
            small = [one for one in every if one.cores <= cores]
            large = [one for one in every if one.cores >= cores]
            yield from self._fastest_of(small, self.cores, batch_size)
            yield from self._fastest_of(large, self.cores, batch_size)
            yield from self._fastest_of(every, cores, batch_size)

    def _fastest_of(
        self, instances: Iterable[Instance], cores: int, batch_size: int
    ) -> Iterator[Plan]:
        with suppress(RequestError):
            yield BatchPlanner(instances, cores, self.planner.slowdown).best(batch_size)

    @cached_property
    def sqnr_db(self) -> Mapping[str, float]:
        """The worst SQNR of each optimization in dB, where it is known."""
        found = dict[str, float]()
        for name, proof in ((o.config.optimization, o.verification) for o in self.records):
            if proof and proof.sqnr_db is not None:
                found[name] = min(found.get(name, inf), proof.sqnr_db)
        return found

    def reservations(self, plan: Plan, seen: bool = False) -> Iterator[str]:
        """Yield why `plan` may take longer than predicted; `seen`: its instances, under load."""
        fast = sum(not core.efficient for core in self.machine.cores)
        predicted = len(plan.instances) > 1 and not plan.measured_ms
        if predicted and not seen and self.slowdown is None:
            tells = "verify measures it" if self.record else "an import has no runs"
            yield f"instances are assumed not to slow each other down: {tells}"
        if predicted and plan.cores > fast > 0:
            yield (
                "it is predicted for performance cores, on which instances were measured alone; "
                "some of these get slower, efficiency cores: verify measures it"
            )

    def runner(self, limits: Limits, say: Say) -> PlanRunner:
        """Return a runner of plans; `RequestError` if the sweep is of another machine, or model."""
        here = Machine.here()
        if not self.record:
            raise RequestError("this sweep was imported: only one measured here can be verified")
        if differs := self.machine.differs_from(here):
            raise RequestError(
                f"this sweep was measured on {self.machine.title}, which differs from this machine "
                f"in its {differs}: verify there, or measure here"
            )
        config, files = self.record.config, self.record.model_files
        if files and files != model_files_digest(config):
            raise RequestError(
                f"the files of {config.model!r}, or of its weights, have changed since this sweep: "
                "measure the new model into another folder"
            )
        return PlanRunner(config, here, limits, say)

    def keep(self, plans: Iterable[Plan]) -> Context:
        """Save plans that were run into the sweep's folder; return the context with them.

        The file is read again first: another verification may have ended.
        """
        seen = {"when": datetime.now(UTC), "software": Software.here()}
        runs = [PlanRun(shared=self.profile.shared, plan=plan, **seen) for plan in plans]
        learned = PlanRuns.load(self.out).with_runs(runs)
        learned.save(self.out)
        return replace(self, plan_runs=learned)


def _on_any_cores(instances: Iterable[Instance], machine: Machine) -> Iterator[Instance]:
    """Those of SMT on a machine of unequal cores may get the narrowest, and cost so many cores.

    Where a quota allows fewer CPUs than the cores have, each costs its share of the quota.
    """
    narrowest = min(len(core.cpus) for core in machine.cores)
    cores, most = (machine.max_threads(smt) for smt in (False, True))
    for one in instances:
        if one.smt:
            wide, share = ceil(one.threads / narrowest), ceil(one.threads * cores / most)
            one = replace(one, cores=max(one.cores, wide, share))
        yield one


def _published_machine(profile: Profile, runs: Iterable[Plan]) -> Machine:
    """Return the machine of an imported sweep, as far as its points and runs tell."""
    count = max(plan.cores for plan in (*map(Plan.of, zip(profile.instances)), *runs))
    width = ceil(max(one.threads / one.cores for one in profile.instances))
    cores = tuple(Core(cpus=tuple(range(first, width * count, count))) for first in range(count))
    unknown = {"system": "unknown", "kernel": "unknown", "architecture": "unknown"}
    return Machine(cpu_model=profile.shared["machine"], cores=cores, memory_bytes=1, **unknown)


def _is_thin(*instances: Instance) -> bool:
    return all(one.threads == 1 and not one.smt for one in instances)


@dataclass(frozen=True)
class Decision:
    """The `best` plan and its baselines, with their timings where they were verified.

    `other_cpus` is what other processes used meanwhile (see `PlanRunner`). `limit_kept` is False
    where no plan kept to the limit when run; None where none was run, or it is in doubt. Requests
    have `batching`.
    """

    context: Context
    request: PlanRequest
    best: Plan
    fat: Plan | None = None
    thin: Plan | None = None
    timings: Mapping[Plan, PlanTiming] = field(default_factory=dict)
    other_cpus: float | None = None
    limit_kept: bool | None = None
    batching: Batching | None = None

    @property
    def plans(self) -> list[Plan]:
        """Every plan that was considered, the best first, then the fastest."""
        run = (timing.measured for timing in self.timings.values())
        every = dict.fromkeys(one for one in (*run, self.best, self.fat, self.thin) if one)
        return sorted(every, key=lambda one: (one != self.best, one.latency_ms))

    @cached_property
    def placed(self) -> tuple[PlacedInstance, ...]:
        """The best plan's instances on their CPUs."""
        context = self.context
        return place(self.best, context.machine, context.profile.shared["placement"])

    def speedup(self, plan: Plan, other: Plan) -> Ratio | None:
        """Return how much faster `plan` is than `other`; None if one of them failed."""
        if plan.failed or other.failed:
            return None
        met = paired(self.timings[plan], self.timings[other]) if self.timings else None
        return met or unpaired(other.interval_ms, plan.interval_ms)


def verify_by_running(
    decision: Decision, limits: Limits | None = None, say: Say = lambda _: None
) -> Decision:
    """Run the plans that promise most and the baselines; the best *measured* is the answer.

    The runs are saved into the sweep's folder. Raises `RequestError` on another machine than the
    sweep's, or of another model, `MeasurementError` if no plan could be run.
    """
    context, best = decision.context, decision.best
    size, cores = best.batch_size, context.cores
    fat = context.fat(size) or _even(best, 1, cores)
    thin = context.thin(size) or (_even(best, cores, 1) if size >= cores else None)
    plans = dict.fromkeys(one for one in (fat, thin, best, *context.promising(size)) if one)
    runner = context.runner(limits or Limits(), say)
    timings = {one.plan: one for one in runner.run(plans)}
    run = {plan: timing.measured for plan, timing in timings.items()}
    measured = [plan for plan in run.values() if plan.measured_ms]
    if not measured:
        reasons = "; ".join(f"{plan}: {plan.failed}" for plan in run.values())
        raise MeasurementError(f"no plan could be run: {reasons}")
    best = min(measured, key=lambda plan: plan.latency_ms)
    seen: dict[str, Any] = {"fat": fat and run[fat], "thin": thin and run[thin]}
    seen |= {"timings": timings, "other_cpus": runner.other_cpus}
    if limit_ms := decision.request.slo_ms:
        seen["limit_kept"] = best.latency_ms <= limit_ms
    return Decision(context.keep(measured), decision.request, best, **seen)


def _even(like: Plan, instances: int, threads: int) -> Plan:
    """Return the batch of `like` split evenly, to be run without having been measured."""
    kind = like.instances[0].settings | {"smt": False}
    sizes = split_evenly(like.batch_size, instances)
    return Plan.of(Instance(threads, size, nan, cores=threads, **kind) for size in sizes)
