"""The experiments' arithmetic, and the cheap ones for real."""

import pandas as pd
import pytest

from scalebench_lib import trust
from scalebench_lib.results import results_table
from tests.madeup import small_records


def test_ratios_are_those_of_medians_over_turns() -> None:
    """With the spread of single turns beside them."""
    table = pd.DataFrame({"threads": [1, 1, 1], "ours": [10, 11, 30], "loop": [10, 10, 10]})
    (row,) = trust.ratios(table, "ours", "loop", ["threads"]).to_dict("records")
    assert row == {"threads": 1, "ratio": 1.1, "lowest turn": 1.0, "highest turn": 3.0}


def test_a_sweep_does_not_differ_from_itself() -> None:
    """And every interval is compatible."""
    table = results_table(small_records())
    apart = trust.differences([table, table, table])
    assert len(apart) == 3 * len(table)
    assert (apart["headline"] == 0).all()
    assert apart["compatible"].all()


def test_a_sweep_that_is_twice_as_slow_differs_beyond_its_intervals() -> None:
    """A test that could not fail would show nothing."""
    table = results_table(small_records())
    columns = [name for name in table if name.startswith("latency_ms")]
    slow = table.assign(**{name: table[name] * 2 for name in columns})
    apart = trust.differences([table, slow])
    assert apart["headline"].to_numpy() == pytest.approx(0.693, abs=0.001)
    assert not apart["compatible"].any()


def test_the_harness_costs_little_beside_a_pass() -> None:
    """It is counted in microseconds."""
    assert 0 < trust.null_cost_us(repeats=3) < 1000


def test_a_new_folder_is_one_that_does_not_exist(tmp_path, monkeypatch) -> None:
    """Unless one is named."""
    monkeypatch.setattr(trust, "OUTPUTS", tmp_path)
    (tmp_path / "trust-1").mkdir()
    assert trust.new_folder("") == tmp_path / "trust-2"
    assert trust.new_folder("here").name == "here"
