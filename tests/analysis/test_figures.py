"""The figures say what the table holds: charts are compared with it, not pictures."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.analysis.figures import (
    VIEWS,
    Choices,
    by_batch_size,
    by_cores,
    by_threads,
    distribution,
    heat_map,
    options,
    peak_share,
    samples_table,
    scaling,
    speedup_over_eager,
    views_of,
)
from scalebench_lib.analysis.findings import conclusions
from scalebench_lib.charts import Chart, Line
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from scalebench_lib.results import Results
from tests import factories

SCRIPT = Choices(optimization="script")
batch = partial(Choices, "latency")


def table_of(records: list[Record]) -> pd.DataFrame:
    """The table that figures are made from."""
    return Results(records).table


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    """The table of a machine with 16 cores, 32 threads and every batch size."""
    return table_of(factories.full_records())


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    """The table of a machine with 2 cores and no SMT."""
    return table_of(factories.small_records())


def lines(chart: Chart) -> dict[str, Line]:
    """The chart's lines by label."""
    return {line.label: line for line in chart.lines}


def notes(chart: Chart) -> str:
    """What is written under the picture."""
    return "\n".join(chart.caption)


def test_a_batch_has_a_line_for_each_optimization_and_smt_over_cores(full: pd.DataFrame) -> None:
    """SMT-on lines begin at half a core, since two threads share one."""
    chart = by_cores(full, batch(8))
    drawn = lines(chart)
    assert set(drawn) == {
        f"{name}, SMT {smt}" for name in ("eager", "TorchScript") for smt in ("off", "on")
    }
    assert drawn["eager, SMT off"].marks.x.tolist() == list(range(1, 17))
    assert drawn["eager, SMT on"].marks.x[:3].tolist() == [0.5, 1.0, 1.5]
    assert drawn["eager, SMT on"].dashed
    assert chart.x.label == "cores"


def test_an_optimization_has_a_line_for_each_batch_over_threads(full: pd.DataFrame) -> None:
    """All eleven batch sizes, with threads and not cores on the x axis."""
    chart = by_threads(full, Choices(optimization="script", smt=True))
    assert set(lines(chart)) == {f"batch {2**k}" for k in range(11)}
    assert lines(chart)["batch 1"].marks.x.tolist() == list(range(1, 33))
    assert chart.x.label == "threads"


def test_the_drawn_latency_is_that_of_the_table(small: pd.DataFrame) -> None:
    """Milliseconds, straight from the table."""
    rows = small[(small["batch_size"] == 4) & (small["optimization"] == "script")]
    assert lines(by_cores(small, batch(4)))["TorchScript"].marks.y.tolist() == (
        rows["latency_ms"].tolist()
    )


def test_throughput_is_batch_over_latency_with_its_interval_turned_round(
    small: pd.DataFrame,
) -> None:
    """The high end of the latency is the low end of the throughput."""
    rows = small[(small["batch_size"] == 4) & (small["optimization"] == "none")]
    marks = lines(by_cores(small, Choices("throughput", batch_size=4)))["eager"].marks
    assert marks.y == pytest.approx(4000 / rows["latency_ms"].to_numpy())
    assert marks.low == pytest.approx(4000 / rows["latency_ms_high"].to_numpy())
    assert marks.high == pytest.approx(4000 / rows["latency_ms_low"].to_numpy())


def test_a_point_has_its_name_and_what_is_to_be_known_of_it(failed: pd.DataFrame) -> None:
    """Samples and error; how a ratio was got; outliers and coarse only where there are some."""
    marks = lines(by_cores(failed, batch(1)))["TorchScript"].marks
    assert marks.names == ["batch 1, TorchScript, 1 thread", "batch 1, TorchScript, 2 threads"]
    assert marks.details[0] == "8 samples, error −40 dB"
    ratios = lines(speedup_over_eager(failed, Choices()))["TorchScript, error −40 dB"].marks
    assert ratios.details == ["paired, 8 samples, error −40 dB"]


def test_a_wide_range_is_logarithmic_by_itself(full: pd.DataFrame, small: pd.DataFrame) -> None:
    """Eleven batch sizes span three decades; one batch on two cores does not."""
    wide, narrow = by_threads(full, SCRIPT), by_cores(small, batch(4))
    assert (wide.x.log, wide.y.log) == (False, True)
    assert (narrow.x.log, narrow.y.log) == (False, False)
    assert narrow.y.low == 0


