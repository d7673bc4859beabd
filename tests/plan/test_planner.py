"""The planner: exact, over profiled points only."""

import time
from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalebench_lib.errors import RequestError
from scalebench_lib.plan.planner import Plan, Planner
from scalebench_lib.plan.profile import InstanceOption

PUBLISHED = Path(__file__).parents[2] / "../shared/published/bert_large-batches_latency.csv"
PUBLISHED_BEST = (
    20.47, 23.01, 27.61, 33.37, 48.68, 76.74, 114.06, 201.02, 343.93, 621.07, 1179.57,
)  # fmt: skip


def option(threads: int, batch_size: int, latency_ms: float, smt: bool = False) -> InstanceOption:
    """A point on as many cores as it has threads, or half of that with SMT on."""
    return InstanceOption(threads, batch_size, latency_ms, threads / 2 if smt else threads, smt=smt)


def every_plan(options: list[InstanceOption], cores: int, exponent: float) -> list[Plan]:
    """All multisets of instances that fit, as one would try by hand."""
    counts = range(1, 2 * cores + 1)
    found = (c for n in counts for c in combinations_with_replacement(options, n))
    return [Plan.of(one, exponent) for one in found if sum(o.cores for o in one) <= cores]


OPTIONS = st.lists(
    st.builds(
        option,
        st.integers(1, 4),
        st.sampled_from([1, 2, 3, 5]),
        st.integers(1, 30).map(float),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(OPTIONS, st.integers(1, 3), st.integers(1, 12), st.sampled_from([0.0, 0.2]))
def test_it_finds_what_trying_everything_finds(options, cores, batch_size, exponent) -> None:
    """The same latency on as few cores; and what cannot be reached really cannot."""
    planner = Planner(options, cores, exponent)
    plans = [p for p in every_plan(options, cores, exponent) if p.batch_size == batch_size]
    assert planner.reachable(batch_size) == bool(plans)
    if plans:
        found = planner.best(batch_size)
        best = min(plan.predicted_ms for plan in plans)
        assert found.batch_size == batch_size
        assert found.predicted_ms == pytest.approx(best)
        equal = [plan.cores for plan in plans if plan.predicted_ms <= best * (1 + 1e-9)]
        assert found.cores == min(equal)


@settings(deadline=None, max_examples=40)
@given(OPTIONS, st.integers(1, 3), st.floats(1, 60), st.sampled_from([0.0, 0.2]))
def test_no_plan_within_the_limit_serves_more(options, cores, slo_ms, exponent) -> None:
    """Of all batch sizes; and where there is none, it says so."""
    plans = [p for p in every_plan(options, cores, exponent) if p.predicted_ms <= slo_ms]
    planner = Planner(options, cores, exponent)
    if not plans:
        with pytest.raises(RequestError):
            planner.under(slo_ms)
        return
    found = planner.under(slo_ms)
    assert found.predicted_ms <= slo_ms
    assert found.throughput == pytest.approx(max(plan.throughput for plan in plans))


def test_the_frontier_rises_in_both() -> None:
    """A plan that is beaten in both is not on it."""
    options = [option(t, b, 2 + b / t + 0.1 * t) for t in (1, 2, 4) for b in (1, 2, 4, 8)]
    plans = Planner(options, 4).frontier()
    assert len(plans) > 2
    for one, other in pairwise(plans):
        assert one.predicted_ms < other.predicted_ms
        assert one.throughput < other.throughput


def test_cores_that_gain_nothing_stay_idle() -> None:
    """Ties go to fewer cores, then to fewer instances."""
    options = [option(1, 1, 10.0), option(2, 1, 10.0), option(1, 2, 10.0), option(3, 1, 9.0)]
    assert Planner(options, 2).best(1).cores == 1
    assert len(Planner(options, 4).best(2).instances) == 1
    assert Planner(options, 16).best(1).cores == 3


def test_with_smt_on_threads_take_half_a_core_each() -> None:
    """So two cores hold four threads."""
    plan = Planner([option(2, 4, 10.0, smt=True)], 2).best(8)
    assert (len(plan.instances), plan.cores) == (2, 2)


def test_what_cannot_be_reached_is_answered_with_the_nearest() -> None:
    """Below and above."""
    planner = Planner([option(1, 4, 1.0)], 3)
    with pytest.raises(RequestError, match=r"9 cannot be made .* the nearest is 8 or 12"):
        planner.best(9)
    with pytest.raises(RequestError, match=r"the nearest is 12$"):
        planner.best(1000)
    with pytest.raises(RequestError, match=r"the nearest is 12000000$"):
        Planner([option(1, 4_000_000, 1.0)], 3).best(10**9)
    with pytest.raises(RequestError, match="no point was measured on 1 core or fewer"):
        Planner([option(2, 4, 1.0)], 1).best(4)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published data is not here")
def test_the_published_optimum_of_bert_is_found() -> None:
    """All eleven batch sizes, faster than anyone would notice."""
    rows = pd.read_csv(PUBLISHED)
    rows = rows[(rows["benchmark"] == "bert_manual_script") & (rows["topology"] == "sequential")]
    columns = ("intraop_threads", "batch_size", "latency(avg)")
    options = [option(*row) for row in zip(*(rows[c] for c in columns), strict=True)]
    took = []
    for _ in range(5):
        start = time.process_time()
        planner = Planner(options, 16)
        plans = [planner.best(2**k) for k in range(11)]
        took.append(time.process_time() - start)
    for plan, best in zip(plans, PUBLISHED_BEST, strict=True):
        assert plan.predicted_ms <= best + 0.01
    assert plans[0].cores == 13
    assert min(took) < 1


def test_a_large_machine_is_planned_at_once() -> None:
    """128 cores, 13 batch sizes, batch 4096: seconds would be felt."""
    options = [option(t, 2**k, 3 + 2**k / t + 0.01 * t) for t in range(1, 129) for k in range(13)]
    start = time.process_time()
    assert Planner(options, 128).best(4096).batch_size == 4096
    assert time.process_time() - start < 20
