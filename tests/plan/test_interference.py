"""What is learned from plans that were run."""

import json
from math import exp, isnan, log, nan

import pytest

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.plan.interference import FILE, PlanRuns, fit_slowdown_per_core
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from tests.plan.observed import observation, run

TWO = Plan.of([Instance(1, 4, 100.0, cores=1)] * 2)
FAT = Plan.of([Instance(2, 8, 120.0, cores=2)])
UNKNOWN = Plan.of([Instance(1, 2, nan, cores=1)] * 2)
SHARED = {"machine": "there", "model": "bert", "seq_len": 16}


def learned(*runs: tuple[Plan, float]) -> PlanRuns:
    """After `runs`: plans and what they took."""
    return PlanRuns().with_runs(observation(plan, ms, SHARED) for plan, ms in runs)


def slowdown_after(*runs: tuple[Plan, float]) -> float | None:
    """The slow-down that `runs` tell."""
    return fit_slowdown_per_core([run(plan, ms) for plan, ms in runs], ("none",))


def test_a_slow_down_is_learned_and_used_for_the_next_prediction() -> None:
    """Two on two cores take 1.2 times their latency alone; the first of four, 1.2 cubed."""
    found = slowdown_after((TWO, 120.0))
    assert found == pytest.approx(log(1.2))
    four = Plan.of([Instance(1, 16, 300.0, cores=1)] * 4, found)
    assert four.predicted_ms == pytest.approx(300 * 1.2**3)
    assert Plan.of(FAT.instances, found).predicted_ms == 120.0


def test_the_instance_that_explains_the_latency_tells_the_slow_down() -> None:
    """The large one has two of three cores: one busy core slows it from 100 to 110."""
    mixed = Plan.of([Instance(2, 8, 100.0, cores=2), Instance(1, 1, 20.0, cores=1)])
    assert slowdown_after((mixed, 110.0)) == pytest.approx(log(1.1))


def test_evidence_of_the_same_optimization_counts_alone() -> None:
    other = Plan.of([Instance(1, 4, 50.0, cores=1, optimization="script")] * 2)
    both = [run(TWO, 120.0), run(other, 100.0)]
    assert fit_slowdown_per_core(both, ("none",)) == pytest.approx(log(1.2))
    assert fit_slowdown_per_core(both, ("script",)) == pytest.approx(log(2))
    assert fit_slowdown_per_core(both, ("compile",)) == pytest.approx((log(1.2) + log(2)) / 2)


def test_a_plan_that_was_run_is_known_and_its_last_run_counts() -> None:
    found = learned((TWO, 120.0), (FAT, 126.0), (TWO, 110.0)).observations
    assert {one.plan: one.plan.latency_ms for one in found} == {TWO: 110.0, FAT: 126.0}


def test_nothing_is_learned_where_nothing_is_known_alone() -> None:
    """Not of one instance, nor of instances that were not profiled; a speed-up was noise."""
    assert slowdown_after() is None
    assert slowdown_after((FAT, 200.0)) is None
    assert slowdown_after((UNKNOWN, 200.0)) is None
    assert slowdown_after((TWO, 90.0)) == 0
    assert exp(slowdown_after((TWO, 900.0))) == pytest.approx(2)


def test_it_is_kept_with_the_sweep(tmp_path) -> None:
    """A damaged file is named; one that does not tell the software is as good as none."""
    assert PlanRuns.load(tmp_path) == PlanRuns()
    found = learned((TWO, 120.0), (UNKNOWN, 50.0))
    found.save(tmp_path)
    plans = [one.plan for one in PlanRuns.load(tmp_path).observations]
    assert [plan.measured_ms for plan in plans] == [
        one.plan.measured_ms for one in found.observations
    ]
    assert isnan(plans[1].predicted_ms)
    assert fit_slowdown_per_core(plans, ("none",)) == pytest.approx(log(1.2))
    json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)
    (tmp_path / FILE).write_text('{"schema_version": 1, "observations": [{"machine": "there"}]}')
    assert PlanRuns.load(tmp_path) == PlanRuns()
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ScalebenchError, match="is damaged"):
        PlanRuns.load(tmp_path)
