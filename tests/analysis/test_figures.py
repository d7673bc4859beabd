"""The figures say what the table holds, and stay readable with many lines and with few."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text

from scalebench_lib.analysis.draw import Picture, spread
from scalebench_lib.analysis.figures import (
    by_batch_size,
    distribution,
    heat_map,
    peak_share,
    per_batch,
    per_optimization,
    samples,
    samples_table,
    speedup_over_eager,
    speedup_over_one_thread,
)
from scalebench_lib.analysis.tables import Measured, MetricName
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from scalebench_lib.results import Results
from tests import factories


def table_of(records: list[Record]) -> pd.DataFrame:
    """The table that figures are drawn from."""
    return Measured.of(records).table


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    """The table of a machine with 16 cores, 32 threads and every batch size."""
    return table_of(factories.full_records())


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    """The table of a machine with 2 cores and no SMT."""
    return table_of(factories.small_records())


def lines(figure: Picture) -> dict[str, Line2D]:
    """The figure's lines by label."""
    drawn = figure.axes[0].get_lines()
    return {line.get_label(): line for line in drawn if not line.get_label().startswith("_")}


def texts(figure: Picture, gid: str) -> list[Text]:
    """The figure's texts with this gid, drawn so that their boxes are final."""
    figure.png()
    return list(figure.findobj(lambda artist: artist.get_gid() == gid))


def notes(figure: Picture) -> str:
    """What is written under the picture."""
    return texts(figure, "notes")[0].get_text()


def hollow_marks(figure: Picture) -> int:
    """How many points are drawn hollow."""
    drawn = figure.axes[0].get_lines()
    return sum(line.get_xdata().size for line in drawn if line.get_markerfacecolor() == "white")


def test_a_batch_has_a_line_for_each_optimization_and_smt_over_cores(full: pd.DataFrame) -> None:
    """SMT-on lines begin at half a core, since two threads share one."""
    figure = per_batch(full, "bert", "latency", 8)
    drawn = lines(figure)
    assert set(drawn) == {"none, SMT off", "none, SMT on", "script, SMT off", "script, SMT on"}
    assert drawn["none, SMT off"].get_xdata().tolist() == list(range(1, 17))
    assert drawn["none, SMT on"].get_xdata()[:3].tolist() == [0.5, 1.0, 1.5]
    assert figure.axes[0].get_xlabel() == "cores"


def test_an_optimization_has_a_line_for_each_batch_over_threads(full: pd.DataFrame) -> None:
    """All eleven batch sizes, with threads and not cores on the x axis."""
    figure = per_optimization(full, "bert", "latency", "script", True)
    assert set(lines(figure)) == {f"batch {2**k}" for k in range(11)}
    assert lines(figure)["batch 1"].get_xdata().tolist() == list(range(1, 33))
    assert figure.axes[0].get_xlabel() == "threads"


def test_the_drawn_latency_is_that_of_the_table(small: pd.DataFrame) -> None:
    """Milliseconds, straight from the table."""
    rows = small[(small["batch_size"] == 4) & (small["optimization"] == "script")]
    drawn = lines(per_batch(small, "bert", "latency", 4))["script"]
    assert drawn.get_ydata().tolist() == rows["latency_ms"].tolist()


def test_throughput_is_batch_over_latency_with_its_interval_turned_round(
    small: pd.DataFrame,
) -> None:
    """The high end of the latency is the low end of the throughput."""
    rows = small[(small["batch_size"] == 4) & (small["optimization"] == "none")]
    figure = per_batch(small, "bert", "throughput", 4)
    assert lines(figure)["none"].get_ydata() == pytest.approx(4000 / rows["latency_ms"].to_numpy())
    segments = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert segments[0][:, 1] == pytest.approx(
        [4000 / rows["latency_ms_high"].iloc[0], 4000 / rows["latency_ms_low"].iloc[0]]
    )


