"""From a request to a decision: the plan to run, what it is held against, and the proof."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from scalebench_lib.errors import MeasurementError
from scalebench_lib.plan.candidates import even
from scalebench_lib.plan.ground import Ground, Request
from scalebench_lib.plan.interference import Interference, observation, shape
from scalebench_lib.plan.placing import Placed, placed
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.proof import Limits, Run, Say, speedup
from scalebench_lib.stats import Interval, Ratio, Variance

__all__ = ["Decision", "Entry", "Ground", "Limits", "Request", "choose", "decide", "prove"]


@dataclass(frozen=True)
class Entry:
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
    best: Entry
    entries: tuple[Entry, ...]
    proved: bool = False

    def named(self, name: str) -> Entry | None:
        """The entry of that name, if any: ``fat``, ``thin``."""
        return next((one for one in self.entries if name in one.names), None)

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The chosen plan's instances on their CPUs."""
        return placed(self.best.plan, self.ground.machine, self.ground.profile.placement)

    def over(self, other: Entry, one: Entry | None = None) -> Ratio | None:
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


def prove(decision: Decision, limits: Limits | None = None, say: Say = lambda _: None) -> Decision:
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


def _entries(called: Iterable[tuple[str, Plan | None]]) -> tuple[Entry, ...]:
    """An entry for each different plan, with all its names."""
    entries: dict[Any, Entry] = {}
    for name, plan in called:
        if plan:
            first = entries.setdefault(shape(plan.instances), Entry(plan, ()))
            entries[shape(plan.instances)] = replace(first, names=(*first.names, name))
    return tuple(entries.values())


def _fastest(entries: Sequence[Entry]) -> Entry:
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
