"""The simulator against queueing theory, and against what no queue may do."""

from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.simulate import Batching, Log, ServiceTimes, simulate

ONE = Batching(max_batch=1, sizes=(1,))
FOUR = Batching(max_batch=4, max_wait_ms=10, sizes=(1, 2, 4))
EIGHT = Batching(max_batch=8, sizes=(1, 2, 4, 8))
SECOND = ServiceTimes({(1, 0): [1.0]})
EXPONENTIAL = ServiceTimes({(1, 0): (-np.log(1 - (np.arange(100_000) + 0.5) / 100_000)).tolist()})


def crommelin(load: float, servers: int) -> float:
    """The mean wait in an M/D/c queue, in service times (Crommelin, 1932)."""
    n, offered = np.arange(1, 500), load * servers
    late = poisson.sf(n * servers - 1, n * offered) - poisson.sf(n * servers, n * offered) / load
    return float(late.sum())


def test_the_formula_is_that_of_one_server() -> None:
    """Pollaczek and Khinchine's."""
    for load in (0.5, 0.8):
        assert crommelin(load, 1) == pytest.approx(load / 2 / (1 - load), rel=1e-6)


@pytest.mark.parametrize(
    ("requests", "within"),
    [(100_000, 0.06), pytest.param(1_000_000, 0.02, marks=pytest.mark.stress)],
)
@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("queue", ["M/M/1", "M/D/1", "M/D/2"])
def test_the_mean_wait_is_that_of_queueing_theory(queue, load, requests, within) -> None:
    servers = int(queue[-1])
    service = EXPONENTIAL if queue == "M/M/1" else SECOND
    expected = load / (1 - load) if queue == "M/M/1" else crommelin(load, servers)
    times = arrival_times("poisson", load * servers, requests)
    found = simulate(times, ONE, [service] * servers, seed=1).wait_s.mean()
    assert found == pytest.approx(expected, rel=within)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 0.02), min_size=1, max_size=60),
    st.integers(1, 3),
    st.floats(0, 0.5),
)
def test_every_request_is_served_once_in_order_and_no_instance_does_two_things(
    gaps: list[float], count: int, slowdown: float
) -> None:
    """Nor does a batch go early, or without need later than the policy says."""
    times = np.cumsum(gaps)
    service = ServiceTimes({(1, 0): [0.01], (2, 0): [0.012], (4, 0): [0.02]}, cores=2)
    found = simulate(times, FOUR, [service] * count, slowdown)
    assert found.count.sum() == len(times)
    assert (found.count >= 1).all()
    assert (np.diff(found.sent_s) >= 0).all()
    assert (found.wait_s >= 0).all()
    ready = FOUR.ready_s(times)[np.cumsum(found.count) - found.count]
    free = np.zeros(count)
    for due, (instance, size, sent, ended) in zip(ready, found.batches, strict=True):
        assert sent == pytest.approx(max(due, free.min()), abs=1e-9)
        assert free[instance] <= sent + 1e-9
        alone = service.by_shape[FOUR.shape([0] * size)][0]
        assert alone - 1e-9 <= ended - sent <= alone * exp(slowdown * 2 * (count - 1)) + 1e-9
        free[instance] = ended


def test_a_batch_goes_when_it_is_full_or_its_oldest_request_has_waited() -> None:
    times = np.array([0.0, 0.001, 0.002, 0.003, 0.1])
    found = simulate(times, FOUR, [ServiceTimes({shape: [0.001] for shape in FOUR.shapes})])
    assert found.count.tolist() == [4, 1]
    assert found.sent_s == pytest.approx([0.003, 0.11])


def test_instances_slow_each_other_down_only_while_both_compute() -> None:
    """Two passes of 1 s at half speed while they overlap: the first 0.5 s alone."""
    found = simulate(np.array([0.0, 0.5]), ONE, [SECOND, SECOND], slowdown=log(2))
    assert found.ended_s == pytest.approx([1.5, 2.0])


