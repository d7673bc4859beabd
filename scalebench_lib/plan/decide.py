"""From a request to a decision: the plan to run, what it is compared with, and the proof.

`Ground` is what a decision stands on: the request, the sweep's profile, what was learned before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from scalebench_lib.config import PositiveInt, StrictModel
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Core, Machine
from scalebench_lib.plan.interference import Interference, Observation, observation, shape
from scalebench_lib.plan.placement import Placed, placed
from scalebench_lib.plan.planner import Plan, Planner
from scalebench_lib.plan.profile import InstanceOption, Profile
from scalebench_lib.plan.runner import Limits, PlanRunner, Run, Say, speedup
from scalebench_lib.record import Record
from scalebench_lib.results import Results
from scalebench_lib.stats import Interval, Ratio, Variance
from scalebench_lib.text import format_number, pluralize

CANDIDATES = 3
"""How many plans a proof runs beside the baselines."""


class Request(StrictModel):
    """What is asked: the best plan for `batch_size`, or of most throughput within `slo_ms`.

    `threads` counts physical cores. What is not given is 0 or empty: all cores, any
    optimization, and the only model, size of items and machine that there is.
    """

    batch_size: PositiveInt = 0
    threads: PositiveInt = 0
    optimization: str = ""
    slo_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.0
    machine: str = ""
    model: str = ""
    seq_len: PositiveInt = 0
    image_size: PositiveInt = 0
    placement: str = ""

    @classmethod
    def of(cls, **values: Any) -> Request:
        """Check `values` (None: not given); `RequestError` where they are wrong or too few."""
        given = {name: value for name, value in values.items() if value is not None}
        if not {"batch_size", "slo_ms"} & given.keys():
            raise RequestError("name a batch size, or a latency limit with slo_ms, or both")
        return cls.from_input(given)


@dataclass(frozen=True)
class Ground:
    """What a decision stands on: the profile, the cores to use, and what was learned before."""

    out: Path
    profile: Profile
    machine: Machine
    cores: int
    records: tuple[Record, ...]
    learned: Interference

    @classmethod
    def load(cls, out: Path, request: Request) -> Ground:
        """Read what the sweep in `out` has for `request`; `RequestError` says what it lacks."""
        results = Results.load(out)
        profile = Profile.of(results.table, **request.model_dump())
        machine = _machine(profile, results.table, results.records)
        most = machine.max_threads(smt=False)
        records = tuple(results.records)
        return cls(out, profile, machine, most, records, Interference.load(out))

    def narrowed(self, request: Request) -> Ground:
        """Only the cores and the optimization that `request` allows."""
        if request.threads > self.cores:
            raise RequestError(
                f"threads: {request.threads} is more than the "
                f"{pluralize(self.cores, 'core')} of {self.profile.machine}, "
                f"where this sweep was measured: use at most {self.cores}"
            )
        profile = self.profile.only(request.optimization or None)
        return replace(self, profile=profile, cores=request.threads or self.cores)

    @cached_property
    def planner(self) -> Planner:
        """Plans with the slow-down that was learned so far."""
        return Planner(self.profile.options, self.cores, self.exponent)

    @property
    def exponent(self) -> float:
        """How instances slow each other down; see `planner`."""
        return self.learned.exponent(self.profile)

    @property
    def seen(self) -> list[Observation]:
        """The plans of this profile's model that were run, by batch size."""
        runs = self.learned.about(self.profile)
        return sorted(runs, key=lambda run: sum(one.batch_size for one in run.instances))

    def known(self, plan: Plan) -> Plan:
        """`plan` with what its own run taught, if it was run."""
        return self.learned.known(plan, self.profile)

    def fastest(self, batch_size: int) -> Plan:
        """The best plan for `batch_size`, with what is known of it."""
        return fastest(self.planner, self.profile, batch_size, self.learned)

    def frontier(self) -> list[Plan]:
        """Plans that none beats in both latency and throughput, with what is known of each."""
        return self.planner.frontier(self.known)

    def best(self, request: Request) -> Plan:
        """The best plan; `RequestError` where there is none, with the nearest that there is."""
        if not request.batch_size:
            return self.planner.under(request.slo_ms, self.known)
        best = self.fastest(request.batch_size)
        if request.slo_ms and best.predicted_ms > request.slo_ms:
            less = self.planner.under(request.slo_ms, self.known)
            raise RequestError(
                f"slo_ms: batch {request.batch_size} takes at least "
                f"{format_number(best.predicted_ms, 4)} ms; "
                f"within {request.slo_ms:g} ms the largest is batch {less.batch_size} "
                f"in {format_number(less.predicted_ms, 4)} ms, {less}"
            )
        return best

    def candidates(self, batch_size: int) -> list[Plan]:
        """The plans that promise most, the best first."""
        return candidates(self.planner, self.profile, batch_size, self.learned)[:CANDIDATES]

    def fat(self, batch_size: int) -> Plan | None:
        """The one-instance baseline with what is known of it, if it was profiled."""
        plan = fat(self.profile, self.cores, batch_size)
        return plan and self.known(plan)

    def thin(self, batch_size: int) -> Plan | None:
        """The baseline of one thread an instance with what is known of it, if there is one."""
        plan = thin(self.profile, self.cores, batch_size, self.exponent)
        return plan and self.known(plan)

    def proof(self, limits: Limits, say: Say) -> PlanRunner:
        """The means to run plans here; `RequestError` where the sweep is of another machine."""
        here = Machine.here()
        if not self.records:
            raise RequestError("this sweep was imported: only one measured here can be verified")
        if differs := self.machine.differs_from(here):
            raise RequestError(
                f"this sweep was measured on {self.machine.title}, which differs from this machine "
                f"in its {differs}: verify there, or measure here"
            )
        record = next(one for one in self.records if one.points and self.profile.is_of(one))
        return PlanRunner(record.config, here, limits, say)


