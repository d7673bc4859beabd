"""The results table."""

import statistics

import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.results import COLUMNS, load_results, results_table
from tests.madeup import machine, measured, missing, small_records

SMALL = machine(cores=2, smt=False)


def test_one_row_a_point_with_all_columns() -> None:
    """3 batches × 2 optimizations × 2 thread counts."""
    table = results_table(small_records())
    assert len(table) == 12
    assert tuple(table.columns) == COLUMNS
    assert not table["latency_ms"].isna().any()


def test_visits_of_a_point_are_pooled() -> None:
    """A later visit sharpens the point; it is not a row of its own."""
    first = measured(Config(batch_size=4), SMALL)
    second = first.model_copy(update={"visit": 2})
    table = results_table([first, second])
    assert list(table["visits"]) == [2, 2]
    assert list(table["samples"]) == [16, 16]


def test_latency_and_throughput_belong_together() -> None:
    """Throughput is batch size over latency, in inferences/s."""
    table = results_table([measured(Config(batch_size=4), SMALL)])
    samples = measured(Config(batch_size=4), SMALL).points[0].samples_ns
    row = table.iloc[0]
    assert row["latency_ms"] == pytest.approx(statistics.median(samples) / 1e6)
    assert row["throughput"] == pytest.approx(4 / row["latency_ms"] * 1e3)
    assert row["latency_ms_low"] <= row["latency_ms"] <= row["latency_ms_high"]


def test_points_of_three_samples_are_coarse_and_have_an_interval() -> None:
    """It comes from the spread of points like them."""
    table = results_table(small_records(batch_sizes=(1, 4, 512)))
    coarse = table[table["coarse"]]
    assert set(coarse["batch_size"]) == {512}
    width = (coarse["latency_ms_high"] - coarse["latency_ms_low"]) / coarse["latency_ms"]
    assert (width < 0.2).all()


def test_what_failed_is_a_row_with_its_reason() -> None:
    """Until the config succeeds."""
    config = Config(batch_size=4)
    failed = missing(config, SMALL, "failed", "no luck")
    table = results_table([failed])
    assert (table.loc[0, "status"], table.loc[0, "reason"]) == ("failed", "no luck")
    assert table.loc[0, "samples"] == 0
    retried = measured(config, SMALL).model_copy(update={"visit": 2})
    assert set(results_table([failed, retried])["status"]) == {"ok"}


def test_a_folder_without_records_says_what_to_do(tmp_path) -> None:
    """One line."""
    with pytest.raises(RequestError, match="holds no records: measure first"):
        load_results(tmp_path)
