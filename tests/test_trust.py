"""The experiments' arithmetic, and the cheap ones for real."""

import pytest

from scalebench_lib.results import results_table
from scalebench_lib.trust import bench, cost, in_turn, repeat
from tests.madeup import small_records


def test_a_ratio_has_the_interval_of_both_its_sides() -> None:
    """Wider than either of them."""
    found = in_turn._compared([10.0] * 20 + [11.0] * 20, [5.0] * 40)
    assert found["ratio"] == pytest.approx(2.1)
    assert found["low"] < 2.1 < found["high"]


@pytest.mark.slow
def test_two_sides_of_a_comparison_are_visits_of_the_same(warm, tmp_path) -> None:
    """Measured by real kernels in turns; every ratio is a number with its interval."""
    here = bench.Bench(tmp_path, warm)
    sides = {"one": (here, (1,)), "other": (here, (1,))}
    table = in_turn._visits_in_turns(sides, [1], 0.2, model="bert-tiny")
    (row,) = table.to_dict("records")
    assert (row["batch_size"], row["threads"]) == (1, 1)
    assert 0 < row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.slow
def test_the_timing_loop_is_held_against_a_bare_one_and_torchs_own() -> None:
    """In one process, at each number of threads; every ratio is a number with its interval."""
    found = in_turn.against_bare_loop([1], 0.4, model="bert-tiny")
    for table in (found["bare"], found["timer"]):
        assert table["threads"].tolist() == list(bench.two_counts())
        assert (table["low"] <= table["ratio"]).all()
        assert (table["ratio"] <= table["high"]).all()


def test_a_sweep_does_not_differ_from_itself() -> None:
    """And every interval is compatible."""
    table = results_table(small_records())
    apart = repeat.differences([table, table, table])
    assert len(apart) == 3 * len(table)
    assert (apart["headline"] == 0).all()
    assert apart["compatible"].all()


def test_a_sweep_that_is_twice_as_slow_differs_beyond_its_intervals() -> None:
    """A test that could not fail would show nothing."""
    table = results_table(small_records())
    columns = [name for name in table if name.startswith("latency_ms")]
    slow = table.assign(**{name: table[name] * 2 for name in columns})
    apart = repeat.differences([table, slow])
    assert apart["headline"].to_numpy() == pytest.approx(0.693, abs=0.001)
    assert not apart["compatible"].any()


def test_the_harness_costs_little_beside_a_pass() -> None:
    """It is counted in microseconds."""
    assert 0 < cost.null_costs_us(repeats=3).min() < 1000


def test_a_new_folder_is_one_that_does_not_exist(tmp_path, monkeypatch) -> None:
    """Unless one is named."""
    monkeypatch.setattr(bench, "OUTPUTS", tmp_path)
    (tmp_path / "trust-1").mkdir()
    assert bench.new_folder("") == tmp_path / "trust-2"
    assert bench.new_folder("here").name == "here"
