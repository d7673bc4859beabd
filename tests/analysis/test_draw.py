"""Pictures stay readable with many lines and with few, and show what their chart holds."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text

from scalebench_lib.analysis.draw import draw, spread_apart
from scalebench_lib.analysis.figures import (
    Choices,
    by_cores,
    by_threads,
    distribution,
    heat_map,
    samples_table,
)
from scalebench_lib.picture import Picture
from scalebench_lib.results import Results
from scalebench_lib.text import format_number
from tests import factories


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    """The table of a machine with 16 cores, 32 threads and every batch size."""
    return Results(factories.full_records()).table


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    """The table of a machine with 2 cores and no SMT, on which script failed at batch 16."""
    on = factories.machine(cores=2, smt=False)
    records = factories.small_records()[:-1]
    gone = factories.configs(on, [16], ["script"])[0]
    return Results([*records, factories.missing(gone, on, "failed", "of $5$")]).table


def lines(figure: Picture) -> dict[str, Line2D]:
    """The figure's lines by label."""
    drawn = figure.axes[0].get_lines()
    return {line.get_label(): line for line in drawn if not line.get_label().startswith("_")}


def texts(figure: Picture, gid: str) -> list[Text]:
    """The figure's texts with this gid, drawn so that their boxes are final."""
    figure.png()
    return list(figure.findobj(lambda artist: artist.get_gid() == gid))


def ticks(figure: Picture, which: str) -> list[str]:
    """What stands at the ticks of an axis."""
    figure.png()
    return [t.get_text() for t in getattr(figure.axes[0], f"get_{which}ticklabels")()]


@pytest.mark.parametrize("metric", ["latency", "throughput"])
@pytest.mark.parametrize("smt", [False, True])
def test_end_labels_never_overlap_and_stay_in_the_picture(
    full: pd.DataFrame, metric: str, smt: bool
) -> None:
    """Eleven lines whose ends lie close together still have eleven separate labels."""
    figure = draw(by_threads(full, Choices(metric, optimization="script", smt=smt)))
    boxes = [Text.get_window_extent(text) for text in texts(figure, "end-label")]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 11
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert max(box.x1 for box in boxes) < figure.bbox.x1
    assert figure.bbox.y0 < boxes[0].y0 < boxes[-1].y1 < figure.bbox.y1


def test_end_labels_keep_the_order_of_the_lines(full: pd.DataFrame) -> None:
    """Whoever reads the labels from top to bottom reads the lines from top to bottom."""
    figure = draw(by_threads(full, Choices("throughput", optimization="script")))
    by_label = sorted(texts(figure, "end-label"), key=lambda text: Text.get_window_extent(text).y0)
    by_line = sorted(lines(figure).values(), key=lambda line: line.get_ydata()[-1])
    assert [text.get_text() for text in by_label] == [line.get_label() for line in by_line]


def test_spreading_moves_only_what_is_too_close() -> None:
    """A label with room stays where its line ends."""
    assert spread_apart([0.9, 0.1], 0.1, 0, 1) == [0.9, 0.1]
    assert spread_apart([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    crowded = spread_apart([0.99] * 5, 0.1, 0.05, 0.95)
    assert np.diff(crowded) == pytest.approx([0.1] * 4)
    assert max(crowded) <= 0.95


def test_the_picture_has_the_points_of_its_chart(small: pd.DataFrame) -> None:
    """Lines with their points, intervals as bars, hollow marks and crosses."""
    chart = by_cores(small, Choices(batch_size=16))
    (none, script) = chart.lines
    hollow = replace(none, coarse=np.array([True, False]))
    figure = draw(replace(chart, lines=[hollow, script]))
    assert lines(figure)["eager"].get_ydata().tolist() == none.marks.y.tolist()
    segments = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert segments[0][:, 1] == pytest.approx([none.marks.low[0], none.marks.high[0]])
    white = [x for x in figure.axes[0].get_lines() if x.get_markerfacecolor() == "white"]
    assert [x.get_ydata().tolist() for x in white] == [[none.marks.y[0]]]
    labels = [text.get_text() for text in texts(figure, "end-label")]
    assert sorted(labels) == ["TorchScript: not measured", "eager"]


def test_intervals_are_bars_of_few_points_and_bands_of_many(
    full: pd.DataFrame, small: pd.DataFrame
) -> None:
    """Both are seen."""
    assert len(draw(by_cores(small, Choices(batch_size=4))).axes[0].containers) == 2
    many = draw(by_cores(full, Choices(batch_size=4))).axes[0]
    assert (len(many.containers), len(many.collections)) == (0, 4)


def test_tick_labels_are_plain_whole_numbers_of_cores(
    full: pd.DataFrame, small: pd.DataFrame
) -> None:
    """No powers of ten, and no 1.25 cores."""
    figure = draw(by_cores(full, Choices(batch_size=1024)))
    assert ticks(figure, "x") == ["0.5", "1", "2", "4", "8", "16"]
    assert "10,000" in ticks(figure, "y")
    assert ticks(draw(by_cores(small, Choices())), "x") == ["1", "2"]


def test_a_scale_that_is_asked_for_is_used(full: pd.DataFrame) -> None:
    """The explorer's switch overrules the automatic choice."""
    chart = by_threads(full, Choices(optimization="script"))
    scales = {s: draw(replace(chart, scale=s)).axes[0].get_yscale() for s in ("auto", "linear")}
    assert scales == {"auto": "log", "linear": "linear"}


def test_cells_hold_their_numbers_and_crosses_what_failed(small: pd.DataFrame) -> None:
    """In the row of their batch size."""
    chart = heat_map(small, Choices(optimization="script"))
    figure = draw(chart)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == [format_number(value) for value in chart.cells.marks.y]
    (crosses,) = texts(figure, "missing")
    assert crosses.get_ydata().tolist() == [2.5, 2.5]
    assert ticks(figure, "y") == ["1", "4", "16"]


def test_dots_are_drawn_with_their_outliers() -> None:
    """Each outlier as a cross."""
    samples = samples_table(Results(factories.small_records([4])))
    chart = distribution(samples.assign(outlier=samples.index == 3), Choices(batch_size=4))
    crosses = texts(draw(chart), "outlier")
    assert sum(line.get_ydata().size for line in crosses) == 1


def test_what_looks_like_mathematics_is_written_as_it_is(small: pd.DataFrame) -> None:
    """Reasons come from elsewhere."""
    (notes,) = texts(draw(by_cores(small, Choices(batch_size=16))), "notes")
    assert "batch 16, TorchScript: failed, of $5$" in notes.get_text()


def test_one_thread_count_is_enough_for_a_picture() -> None:
    """A machine with a single CPU has no line to draw, but points."""
    on = factories.machine(cores=1, smt=False)
    records = [factories.measured(config, on) for config in factories.configs(on, [1])]
    figure = draw(by_cores(Results(records).table, Choices()))
    assert figure.png().startswith(b"\x89PNG")


def test_a_figure_shows_itself_in_a_notebook_once_with_its_alternative_text(
    small: pd.DataFrame,
) -> None:
    """Whatever backend matplotlib has, or none."""
    data, metadata = draw(by_cores(small, Choices()))._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"]["alt"] == "BERT latency: batch size 1, by cores"
