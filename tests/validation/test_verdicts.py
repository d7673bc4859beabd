"""Verdicts on experiments, from made-up turns of which the right answer is known."""

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.config import Config
from scalebench_lib.results import Results
from scalebench_lib.validation import verdicts
from scalebench_lib.validation.experiments import is_hogged
from tests import factories

ON = factories.machine(cores=2, smt=False)
CYCLES = 24


def results(factor: dict[str, float], noise: float = 0.003, hog: float = 1.0) -> Results:
    """Two optimizations on 1 and 2 threads; `factor` makes one of them slower, `hog` both, in
    hogged cycles, on 2 threads."""
    random, records = np.random.default_rng(3), []
    for name in ("none", "script"):
        record = factories.measured(Config(optimization=name), ON)
        points = []
        for point in record.points[:2]:
            times = 1e8 * factor.get(name, 1.0) * np.exp(noise * random.standard_normal(CYCLES))
            slow = [is_hogged(cycle) and point.threads == 2 for cycle in range(1, CYCLES + 1)]
            times = np.where(slow, hog, 1.0) * times
            points.append(factories.with_turns(point, factories.turns(times.astype(int).tolist())))
        records.append(record.model_copy(update={"points": tuple(points)}))
    return Results.of(records)


def test_the_same_thing_twice_holds() -> None:
    """All ratios are near 1, and their intervals hold it."""
    verdict = verdicts.judge("same", verdicts.between(results({}), results({})), 0.01, 0.04)
    assert verdict.holds
    assert str(verdict).startswith("same: holds. 0.")


def test_a_process_that_is_slower_does_not_hold() -> None:
    """And the verdict names the point."""
    table = verdicts.between(results({"script": 1.1}), results({}))
    verdict = verdicts.judge("same", table, 0.01, 0.04)
    assert not verdict.holds
    assert "at worst (bar 4%: script, batch 1, " in str(verdict)
    assert "does not hold" in str(verdict)


def test_intervals_that_leave_out_the_truth_do_not_hold() -> None:
    """Though all errors are small."""
    table = pd.DataFrame({"name": list("ab"), "error": [0.001, 0.001], "inside": [True, False]})
    assert not verdicts.judge("narrow", table, 0.01, 0.04).holds


def test_odd_and_even_cycles_of_a_steady_machine_agree() -> None:
    """Within a group; every pair counts once."""
    table = verdicts.odd_against_even(results({"script": 0.5}))
    assert len(table) == 6
    assert verdicts.judge("halves", table, 0.01, 0.04).holds


def test_a_hog_moves_the_mean_and_not_the_median() -> None:
    """Where it runs for a third of the cycles."""
    hogged = results({}, hog=2.0)
    table = verdicts.hogged_estimates(hogged).set_index("name")
    two = table.loc["none, batch 1, 2 threads"]
    assert two["mean"] == pytest.approx(1 / 3, rel=0.05)
    assert abs(two["median"]) < 0.01
    assert verdicts.judge("stay", verdicts.hogged_against_quiet(hogged), 0.02, 0.05).holds


def test_states_of_the_machine_are_seen_by_cycle() -> None:
    """Below 1 where it was slower."""
    seen = verdicts.states(results({}, hog=2.0))
    slow = seen[(seen["threads"] == 2) & seen["cycle"].map(is_hogged)]
    assert slow["speed"].median() == pytest.approx(0.5, rel=0.02)
    assert seen[seen["threads"] == 1]["speed"].median() == pytest.approx(1, rel=0.02)
