"""The figure of each point's share of the machine's peak."""

import pytest
import torch

from scalebench_lib.analysis.figures import VIEWS, Choices
from scalebench_lib.analysis.findings import conclusions, recommendations
from scalebench_lib.analysis.page import overview_specs, write_page
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
    monkeypatch.setattr(peak, "has_native_matmul", lambda _: False)
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
    views = {spec.view for spec in overview_specs(Results(small_records()).table)}
    assert "eager" in views
    assert "peak" not in views


def test_the_page_shows_the_share_of_the_peak(tmp_path) -> None:
    """In a figure of its own, beside those of the published page."""
    page = write_page(save_sweep(tmp_path, with_peaks())).read_text()
    assert "Share of PyTorch matmul" in page
    assert (tmp_path / "figures/bert-peak.png").exists()


def decoding():
    """A sweep of a decoder, which reads 1 GB a pass of the 10 or 15 GB/s that there are."""
    known = {"bytes_to_read": 10**9, "read_gb_per_s": {1: 10.0, 2: 15.0}, "peak_gflops": PEAKS}
    records = small_records(model="gpt2", task="causal-lm", phase="decode")
    return [record.model_copy(update=known) for record in records]


def test_each_point_of_a_decoder_knows_its_share_of_the_read_bandwidth() -> None:
    table = Results(decoding()).table
    share = 1000 / table["latency_ms"] / table["threads"].map({1: 10.0, 2: 15.0})
    assert table["bandwidth_fraction"].to_numpy(float) == pytest.approx(share.to_numpy(float))
    assert Results(with_peaks()).table["bandwidth_fraction"].isna().all()


def test_a_decoder_is_held_against_memory_and_gives_tokens(tmp_path) -> None:
    """On the page, in its figures and in what they come to."""
    results = Results(decoding())
    chart = VIEWS["peak"].chart(results.table, Choices())
    assert chart.title.startswith("GPT-2, causal LM share of read bandwidth")
    assert "% of read bandwidth" in VIEWS["peak"].sentence(results, chart, Choices())
    throughput = VIEWS["sizes"].chart(results.table, Choices("throughput"))
    assert throughput.unit == "tokens/s"
    told = " ".join(conclusions(results))
    assert "tokens/s" in told
    assert "inferences/s" not in told
    page = write_page(save_sweep(tmp_path, decoding())).read_text()
    assert "% of read bandwidth" in page
    assert {"Throughput, tokens/s", "Read bandwidth, %"} <= set(recommendations(results)[0].best)
    assert "inferences/s" not in page


def test_memory_is_read_from_more_than_the_caches_hold(monkeypatch, tmp_path) -> None:
    """Two caches of two CPUs each; where the memory is not free, no rate is known."""
    for cpu in range(4):
        cache = tmp_path / f"cpu{cpu}/cache/index3"
        cache.mkdir(parents=True)
        (cache / "size").write_text("16384K\n")
        (cache / "shared_cpu_list").write_text("0-1\n" if cpu < 2 else "2-3\n")
    monkeypatch.setattr(peak, "_CPUS", tmp_path)
    assert peak.total_llc_bytes() == 2 * 16 << 20
    made = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape: made.append(shape) or ones(8, 8))
    monkeypatch.setattr(torch, "mv", lambda matrix, _: matrix)
    assert peak.read_gb_per_s() > 0
    assert 4 * made[0][0] * made[0][1] == 256 << 20
    monkeypatch.setattr(peak, "total_llc_bytes", lambda: 1 << 50)
    assert peak.read_gb_per_s() is None