def test_coarse_points_are_hollow_and_explained(full: pd.DataFrame, small: pd.DataFrame) -> None:
    """Batch 1024 took too long for six samples: hollow marks, and a note that says so."""
    chart = by_cores(full, batch(1024))
    hollow = sum(line.coarse.sum() for line in chart.lines)
    assert hollow == full.query("batch_size == 1024")["coarse"].sum() > 0
    assert "Hollow marks: coarse" in notes(chart)
    fine = by_cores(small, batch(4))
    assert not any(line.coarse.any() for line in fine.lines)
    assert "Hollow" not in notes(fine)


def test_a_failed_config_is_named_under_the_picture() -> None:
    """With its reason, word for word; its label says so, without a line."""
    on = factories.machine(cores=2, smt=False)
    none, script = factories.configs(on, [8])
    gone = factories.missing(script, on, "skipped", "needs $30$ GiB of $24$")
    chart = by_cores(table_of([factories.measured(none, on), gone]), batch(8))
    assert "batch 8, TorchScript: skipped, needs $30$ GiB of $24$" in notes(chart)
    assert set(lines(chart)) == {"eager", "TorchScript: not measured"}
    assert lines(chart)["TorchScript: not measured"].marks.x.size == 0


def test_of_many_that_failed_some_are_named_and_all_counted() -> None:
    """A caption must not be longer than its picture."""
    on = factories.machine(cores=2, smt=False)
    none, *others = factories.configs(on, range(1, 6))
    gone = [factories.missing(config, on, "failed", "too large") for config in others]
    chart = by_batch_size(table_of([factories.measured(none, on), *gone]), Choices())
    assert chart.caption[-1] == "… and 4 more that failed or were skipped."
    assert len([line for line in chart.caption if "too large" in line]) == 5


def test_where_all_failed_the_error_says_why() -> None:
    """No empty picture: the caller is told the reason."""
    on = factories.machine(cores=2, smt=False)
    gone = [factories.missing(c, on, "failed", "out of memory") for c in factories.configs(on, [8])]
    with pytest.raises(RequestError, match=r"batch 8, eager: failed, out of memory"):
        by_cores(table_of(gone), batch(8))


def test_an_unknown_batch_size_names_those_there_are(small: pd.DataFrame) -> None:
    """The message can be acted on."""
    with pytest.raises(RequestError, match=r"batch_size 7: there is 1, 4, 16"):
        by_cores(small, batch(7))


def test_a_mixed_table_is_refused() -> None:
    """Points of 16 and of 128 tokens never share a line."""
    mixed = table_of([*factories.small_records(), *factories.small_records(seq_len=128)])
    with pytest.raises(ValueError, match="seq_len"):
        by_cores(mixed, batch(4))


def test_unpinned_results_say_so() -> None:
    """Where threads could move between CPUs, every picture says it."""
    on = factories.machine(cores=2, smt=False)
    records = [
        factories.measured(config, on, pinned=False) for config in factories.configs(on, [1])
    ]
    assert "NOT PINNED" in notes(by_cores(table_of(records), batch(1)))


def test_the_caption_says_where_and_how_long(small: pd.DataFrame) -> None:
    """The machine and the sequence length stand under every picture."""
    assert "madeup-9000-2c · 16 tokens" in notes(by_cores(small, batch(1)))
    told = replace(by_cores(small, batch(1)), source="A server, 2025-03-01")
    assert "A server, 2025-03-01 · 16 tokens" in notes(told)


def test_optimizations_keep_their_colour_in_every_figure(small: pd.DataFrame) -> None:
    """A reader who learned that script is orange finds it orange again."""
    alone = small[small["optimization"] == "script"]
    charts = [by_cores(table, batch(1)) for table in (small, alone)]
    assert len({lines(chart)["TorchScript"].colour for chart in charts}) == 1


@pytest.fixture(scope="module")
def failed() -> pd.DataFrame:
    """Of batch 1 and 8, script failed at 8; errors are known."""
    on = factories.machine(cores=2, smt=False)
    *good, bad = factories.configs(on, [1, 8])
    records = [factories.measured(c, on) for c in good]
    table = table_of([*records, factories.missing(bad, on, "failed", "SQNR 14 dB")])
    ok = np.where(table["status"] == "ok", 1.0, np.nan)
    return table.assign(sqnr_db=40 * ok, peak_fraction=0.5 * ok)