def _machine(profile: Profile, table: pd.DataFrame, records: Iterable[Record]) -> Machine:
    """The machine of the records; of an imported sweep what its rows tell of one."""
    for record in records:
        if record.machine_name == profile.machine:
            return record.machine
    rows = table[(table["machine"] == profile.machine) & (table["status"] == "ok")]
    count = int(np.ceil(rows["cores"].max()))
    width = int(np.ceil((rows["threads"] / rows["cores"]).max()))
    cores = [Core(cpus=tuple(range(first, width * count, count))) for first in range(count)]
    unknown = {"system": "unknown", "kernel": "unknown", "architecture": "unknown"}
    return Machine(cpu_model=profile.machine, cores=tuple(cores), memory_bytes=1, **unknown)


def fat(profile: Profile, cores: int, batch_size: int) -> Plan | None:
    """One instance on all cores, as most people serve; None where that was not profiled."""
    whole = [one for one in profile.options if one.batch_size == batch_size and one.cores == cores]
    return Plan.of([min(whole, key=lambda one: one.latency_ms)]) if whole else None


def even(like: Plan, instances: int, threads: int) -> Plan | None:
    """The batch of `like` in so many equal instances of its optimization, profiled or not.

    Nobody knows yet how long it takes. None where the batch cannot be split so.
    """
    size, rest = divmod(like.batch_size, instances)
    if rest:
        return None
    option = replace(
        like.instances[0],
        threads=threads,
        cores=float(threads),
        smt=False,
        batch_size=size,
        latency_ms=float("nan"),
        low_ms=None,
        high_ms=None,
        memory_mb=None,
    )
    return Plan.of([option] * instances)


def thin(profile: Profile, cores: int, batch_size: int, exponent: float) -> Plan | None:
    """Instances of one thread, a core each; None where their sizes do not sum to the batch."""
    single = [one for one in profile.options if one.threads == 1 and not one.smt]
    return _best(single, cores, batch_size, exponent)


def fastest(planner: Planner, profile: Profile, batch_size: int, learned: Interference) -> Plan:
    """The plan of `batch_size` that promises most; what was run counts as it was measured.

    Raises `RequestError` where there is none.
    """
    first = planner.best(batch_size)
    before = _run_before(planner, profile, batch_size, learned)
    return _ranked([*before, first], profile, learned)[0]


