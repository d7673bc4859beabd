"""The figure of each point's share of the machine's peak."""

import pytest
import torch

from scalebench_lib.analysis.page import overviews, write_page
from scalebench_lib.measure import peak
from scalebench_lib.results import Results
from tests.factories import save_sweep, small_records

PEAKS = {1: {"fp32": 100.0}, 2: {"fp32": 190.0}}


def with_peaks():
    """A sweep that knows the machine's own peak."""
    return [record.model_copy(update={"peak_gflops": PEAKS}) for record in small_records()]


def test_each_point_knows_its_share_of_the_peak() -> None:
    """Its GFLOP/s over those of a matrix product on as many threads."""
    table = Results(with_peaks()).table
    share = table["gflops"] / table["threads"].map({1: 100.0, 2: 190.0})
    assert table["peak_fraction"].to_numpy(float) == pytest.approx(share.to_numpy(float))


def test_the_peak_is_the_best_of_several_large_products(monkeypatch) -> None:
    """Which of them is fastest differs from CPU to CPU; a type that the CPU lacks has none."""
    asked: list[tuple[int, int, int]] = []

    def gflops(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
        asked.append(shape)
        return {1: 90.0, 2: 120.0}.get(len(asked), 100.0)

    monkeypatch.setattr(peak, "_gflops", gflops)
    assert peak.peak_gflops("fp32") == {"fp32": 120.0}
    assert len(set(asked)) >= 3
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert peak.peak_gflops("int8") == {}


def test_a_product_s_speed_is_that_of_its_arithmetic() -> None:
    """A positive number of GFLOP/s, after one product to warm up."""
    assert peak._gflops((64, 64, 64), torch.float32) > 0


def test_low_precision_is_held_against_its_own_peak() -> None:
    """Half of the fp32 peak may be a quarter of bf16's."""
    peaks = {threads: {**known, "bf16": 2 * known["fp32"]} for threads, known in PEAKS.items()}
    halved = [
        record.model_copy(update={"peak_gflops": peaks, "engine": {"precision": "bf16"}})
        for record in small_records()
    ]
    share, of_fp32 = (Results(some).table["peak_fraction"] for some in (halved, with_peaks()))
    assert share.to_numpy(float) == pytest.approx(of_fp32.to_numpy(float) / 2)


def test_without_a_peak_there_is_no_figure() -> None:
    """And no share."""
    assert {spec.view for spec in overviews(Results(small_records()).table)} == {"eager"}


def test_the_page_shows_the_share_of_the_peak(tmp_path) -> None:
    """In a figure of its own, beside those of the published page."""
    page = write_page(save_sweep(tmp_path, with_peaks())).read_text()
    assert "How close to the limit" in page
    assert (tmp_path / "figures/bert-peak.png").exists()