@pytest.mark.parametrize("figure", [by_batch_size, speedup_over_eager, peak_share])
def test_what_failed_is_a_cross_at_its_batch_size_and_never_a_point(
    failed: pd.DataFrame, figure
) -> None:
    """Throughput, speed-up and share of the peak by batch size."""
    chart = figure(failed, Choices())
    (script,) = (line for line in chart.lines if line.label.startswith("TorchScript"))
    assert script.missing_at == [8.0]
    assert script.marks.x.tolist() == [1.0]
    assert "SQNR 14 dB" in notes(chart)
    assert "Crosses: failed or skipped." in notes(chart)


def test_the_error_stands_beside_the_speedup(failed: pd.DataFrame) -> None:
    """In the label of the line."""
    assert set(lines(speedup_over_eager(failed, Choices()))) == {
        "eager",
        "TorchScript, error −40 dB",
    }
    assert "error: the worst of the batch sizes shown" in notes(
        speedup_over_eager(failed, Choices())
    )
    assert "error:" not in notes(by_batch_size(failed, Choices()))


def test_the_speedup_over_one_thread_has_the_ideal_beside_it(small: pd.DataFrame) -> None:
    """Twice the threads, twice the speed."""
    ideal = lines(scaling(small, SCRIPT))["ideal"]
    assert ideal.reference
    assert ideal.marks.y.tolist() == ideal.marks.x.tolist() == [1, 2]


def test_without_one_thread_there_is_nothing_to_be_faster_than() -> None:
    """The error says what to measure."""
    records = [
        record.model_copy(update={"points": record.points[1:]})
        for record in factories.small_records([4])
    ]
    with pytest.raises(RequestError, match="one thread"):
        scaling(table_of(records), SCRIPT)


def test_a_caption_says_how_ratios_were_got(small: pd.DataFrame) -> None:
    """Paired where the points took turns; else what else."""
    assert "ratios: paired" in notes(speedup_over_eager(small, Choices()))
    apart = [
        record.model_copy(update={"block": f"{place:08x}"})
        for place, record in enumerate(factories.small_records([1]))
    ]
    chart = speedup_over_eager(table_of(apart), Choices())
    assert "ratios: not measured together" in notes(chart)
    assert "ratios:" not in notes(by_batch_size(small, Choices()))


def test_a_heat_map_has_a_cell_for_each_point(failed: pd.DataFrame) -> None:
    """And crosses over the batch that failed; the lowest latency is the brightest."""
    cells = heat_map(failed, SCRIPT).cells
    wanted = failed.query("optimization == 'script' and status == 'ok'")["latency_ms"]
    assert cells.marks.y.tolist() == wanted.tolist()
    assert (cells.columns, cells.rows, cells.missing) == ([1, 2], [1, 8], [8])
    assert cells.shades.tolist() == [0, 1]


def spiked(factor: int) -> tuple[pd.DataFrame, tuple[int, ...]]:
    """The passes of a batch of 4, with a last one at 1 thread that took `factor` times as long."""
    records = factories.small_records([4])
    point = records[0].points[0]
    slow = (*point.samples_ns[:-1], factor * point.samples_ns[-1])
    points = (factories.with_turns(point, factories.turns(slow)), *records[0].points[1:])
    records[0] = records[0].model_copy(update={"points": points})
    return samples_table(Results(records)), slow


def test_an_outlier_does_not_press_all_other_passes_flat() -> None:
    """The axis is logarithmic then, and holds it."""
    table, slow = spiked(100)
    chart = distribution(table, batch(4))
    assert chart.y.log
    assert chart.y.high > slow[-1] / 1e6
    assert not distribution(spiked(1)[0], batch(4)).y.log


def test_outliers_are_marked_in_their_distribution() -> None:
    """One spike among quiet passes, and it alone; passes stand in the order made."""
    table, slow = spiked(3)
    assert table.loc[table["outlier"], "latency_ms"].tolist() == [slow[-1] / 1e6]
    one, two = distribution(table, batch(4)).dots
    assert (one.label, two.label) == ("1 thread", "2 threads")
    assert one.passes.tolist() == [ns / 1e6 for ns in slow]
    assert np.flatnonzero(one.outlier).tolist() == [len(slow) - 1]
    assert not two.outlier.any()


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_has_a_sentence_and_an_alternative_text(name: str) -> None:
    """Computed from what it shows."""
    records = [
        record.model_copy(update={"peak_gflops": {1: {"fp32": 100.0}, 2: {"fp32": 200.0}}})
        for record in factories.small_records()
    ]
    results, view = Results(records), VIEWS[name]
    assert view.needs(results.table)
    rows = samples_table(results) if view.of_samples else results.table
    chart = view.chart(rows, SCRIPT)
    assert any(digit.isdigit() for digit in view.sentence(results, chart, SCRIPT))
    assert chart.alt.startswith(f"{chart.title}. ")
    assert "TorchScript" in chart.alt


