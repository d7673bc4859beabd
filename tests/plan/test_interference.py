"""What is learned from plans that were run."""

import pytest

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.plan.interference import FILE, Interference, observation
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import InstanceOption, Profile
from scalebench_lib.stats import Interval, Variance
from tests import factories

TWO = Plan.of([InstanceOption(1, 4, 100.0, cores=1.0)] * 2)
FAT = Plan.of([InstanceOption(2, 8, 120.0, cores=2.0)])
PROFILE = Profile((*TWO.instances, *FAT.instances), "there", "bert", 16, "sequential")


def took(ms: float) -> Interval:
    """A latency in ms, known to 1 %."""
    return Interval.around(ms, Variance(1e-4))


def learned(*runs: tuple[Plan, float]) -> Interference:
    """After `runs`: plans and what they took."""
    seen = [observation(PROFILE, plan, factories.START, took(ms)) for plan, ms in runs]
    return Interference().with_runs(seen)


def test_a_slow_down_is_learned_and_used_for_the_next_prediction() -> None:
    """Two on two cores at 1.2 times their latency alone: so are two others."""
    exponent = learned((TWO, 120.0)).exponent(PROFILE)
    assert 2**exponent == pytest.approx(1.2)
    others = Plan.of([InstanceOption(1, 16, 300.0, cores=1.0)] * 2, exponent)
    assert others.predicted_ms == pytest.approx(360.0)
    assert Plan.of(FAT.instances, exponent).predicted_ms == 120.0


def test_a_plan_that_was_run_is_known_and_its_last_run_counts() -> None:
    """More than what was learned from others."""
    found = learned((TWO, 120.0), (FAT, 126.0), (TWO, 110.0))
    assert len(found.observations) == 2
    assert found.known(TWO, PROFILE).predicted_ms == pytest.approx(110.0)
    assert found.known(FAT, PROFILE).predicted_ms == pytest.approx(126.0)


def test_nothing_is_learned_of_one_instance_or_from_a_speed_up() -> None:
    """A neighbour never makes faster: that was noise."""
    assert learned((FAT, 200.0)).exponent(PROFILE) == 0
    assert learned((TWO, 90.0)).exponent(PROFILE) == 0


def test_it_is_kept_with_the_sweep(tmp_path) -> None:
    """And a damaged file is named."""
    assert Interference.load(tmp_path) == Interference()
    found = learned((TWO, 120.0))
    found.save(tmp_path)
    assert Interference.load(tmp_path) == found
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ScalebenchError, match="is damaged"):
        Interference.load(tmp_path)