@pytest.mark.parametrize("metric", ["latency", "throughput"])
@pytest.mark.parametrize("smt", [False, True])
def test_end_labels_never_overlap_and_stay_in_the_picture(
    full: pd.DataFrame, metric: MetricName, smt: bool
) -> None:
    """Eleven lines whose ends lie close together still have eleven separate labels."""
    figure = per_optimization(full, "bert", metric, "script", smt)
    boxes = [text.get_window_extent() for text in texts(figure, "end-label")]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 11
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert max(box.x1 for box in boxes) < figure.bbox.x1
    assert figure.bbox.y0 < boxes[0].y0 < boxes[-1].y1 < figure.bbox.y1


def test_end_labels_keep_the_order_of_the_lines(full: pd.DataFrame) -> None:
    """Whoever reads the labels from top to bottom reads the lines from top to bottom."""
    figure = per_optimization(full, "bert", "throughput", "script", False)
    by_label = sorted(texts(figure, "end-label"), key=lambda text: text.get_window_extent().y0)
    by_line = sorted(lines(figure).values(), key=lambda line: line.get_ydata()[-1])
    assert [text.get_text() for text in by_label] == [line.get_label() for line in by_line]


def test_spreading_moves_only_what_is_too_close() -> None:
    """A label with room stays where its line ends."""
    assert spread([0.9, 0.1], 0.1, 0, 1) == [0.9, 0.1]
    assert spread([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    crowded = spread([0.99] * 5, 0.1, 0.05, 0.95)
    assert np.diff(crowded) == pytest.approx([0.1] * 4)
    assert max(crowded) <= 0.95


def test_axes_are_logarithmic_where_the_range_asks_for_it(
    full: pd.DataFrame, small: pd.DataFrame
) -> None:
    """Eleven batch sizes span three decades; one batch on two cores does not."""
    wide, narrow = (
        per_optimization(full, "bert", "latency", "script", True).axes[0],
        per_batch(small, "bert", "latency", 4).axes[0],
    )
    assert (wide.get_xscale(), wide.get_yscale()) == ("log", "log")
    assert (narrow.get_xscale(), narrow.get_yscale()) == ("linear", "linear")
    assert narrow.get_ylim()[0] == 0


def test_a_scale_that_is_asked_for_is_used(full: pd.DataFrame) -> None:
    """The explorer's switch overrules the automatic choice."""
    forced = per_optimization(full, "bert", "latency", "script", True, scale="linear")
    assert forced.axes[0].get_yscale() == "linear"


def test_tick_labels_are_plain_whole_numbers_of_cores(
    full: pd.DataFrame, small: pd.DataFrame
) -> None:
    """No powers of ten, and no 1.25 cores."""
    figure = per_batch(full, "bert", "latency", 1024)
    figure.png()
    x_labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert x_labels == ["0.5", "1", "2", "4", "8", "16"]
    y_labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "10,000" in y_labels
    few = per_batch(small, "bert", "latency", 1)
    few.png()
    assert [label.get_text() for label in few.axes[0].get_xticklabels()] == ["1", "2"]


def test_intervals_are_seen_with_two_thread_counts_and_with_many(
    full: pd.DataFrame, small: pd.DataFrame
) -> None:
    """Bars where there are few points, bands where there are many."""
    assert len(per_batch(small, "bert", "latency", 4).axes[0].containers) == 2
    assert len(per_batch(full, "bert", "latency", 4).axes[0].collections) == 4


def test_coarse_points_are_hollow_and_explained(full: pd.DataFrame, small: pd.DataFrame) -> None:
    """Batch 1024 took too long for six samples: hollow marks, and a note that says so."""
    figure = per_batch(full, "bert", "latency", 1024)
    assert hollow_marks(figure) == full.query("batch_size == 1024")["coarse"].sum() > 0
    assert "Hollow marks: coarse" in notes(figure)
    fine = per_batch(small, "bert", "latency", 4)
    assert hollow_marks(fine) == 0
    assert "Hollow" not in notes(fine)


def test_a_failed_config_is_named_under_the_picture() -> None:
    """With its reason, word for word, also where that looks like mathematics."""
    on = factories.machine(cores=2, smt=False)
    none, script = factories.configs(on, [8])
    reason = "needs $30$ GiB of $24$"
    gone = factories.missing(script, on, "skipped", reason)
    figure = per_batch(table_of([factories.measured(none, on), gone]), "bert", "latency", 8)
    assert f"batch 8, script: skipped, {reason}" in notes(figure)
    assert set(lines(figure)) == {"none"}


def test_where_all_failed_the_error_says_why() -> None:
    """No empty picture: the caller is told the reason."""
    on = factories.machine(cores=2, smt=False)
    gone = [factories.missing(c, on, "failed", "out of memory") for c in factories.configs(on, [8])]
    with pytest.raises(RequestError, match=r"batch 8, none: failed, out of memory"):
        per_batch(table_of(gone), "bert", "latency", 8)


def test_an_unknown_batch_size_names_those_there_are(small: pd.DataFrame) -> None:
    """The message can be acted on."""
    with pytest.raises(RequestError, match=r"batch_size 7: there is 1, 4, 16"):
        per_batch(small, "bert", "latency", 7)


def test_a_mixed_table_is_refused() -> None:
    """Points of 16 and of 128 tokens never share a line."""
    mixed = table_of([*factories.small_records(), *factories.small_records(seq_len=128)])
    with pytest.raises(ValueError, match="seq_len"):
        per_batch(mixed, "bert", "latency", 4)


def test_unpinned_results_say_so() -> None:
    """Where threads could move between CPUs, every picture says it."""
    on = factories.machine(cores=2, smt=False)
    records = [
        factories.measured(config, on, pinned=False) for config in factories.configs(on, [1])
    ]
    figure = per_batch(table_of(records), "bert", "latency", 1)
    assert "NOT PINNED" in notes(figure)


def test_the_caption_says_where_and_how_long(small: pd.DataFrame) -> None:
    """The machine and the sequence length stand under every picture."""
    assert "madeup-9000-2c · 16 tokens" in notes(per_batch(small, "bert", "latency", 1))
    told = per_batch(small, "bert", "latency", 1, source="A server, 2025-03-01")
    assert "A server, 2025-03-01" in notes(told)


def test_one_thread_count_is_enough_for_a_picture() -> None:
    """A machine with a single CPU has no line to draw, but points."""
    on = factories.machine(cores=1, smt=False)
    table = table_of([factories.measured(config, on) for config in factories.configs(on, [1])])
    assert per_batch(table, "bert", "latency", 1).png().startswith(b"\x89PNG")


def test_optimizations_keep_their_colour_in_every_figure(small: pd.DataFrame) -> None:
    """A reader who learned that script is orange finds it orange again."""
    alone = small[small["optimization"] == "script"]
    colours = {
        lines(per_batch(table, "bert", "latency", 1))["script"].get_color()
        for table in (small, alone)
    }
    assert len(colours) == 1


def test_a_figure_shows_itself_in_a_notebook_once_with_its_alternative_text(
    small: pd.DataFrame,
) -> None:
    """Whatever backend matplotlib has, or none."""
    figure = per_batch(small, "bert", "latency", 1)
    data, metadata = figure._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == "BERT latency: batch size 1, by cores"


@pytest.fixture(scope="module")
def failed() -> pd.DataFrame:
    """Of batch 1 and 8, script failed at 8; errors are known."""
    on = factories.machine(cores=2, smt=False)
    *good, bad = factories.configs(on, [1, 8])
    records = [factories.measured(c, on) for c in good]
    table = table_of([*records, factories.missing(bad, on, "failed", "SQNR 14 dB")])
    ok = np.where(table["status"] == "ok", 1.0, np.nan)
    return table.assign(sqnr_db=40 * ok, peak_fraction=0.5 * ok)


def crosses(figure: Picture) -> list[float]:
    """Where on the x axis a cross says that something failed."""
    return [x for line in texts(figure, "gone") for x in line.get_xdata()]


def test_what_failed_is_a_cross_at_its_batch_size_and_never_a_point(failed: pd.DataFrame) -> None:
    """Throughput, speed-up and share of the peak by batch size."""
    for draw in (by_batch_size, speedup_over_eager, peak_share):
        figure = draw(failed, "bert")
        assert crosses(figure) == [8.0]
        drawn = next(v for k, v in lines(figure).items() if k.startswith("script"))
        assert drawn.get_xdata().tolist() == [1.0]
        assert "SQNR 14 dB" in notes(figure)


def test_a_config_that_failed_has_its_label_without_a_line(failed: pd.DataFrame) -> None:
    """So that a reader misses it at sight."""
    labels = [t.get_text() for t in texts(per_batch(failed, "bert", "latency", 8), "end-label")]
    assert sorted(labels) == ["none", "script: not measured"]


def test_the_error_stands_beside_the_speedup(failed: pd.DataFrame) -> None:
    """In the label of the line."""
    assert set(lines(speedup_over_eager(failed, "bert"))) == {"eager", "script · 40 dB"}


def test_the_speedup_over_one_thread_has_the_ideal_beside_it(small: pd.DataFrame) -> None:
    """Twice the threads, twice the speed."""
    ideal = lines(speedup_over_one_thread(small, "bert", "script", False))["ideal"]
    assert ideal.get_ydata().tolist() == ideal.get_xdata().tolist() == [1, 2]


def test_without_one_thread_there_is_nothing_to_be_faster_than() -> None:
    """The error says what to measure."""
    records = [
        record.model_copy(update={"points": record.points[1:]})
        for record in factories.small_records([4])
    ]
    with pytest.raises(RequestError, match="one thread"):
        speedup_over_one_thread(table_of(records), "bert", "script", False)


def test_a_caption_says_how_ratios_were_got(small: pd.DataFrame) -> None:
    """Paired where the points took turns; else what else."""
    assert "ratios: paired" in notes(speedup_over_eager(small, "bert"))
    apart = [
        record.model_copy(update={"block": f"{place:08x}"})
        for place, record in enumerate(factories.small_records([1]))
    ]
    assert "ratios: not measured together" in notes(speedup_over_eager(table_of(apart), "bert"))
    assert "ratios:" not in notes(by_batch_size(small, "bert"))


def test_a_heat_map_has_a_cell_for_each_point(failed: pd.DataFrame) -> None:
    """And crosses over the batch that failed."""
    figure = heat_map(failed, "bert", "latency", "script", False)
    cells = figure.axes[0].collections[0].get_array()
    wanted = failed.query("optimization == 'script' and status == 'ok'")["latency_ms"]
    assert cells.compressed().tolist() == pytest.approx(wanted.tolist())
    assert crosses(figure) == [0.5, 1.5]


def test_outliers_are_marked_in_their_distribution() -> None:
    """One spike among quiet passes, and it alone."""
    records = factories.small_records([4])
    point = records[0].points[0]
    slow = (*point.samples_ns[:-1], 3 * point.samples_ns[-1])
    spiked = factories.with_turns(point, factories.turns(slow))
    points = (spiked, *records[0].points[1:])
    records[0] = records[0].model_copy(update={"points": points})
    table = samples_table(Results.of(records))
    assert table.loc[table["outlier"], "latency_ms"].tolist() == [slow[-1] / 1e6]
    figure = distribution(table, "bert", 4, "here")
    assert sum(line.get_ydata().size for line in texts(figure, "outlier")) == 1


def test_the_passes_of_a_record_are_drawn_over_time() -> None:
    """Each where its turn was."""
    record = factories.small_records([4])[0]
    drawn = samples(record).axes[0].get_lines()[0]
    assert drawn.get_xdata().tolist() == [
        pytest.approx(turn.start_ns / 1e9) for turn in record.points[0].turns
    ]