def test_what_can_be_chosen_is_what_was_measured(full: pd.DataFrame) -> None:
    """Names to show, and the values that figures take."""
    offered = options(full)
    assert offered["smt"] == [("off", False), ("on", True)]
    assert offered["threads"][:2] == [("each at its best thread count", None), ("1", 1)]
    assert [value for _, value in offered["batch_size"]] == [2**k for k in range(11)]


def stacked(view: str, records: list[Record], batch_size: int = 4) -> Chart:
    """A chart of bars."""
    return VIEWS[view].chart(Results(records).table, Choices(batch_size=batch_size))


def test_the_time_of_a_pass_is_told_by_kind_of_operator() -> None:
    """Bars of 100 %, the fastest first; kinds that take nothing are left out."""
    chart = stacked("time", factories.small_records())
    assert [bar.partition(":")[0] for bar in chart.bars] == ["TorchScript", "eager"]
    labels = [part.label for part in chart.parts]
    assert labels[:2] == ["matrix products", "attention"]
    assert "fused kernels" not in labels
    for bar in (0, 1):
        assert sum(part.marks.y[part.row == bar].sum() for part in chart.parts) == pytest.approx(
            100
        )
    last = chart.parts[-1].marks
    assert last.x + last.y == pytest.approx([100, 100])
    assert chart.axes["x"].high == pytest.approx(100)


def test_a_sentence_tells_what_int8_spends_on_quantizing() -> None:
    """And where the fastest spends most."""
    none, script = factories.small_records([1])
    quantizing = {"MatMul": 60, "DynamicQuantizeLinear": 21}
    update = {"wall_ns": 100, "self_ns": quantizing}
    none = none.model_copy(update={"operators": none.operators.model_copy(update=update)})
    assert "eager spends 21 % on quantizing, converting." in " ".join(
        conclusions(Results([none, script]))
    )
    told = script.operators.shares["matrix products"]
    assert f"TorchScript spends {100 * told:.0f} % on matrix products, " in " ".join(
        conclusions(Results([none, script]))
    )


def test_a_profiler_that_slowed_the_passes_down_is_told() -> None:
    """Its shares may not be those of the passes that were timed."""
    none, script = factories.small_records([1])
    slow = none.operators.model_copy(update={"wall_ns": 10**10})
    chart = stacked("time", [none.model_copy(update={"operators": slow}), script], 1)
    assert re.fullmatch(r"eager \(\d+\.\d× under the profiler\): [\d.]+ ms", chart.bars[1])
    records = [none, script.model_copy(update={"operators": slow})]
    assert any("batch 1, eager spends" in one for one in conclusions(Results(records)))


def test_a_config_without_a_profile_is_named_under_the_bars() -> None:
    none, script = factories.small_records([1])
    chart = stacked("time", [none, script.model_copy(update={"operators": None})], 1)
    assert chart.missing == ["TorchScript: where the time goes not known."]


def test_a_cold_start_with_an_export_is_a_bar_of_its_own() -> None:
    none, script = factories.small_records([1])
    anew = script.setup.model_copy(update={"export_cache": "empty", "ready_s": 20.0})
    again = script.model_copy(update={"trial": 2, "setup": anew})
    chart = stacked("start", [none, script, again], 1)
    names = [bar.partition(": ")[0] for bar in chart.bars]
    assert names == ["eager", "TorchScript", "TorchScript, with exporting"]
    (optimizing,) = (part for part in chart.parts if part.label == "optimizing it")
    assert (optimizing.row.tolist(), optimizing.marks.y.tolist()) == ([1, 2], [4.0, 20.0])
    assert optimizing.marks.x.tolist() == [1.5, 1.5], "after the building"


def test_memory_is_what_was_held_and_what_more_it_took() -> None:
    chart = stacked("memory", factories.small_records([4]))
    held, more = chart.parts
    assert held.marks.y.tolist() == pytest.approx([0.74, 0.74])
    assert (held.marks.y + more.marks.y).tolist() == pytest.approx([0.948, 0.948])


def test_what_no_record_tells_is_not_offered() -> None:
    """Older ones have neither profile nor cold start."""
    nothing = {"operators": None, "setup": None, "peak_memory_bytes": None}
    records = [one.model_copy(update=nothing) for one in factories.small_records()]
    assert not {"time", "start", "memory"} & views_of(Results(records).table).keys()
