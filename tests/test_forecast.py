"""How long it takes, and whether it fits."""

import pytest

from scalebench_lib.config import Config, Sweep, Visit
from scalebench_lib.record import Setup
from scalebench_lib.sweep.forecast import (
    OPTIMIZING_S,
    VISIT_OVERHEAD_S,
    Forecast,
    lacking_memory,
)
from tests.madeup import latency_ms, machine, measured

SMALL = machine(cores=2, smt=False)
GIB = 2**30


def visit(batch_size: int, **limits: float) -> Visit:
    """A visit of BERT on two threads."""
    return Visit(config=Config(batch_size=batch_size), threads=(1, 2), **limits)


def test_what_was_measured_tells_how_long_a_larger_batch_takes() -> None:
    """Twice the batch, about twice the time."""
    forecast = Forecast([measured(Config(batch_size=64), SMALL)])
    expected = latency_ms(Config(batch_size=128), 2) / 1e3
    assert forecast.pass_seconds(Config(batch_size=128), 2) == pytest.approx(expected, rel=0.1)


def test_before_anything_is_measured_there_is_a_guess() -> None:
    """It grows with the batch and falls with the threads."""
    forecast = Forecast([])
    assert 0 < forecast.pass_seconds(Config(batch_size=1), 1) < 10
    assert forecast.pass_seconds(Config(batch_size=8), 1) > forecast.pass_seconds(Config(), 1)
    assert forecast.pass_seconds(Config(), 2) < forecast.pass_seconds(Config(), 1)


def test_short_passes_take_their_time_limit_and_long_ones_their_minimum() -> None:
    """The minimum number of samples wins over a time limit."""
    forecast = Forecast([measured(Config(batch_size=64), SMALL)])
    short = forecast.visit_seconds(visit(1, max_seconds=5))
    assert short == pytest.approx(VISIT_OVERHEAD_S + 2 * 5, rel=0.05)
    long = forecast.visit_seconds(visit(1024, max_seconds=5))
    assert long > 2 * sum(latency_ms(Config(batch_size=1024), t) for t in (1, 2)) / 1e3


def test_compilers_take_longer_and_how_long_is_learned() -> None:
    """At first a guess; then what the latest visit took."""
    compiled = Config(optimization="compile")
    visits = [Visit(config=config, threads=(1,)) for config in (Config(), compiled)]
    guessed = Forecast([])
    plain, slow = map(guessed.visit_seconds, visits)
    assert slow - plain == pytest.approx(OPTIMIZING_S["compile"])
    setup = Setup(build_s=1, optimize_s=2, first_pass_s=30)
    guessed.learn(measured(compiled, SMALL).model_copy(update={"setup": setup}))
    assert guessed.visit_seconds(visits[1]) > 32


def test_the_first_pass_of_a_large_batch_says_nothing_about_a_small_one() -> None:
    """It is long because the batch is."""
    large = measured(Config(batch_size=1024), SMALL)
    setup = Setup(build_s=0.2, optimize_s=0, first_pass_s=30)
    told = Forecast([large.model_copy(update={"setup": setup})])
    assert told.visit_seconds(visit(1)) == Forecast([large]).visit_seconds(visit(1))


def test_a_sweep_takes_as_long_as_its_visits() -> None:
    """Added up."""
    visits = Sweep(batch_sizes=(1, 4)).visits(SMALL)
    forecast = Forecast([])
    once = sum(map(forecast.visit_seconds, visits))
    assert forecast.seconds(visits, rounds=1) == pytest.approx(once)
    assert forecast.seconds(visits, rounds=3) == pytest.approx(3 * once)


def test_configs_with_long_passes_are_visited_fewer_times() -> None:
    """One visit takes all the time that three were to share."""
    forecast = Forecast([measured(Config(batch_size=64), SMALL)])
    long = visit(1024, max_seconds=3)
    assert forecast.seconds([long], rounds=3) == pytest.approx(forecast.visit_seconds(long))


def test_a_batch_that_would_not_fit_is_named_before_it_is_run() -> None:
    """The made-up model takes 900 MB and 12 MB an item."""
    before = [measured(Config(batch_size=size), SMALL) for size in (1, 4, 16)]
    assert lacking_memory(visit(64), before, 2 * GIB) is None
    reason = lacking_memory(visit(256), before, 2 * GIB)
    assert reason == "would need about 3.7 GiB of the 2.0 GiB there are, judged by batch 4 and 16"


def test_one_batch_alone_says_nothing_about_another() -> None:
    """Nor do larger ones, or those of another optimization."""
    other = Config(batch_size=4, optimization="script")
    before = [measured(c, SMALL) for c in (Config(batch_size=1), other, Config(batch_size=512))]
    assert lacking_memory(visit(256), before, GIB) is None
