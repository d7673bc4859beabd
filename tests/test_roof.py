"""The figure of each point's share of the machine's peak."""

import pytest

from scalebench_lib.analysis.page import write_page
from scalebench_lib.analysis.plates import roofs
from scalebench_lib.analysis.selection import as_raw
from scalebench_lib.results import results_table
from tests.madeup import save_sweep, small_records

PEAKS = {1: {"fp32": 100.0}, 2: {"fp32": 190.0}}


def with_peaks():
    """A sweep that knows the machine's own peak."""
    return [record.model_copy(update={"peak_gflops": PEAKS}) for record in small_records()]


def test_each_point_knows_its_share_of_the_peak() -> None:
    """Its GFLOP/s over those of a matrix product on as many threads."""
    table = results_table(with_peaks())
    share = table["gflops"] / table["threads"].map({1: 100.0, 2: 190.0})
    assert table["peak_fraction"].to_numpy(float) == pytest.approx(share.to_numpy(float))


def test_without_a_peak_there_is_no_figure() -> None:
    """And no share."""
    assert list(roofs(results_table(small_records()), "here")) == []


def test_the_page_shows_the_share_of_the_peak(tmp_path) -> None:
    """In a figure of its own, beside those of the published page."""
    page = write_page(save_sweep(tmp_path, with_peaks())).read_text()
    assert "How close to the limit" in page
    assert (tmp_path / "figures/bert-peak.png").exists()


def test_raw_medians_take_the_place_of_headlines() -> None:
    """With the throughput that belongs to them, and no interval."""
    table = results_table(small_records())
    raw = as_raw(table.assign(latency_ms_raw=table["latency_ms"] * 2))
    assert (raw["latency_ms"] == table["latency_ms"] * 2).all()
    assert raw["throughput"].to_numpy(float) == pytest.approx(
        (table["throughput"] / 2).to_numpy(float)
    )
    assert raw["latency_ms_low"].isna().all()