def candidates(
    planner: Planner, profile: Profile, batch_size: int, learned: Interference
) -> list[Plan]:
    """Plans of `batch_size` by what they promise, the best first, each of its own kind.

    They are the best with instances of at most, and of at least, 1, 2, 4 … cores, the best that
    leave cores idle, and those that were run before. Raises `RequestError` where there is none.
    """
    first = planner.best(batch_size)
    others = _of_every_kind(profile.options, planner, batch_size)
    before = _run_before(planner, profile, batch_size, learned)
    return _ranked([*before, *others, first], profile, learned)


def _ranked(plans: Iterable[Plan], profile: Profile, learned: Interference) -> list[Plan]:
    """Each different plan, with what is known of it; the fastest, then the smallest first."""
    found = {shape(plan.instances): plan for plan in plans}
    known = [learned.known(plan, profile) for plan in found.values()]
    return sorted(known, key=lambda plan: (plan.predicted_ms, plan.cores))


def _of_every_kind(
    options: Iterable[InstanceOption], planner: Planner, batch_size: int
) -> Iterator[Plan]:
    options, cores = list(options), planner.cores
    for power in range(cores.bit_length()):
        size = 2**power
        kinds: tuple[tuple[Callable[[InstanceOption], bool], int], ...] = (
            (lambda one, most=size: one.cores <= most, cores),  # type: ignore[misc]
            (lambda one, least=size: one.cores >= least, cores),  # type: ignore[misc]
            (lambda _: True, size),
        )
        for fits, budget in kinds:
            if plan := _best(filter(fits, options), budget, batch_size, planner.exponent):
                yield plan


def _best(
    options: Iterable[InstanceOption], cores: int, batch_size: int, exponent: float
) -> Plan | None:
    with suppress(RequestError):
        return Planner(options, cores, exponent).best(batch_size)
    return None


def _run_before(
    planner: Planner, profile: Profile, batch_size: int, learned: Interference
) -> Iterator[Plan]:
    """Plans that were run, if they fit the request, with the profile's latencies of today."""
    today = {shape([option]): option for option in profile.options}
    for one in learned.about(profile):
        options = [today.get(shape([option])) for option in one.instances]
        here = [option for option in options if option]
        plan = Plan.of(here, planner.exponent) if len(here) == len(options) else None
        if plan and plan.batch_size == batch_size and plan.cores <= planner.cores:
            yield plan


__all__ = ["Candidate", "Decision", "Ground", "Limits", "Request", "choose", "decide", "verify"]


@dataclass(frozen=True)
class Candidate:
    """A plan under consideration: what it is called, and its run where it was run."""

    plan: Plan
    names: tuple[str, ...]
    run: Run | None = None

    @property
    def measured_ms(self) -> Interval | None:
        """Latency as measured, if it was."""
        return self.run.latency_ms if self.run else None

    @property
    def latency_ms(self) -> float:
        """The best that is known: measured, or else predicted; nan where neither is."""
        return self.measured_ms.value if self.measured_ms else self.plan.predicted_ms


@dataclass(frozen=True)
class Decision:
    """The plan to run, among the entries it was chosen from; `proved` where they were run."""

    ground: Ground
    request: Request
    best: Candidate
    entries: tuple[Candidate, ...]
    proved: bool = False

    def named(self, name: str) -> Candidate | None:
        """The entry of that name, if any: ``fat``, ``thin``."""
        return next((one for one in self.entries if name in one.names), None)

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The chosen plan's instances on their CPUs."""
        return placed(self.best.plan, self.ground.machine, self.ground.profile.placement)

    def over(self, other: Candidate, one: Candidate | None = None) -> Ratio | None:
        """How much faster the chosen plan (or `one`) is than `other`; None where not known."""
        one = one or self.best
        if self.proved:
            return speedup(one.run, other.run) if one.run and other.run else None
        return _predicted_speedup(one.plan, other.plan)


