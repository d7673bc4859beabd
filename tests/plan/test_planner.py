"""The planner: exact, over profiled points only."""

import time
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalebench_lib.errors import RequestError
from scalebench_lib.plan.planner import BatchPlanner, Plan
from scalebench_lib.plan.profile import Instance


def instance(threads: int, batch_size: int, latency_ms: float, smt: bool = False) -> Instance:
    """A point on as many cores as it has threads, or on half of them, rounded up, with SMT on."""
    return Instance(
        threads, batch_size, latency_ms, cores=-(-threads // 2) if smt else threads, smt=smt
    )


def every_plan(instances: list[Instance], cores: int, slowdown: float) -> list[Plan]:
    """All multisets of instances that fit, as one would try by hand."""
    found = (
        chosen
        for count in range(1, cores + 1)
        for chosen in combinations_with_replacement(instances, count)
    )
    return [Plan.of(one, slowdown) for one in found if sum(o.cores for o in one) <= cores]


INSTANCES = st.lists(
    st.builds(
        instance,
        st.integers(1, 4),
        st.sampled_from([1, 2, 3, 5]),
        st.integers(1, 30).map(float),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(INSTANCES, st.integers(1, 4), st.integers(1, 12), st.sampled_from([0.0, 0.1]))
def test_it_finds_what_trying_everything_finds(instances, cores, batch_size, slowdown) -> None:
    """The latency is the same, on as few cores; what cannot be reached really cannot."""
    planner = BatchPlanner(instances, cores, slowdown)
    plans = [p for p in every_plan(instances, cores, slowdown) if p.batch_size == batch_size]
    assert planner.reachable(batch_size) == bool(plans)
    if plans:
        found = planner.best(batch_size)
        best = min(plan.predicted_ms for plan in plans)
        assert found.batch_size == batch_size
        assert found.predicted_ms == pytest.approx(best)
        equal = [plan.cores for plan in plans if plan.predicted_ms <= best * (1 + 1e-9)]
        assert found.cores == min(equal)


@settings(deadline=None, max_examples=40)
@given(INSTANCES, st.integers(1, 4), st.floats(1, 60), st.sampled_from([0.0, 0.1]))
def test_no_plan_within_a_limit_serves_more(instances, cores, slo_ms, slowdown) -> None:
    """The frontier holds the plan of most throughput of all batch sizes."""
    plans = [p for p in every_plan(instances, cores, slowdown) if p.predicted_ms <= slo_ms]
    planner = BatchPlanner(instances, cores, slowdown)
    frontier = planner.frontier() if planner.largest_batch else []
    within = [plan for plan in frontier if plan.predicted_ms <= slo_ms]
    assert bool(within) == bool(plans)
    if plans:
        assert within[-1].throughput == pytest.approx(max(plan.throughput for plan in plans))


def test_the_frontier_rises_in_both() -> None:
    instances = [instance(t, b, 2 + b / t + 0.1 * t) for t in (1, 2, 4) for b in (1, 2, 4, 8)]
    plans = BatchPlanner(instances, 4).frontier()
    assert len(plans) > 2
    for one, other in pairwise(plans):
        assert one.predicted_ms < other.predicted_ms
        assert one.throughput < other.throughput


def test_cores_that_gain_nothing_stay_idle() -> None:
    """Ties go to fewer cores, then to fewer instances."""
    instances = [
        *(instance(1, 1, 10.0), instance(2, 1, 10.0)),
        *(instance(1, 2, 10.0), instance(3, 1, 9.0)),
    ]
    assert BatchPlanner(instances, 2).best(1).cores == 1
    assert len(BatchPlanner(instances, 4).best(2).instances) == 1
    assert BatchPlanner(instances, 16).best(1).cores == 3


def test_a_core_is_sold_once() -> None:
    """One thread with SMT on was measured with its sibling idle: two of them take two cores."""
    single, double = instance(1, 4, 10.0, smt=True), instance(2, 4, 8.0, smt=True)
    assert BatchPlanner([single], 2).best(8).cores == 2
    assert not BatchPlanner([single], 2).reachable(16)
    assert BatchPlanner([single, double], 2).best(8).instances == (double, double)


def test_what_cannot_be_reached_is_answered_with_the_nearest() -> None:
    planner = BatchPlanner([instance(1, 4, 1.0)], 3)
    with pytest.raises(RequestError, match=r"9 cannot be made .* the nearest is 8 or 12"):
        planner.best(9)
    with pytest.raises(RequestError, match=r"the nearest is 12$"):
        planner.best(1000)
    with pytest.raises(RequestError, match=r"the nearest is 12000000$"):
        BatchPlanner([instance(1, 4_000_000, 1.0)], 3).best(10**9)
    with pytest.raises(RequestError, match="no point was measured on 1 core or fewer"):
        BatchPlanner([instance(2, 4, 1.0)], 1).best(4)


def fastest_by_cores(instances: list[Instance], cores: int, upto: int, slowdown: float):
    """The latency of the best plan of each batch size up to `upto`, core by core."""
    alone = np.full((cores + 1, upto + 1), np.inf)
    alone[0, 0] = 0
    for busy in range(1, cores + 1):
        for one in instances:
            if one.cores <= busy:
                before = alone[busy - one.cores, : upto + 1 - one.batch_size]
                latency = np.maximum(before, one.latency_ms * np.exp(-slowdown * one.cores))
                served = alone[busy, one.batch_size :]
                np.minimum(served, latency, out=served)
    return (alone * np.exp(slowdown * np.arange(cores + 1))[:, None])[1:].min(axis=0)


@pytest.mark.parametrize(("cores", "slowdown"), [(8, 0.0), (16, 0.0), (16, 0.02)])
def test_a_whole_page_is_planned_exactly_and_at_once(cores: int, slowdown: float) -> None:
    """11 batch sizes, every thread count up to 16: as another dynamic program has it."""
    rng = np.random.default_rng(16)
    instances = [
        instance(threads, 2**power, (3 + 5 * 2**power / threads**0.9) * rng.lognormal(0, 0.05))
        for threads in range(1, 17)
        for power in range(11)
    ]
    expected = fastest_by_cores(instances, cores, 1024, slowdown)
    took = []
    for _ in range(3):
        start = time.process_time()
        planner = BatchPlanner(instances, cores, slowdown)
        found = [planner.best(size).predicted_ms for size in (1, 2, 7, 64, 100, 512, 1000, 1024)]
        took.append(time.process_time() - start)
    assert found == pytest.approx(expected[[1, 2, 7, 64, 100, 512, 1000, 1024]])
    known = [size for size in range(1, 1025) if planner.reachable(size)]
    assert known == np.flatnonzero(np.isfinite(expected)).tolist()
    assert [planner.best(size).predicted_ms for size in known] == pytest.approx(expected[known])
    assert min(took) < 1


def test_a_large_machine_is_planned_at_once() -> None:
    """128 cores, 13 batch sizes, batch 4096: seconds would be felt."""
    instances = [
        instance(t, 2**k, 3 + 2**k / t + 0.01 * t) for t in range(1, 129) for k in range(13)
    ]
    start = time.process_time()
    assert BatchPlanner(instances, 128).best(4096).batch_size == 4096
    assert time.process_time() - start < 20