def test_times_of_sizes_between_those_measured_are_interpolated() -> None:
    """Smaller batches are padded to the smallest."""
    samples, batching = {(2, 0): np.array([2.0]), (8, 0): np.array([8.0])}, EIGHT
    times = ServiceTimes.of(samples, batching, cores=1)
    assert [times.by_shape[n, 0][0] for n in batching.sizes] == pytest.approx([2, 2, 4, 8])
    assert times.capacity(batching) == pytest.approx(1)


def test_a_batch_is_as_long_as_its_longest_request() -> None:
    """So few long requests make most of the large batches long; short ones alone stay short."""
    mixed = EIGHT.model_copy(update={"lengths": ((16, 70.0), (128, 30.0))})
    times = np.arange(1000) * 0.8
    alone = ServiceTimes({(n, tokens): [n * tokens / 1000] for n, tokens in mixed.shapes})
    found = simulate(times, mixed.model_copy(update={"max_batch": 1, "sizes": (1,)}), [alone] * 4)
    assert set(np.round(found.ended_s - found.sent_s, 3)) == {0.016, 0.128}
    assert np.mean(found.ended_s - found.sent_s) == pytest.approx(
        0.7 * 0.016 + 0.3 * 0.128, rel=0.1
    )
    together = simulate(np.zeros(8000), mixed, [alone])
    shapes = mixed.shapes_of(together)
    assert {tokens for _, tokens in shapes} == {16, 128}
    assert np.mean([tokens == 128 for _, tokens in shapes]) == pytest.approx(1 - 0.7**8, abs=0.02)
    took = [n * tokens / 1000 for n, tokens in shapes]
    assert together.ended_s - together.sent_s == pytest.approx(took)


def test_capacity_is_what_always_busy_instances_serve_of_a_mix_of_lengths() -> None:
    """Where long batches cost in proportion, single requests are served fastest."""
    mixed = EIGHT.model_copy(update={"lengths": ((16, 70.0), (128, 30.0))})
    fixed = ServiceTimes({(n, tokens): [0.1 + tokens / 1000] for n, tokens in mixed.shapes})
    found = simulate(np.zeros(80_000), mixed, [fixed])
    assert fixed.capacity(mixed) == pytest.approx(80_000 / found.ended_s[-1], rel=0.01)
    linear = ServiceTimes({(n, tokens): [n * tokens / 1000] for n, tokens in mixed.shapes})
    assert linear.capacity(mixed) == pytest.approx(1 / (0.7 * 0.016 + 0.3 * 0.128))


def test_a_length_that_no_batch_had_takes_as_long_as_the_next() -> None:
    """The longest one at the most."""
    mixed = Batching(max_batch=1, sizes=(1,), lengths=((8, 1.0), (16, 1.0), (99, 1.0)))
    times = ServiceTimes.of({(1, 16): np.array([2.0]), (1, 64): np.array([5.0])}, mixed, cores=1)
    assert [times.by_shape[1, n][0] for n in (8, 16, 99)] == pytest.approx([2, 2, 5])


@pytest.mark.parametrize(
    ("load", "least", "most"), [(0.5, 0.0, 0.0), (0.8, 0.0, 0.1), (1.2, 0.9, 1.0), (2.0, 1.0, 1.0)]
)
def test_overload_is_noticed_and_a_queue_that_holds_is_not_called_so(load, least, most) -> None:
    parts = np.array_split(arrival_times("poisson", load, 40_000), 20)
    seen = [
        simulate(part - part[0], ONE, [EXPONENTIAL], seed=n).overloaded
        for n, part in enumerate(parts)
    ]
    assert least <= np.mean(seen) <= most


def test_requests_that_were_not_answered_are_infinitely_late() -> None:
    """In the log of a load test: one batch died, the last request never began."""
    found = Log.of(np.array([0.0, 1.0, 2.0]), [(0, 1, 0.0, 0.5), (0, 1, 1.0, np.inf)])
    assert found.latency_s.tolist() == [0.5, np.inf, np.inf]
    assert np.isinf(found.wait_s).tolist() == [False, False, True]
    assert found.overloaded
    assert found.busy(0) == pytest.approx(0.25)
