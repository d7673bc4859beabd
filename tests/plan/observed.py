"""Plans that were run, made up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scalebench_lib.plan.interference import PlanRun
from scalebench_lib.plan.planner import Plan
from scalebench_lib.record import Software
from scalebench_lib.stats import Interval, VarianceEstimate
from tests import factories


def run(plan: Plan, ms: float) -> Plan:
    """`plan` as it is after it was run and took `ms`, known to 2 %."""
    return replace(plan, measured_ms=Interval(ms, VarianceEstimate(1e-4, df=10)))


def observation(
    plan: Plan, ms: float, shared: Mapping[str, Any], software: Software = factories.SOFTWARE
) -> PlanRun:
    """What is kept of such a run."""
    return PlanRun(when=factories.START, software=software, shared=dict(shared), plan=run(plan, ms))