def _predicted_speedup(plan: Plan, other: Plan) -> Ratio | None:
    """The ratio of predictions, its interval that of the slowest instances' profiled points."""
    value = other.predicted_ms / plan.predicted_ms
    if np.isnan(value):
        return None
    reach = float(np.hypot(_reach(plan), _reach(other)))
    low, high = value * float(np.exp(-reach)), value * float(np.exp(reach))
    return Ratio(value, low, high, Variance((reach / 1.96) ** 2), "not measured together")


def _reach(plan: Plan) -> float:
    slowest = plan.slowest
    return float("inf") if slowest.high_ms is None else np.log(slowest.high_ms / slowest.latency_ms)


def decide(out: Path, request: Request) -> Decision:
    """The plan that the sweep in folder `out` predicts to be best; nothing is run.

    Raises `RequestError` for what cannot be had, with the nearest that can.
    """
    return choose(Ground.load(out, request), request)


def choose(whole: Ground, request: Request) -> Decision:
    """`decide`, with what was read before."""
    ground = whole.narrowed(request)
    best = ground.best(request)
    size = best.batch_size
    called = [("best", best), ("fat", ground.fat(size)), ("thin", ground.thin(size))]
    entries = _entries(called)
    return Decision(ground, request, entries[0], entries)


def verify(decision: Decision, limits: Limits | None = None, say: Say = lambda _: None) -> Decision:
    """Run the plans that promise most and the baselines; the best *measured* is the answer.

    What their instances do to each other is kept with the sweep. Raises `RequestError` on
    another machine than the sweep's, `MeasurementError` where no plan could be run.
    """
    ground, best = decision.ground, decision.best.plan
    size = best.batch_size
    others = ground.candidates(size)
    called = [("fat", _run_fat(ground, best)), ("thin", _run_thin(ground, best)), ("best", best)]
    entries = _entries([*called, *(("candidate", plan) for plan in others)])
    proof = ground.proof(limits or Limits(), say)
    runs = proof.run([entry.plan for entry in entries])
    entries = tuple(replace(one, run=run) for one, run in zip(entries, runs, strict=True))
    _learn(ground, runs)
    return replace(decision, best=_fastest(entries), entries=entries, proved=True)


def _run_fat(ground: Ground, best: Plan) -> Plan | None:
    """The one-instance baseline; to be run, it need not have been profiled."""
    return ground.fat(best.batch_size) or even(best, 1, ground.cores)


def _run_thin(ground: Ground, best: Plan) -> Plan | None:
    """The baseline of one thread an instance on as many cores as there are items for."""
    count = min(ground.cores, best.batch_size)
    found = ground.thin(best.batch_size)
    if found and len(found.instances) == count:
        return found
    return even(best, count, 1) or found


def _entries(called: Iterable[tuple[str, Plan | None]]) -> tuple[Candidate, ...]:
    """An entry for each different plan, with all its names."""
    entries: dict[Any, Candidate] = {}
    for name, plan in called:
        if plan:
            first = entries.setdefault(shape(plan.instances), Candidate(plan, ()))
            entries[shape(plan.instances)] = replace(first, names=(*first.names, name))
    return tuple(entries.values())


def _fastest(entries: Sequence[Candidate]) -> Candidate:
    """The best measured."""
    run = [entry for entry in entries if entry.measured_ms]
    if not run:
        reasons = "; ".join(f"{one.plan}: {one.run.reason}" for one in entries if one.run)
        raise MeasurementError(f"no plan could be run: {reasons}")
    return min(run, key=lambda entry: entry.latency_ms)


def _learn(ground: Ground, runs: Iterable[Run]) -> None:
    """Keep what was measured with the sweep; read again first, another proof may have ended."""
    now = datetime.now(UTC)
    seen = [
        observation(ground.profile, run.plan, now, found)
        for run in runs
        if (found := run.latency_ms) and np.isfinite(run.plan.predicted_ms)
    ]
    if seen:
        Interference.load(ground.out).with_runs(seen).save(ground.out)
