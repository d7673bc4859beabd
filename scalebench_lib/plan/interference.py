"""The slow-down of instances by each other, fitted to plans that were run.

The runs are kept in the sweep's folder, in ``interference.json``. For plans that were not run they
tell one number (see `planner`), for each optimization if there is evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from math import inf, isfinite, log, nan
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import ScalebenchError, validation_message
from scalebench_lib.files import write_atomically
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Profile, instance_of
from scalebench_lib.record import Software
from scalebench_lib.stats import Interval, VarianceEstimate

FILE = "interference.json"

_MOST = log(2)
"""With this two instances of a core each would serve no more than one of them alone."""


class PlanRun(StrictModel):
    """A plan that was run, with what was predicted then; `shared` is that of its profile."""

    when: datetime
    software: Software
    shared: dict[str, Any]
    plan: Plan


class PlanRuns(StrictModel):
    """Every plan that was run with a sweep, the latest run of each with each software."""

    schema_version: Literal[2] = 2
    observations: tuple[PlanRun, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _forget_older(cls, values: Any) -> Any:
        """Drop runs of version 1, which lack the software and had two instances on one core."""
        older = isinstance(values, dict) and values.get("schema_version") == 1
        return {} if older else values

    @classmethod
    def load(cls, out: Path) -> Self:
        """Load the runs in folder `out`, if any; `ScalebenchError` if the file is damaged."""
        path = out / FILE
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ScalebenchError(
                f"{path} is damaged: {validation_message(error)}; delete it, and 'plan --verify' "
                "learns anew"
            ) from None

    def save(self, out: Path) -> None:
        """Write the runs into folder `out`."""
        write_atomically(out / FILE, self.model_dump_json(indent=1) + "\n")

    def with_runs(self, runs: Iterable[PlanRun]) -> PlanRuns:
        """Return this with `runs` in place of earlier ones of the same plans."""
        latest = {
            (one.plan, one.model_dump_json(include={"shared", "software"})): one
            for one in (*self.observations, *runs)
        }
        return PlanRuns(observations=tuple(latest.values()))


def published_runs(profile: Profile, together: Iterable[dict[str, Any]]) -> Iterator[Plan]:
    """Yield the published runs of several instances of `profile`, as measured plans."""
    alone = {one: one for one in profile.instances}
    unknown = dict.fromkeys(("latency_ms", "latency_ms_high", "peak_memory_mb"), nan)
    for run in together:
        if all(run.get(name, value) == value for name, value in profile.shared.items()):
            one = instance_of({**run, **unknown})
            plan = Plan.of([alone.get(one, one)] * run["instances"])
            yield replace(plan, measured_ms=Interval(run["latency_ms"], VarianceEstimate(inf)))


def fit_slowdown_per_core(plans: Iterable[Plan], optimizations: Iterable[str]) -> float | None:
    """Return the slow-down for each core that other instances have: a fit to `plans` that were run.

    Plans with other `optimizations` count only if there are no others; None if none tells.
    """
    known = [(plan, pair) for plan in plans if (pair := _evidence(plan))]
    alike = [pair for plan, pair in known if plan.optimizations <= set(optimizations)]
    pairs = alike or [pair for _, pair in known]
    if not pairs:
        return None
    slope = sum(y * x for y, x in pairs) / sum(x * x for _, x in pairs)
    return min(max(slope, 0.0), _MOST)


def _evidence(plan: Plan) -> tuple[float, int] | None:
    """Return the log of the slow-down and the cores that others had; None if it cannot be known."""
    pairs = [
        (log(plan.latency_ms / one.latency_ms), plan.cores - one.cores) for one in plan.instances
    ]
    if len(pairs) < 2 or not isfinite(sum(slower for slower, _ in pairs)):
        return None
    return min(pairs, key=lambda pair: pair[0] / pair[1])
