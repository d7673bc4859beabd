"""A comparison's words, Markdown and figure."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from scalebench_lib.analysis.compare import Comparison, compare
from scalebench_lib.analysis.compared import figure, markdown, rows, save, summary
from tests import madeup, simulated
from tests.test_compare import sweep


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One config slower by a fifth, and one that failed."""
    folder = tmp_path_factory.mktemp("compared")
    slow, gone = simulated.CONFIGS[0], simulated.CONFIGS[1]
    after = [r for r in sweep(1, {slow.id: 1.2}) if r.config != gone]
    after.append(madeup.missing(gone, simulated.ON, "failed", "<img> | *memory*"))
    a = madeup.save_sweep(folder / "monday", sweep(0))
    return compare(a, madeup.save_sweep(folder / "friday", after))


def test_the_summary_counts_and_says_how(found: Comparison) -> None:
    """All of it computed."""
    said = "\n".join(summary(found))
    assert "friday against monday, 12 points: 2 slower, 0 faster, 8 same, 2 not comparable." in said
    assert "2 points that monday has could not be measured" in said
    assert "false discovery rate of 5 %" in said


def test_the_markdown_is_one_table_with_a_row_a_point(found: Comparison) -> None:
    """Every row as wide as the heading, other people's text made harmless."""
    lines = [line for line in markdown(found).splitlines() if line.startswith("| ")]
    cells = [line.replace("\\|", "").count("|") for line in lines]
    assert len(lines) == 2 + 12
    assert len(set(cells)) == 1
    assert markdown(found).count("**slower**") == 2
    assert "&lt;img&gt; \\| \\*memory\\*" in markdown(found)


def test_points_that_differ_in_their_images_alone_are_told_apart(tmp_path: Path) -> None:
    """Two image sizes, two rows that say which."""
    sizes = [{"model": "resnet50", "image_size": size} for size in (64, 224)]
    records = [r for size in sizes for r in madeup.small_records([1], **size)]
    sweeps = [madeup.save_sweep(tmp_path / name, records) for name in "ab"]
    heading, *body = rows(compare(*sweeps))
    place = heading.index("image size")
    assert [row[place] for row in body] == [*["64"] * 4, *["224"] * 4]


def test_it_is_saved_with_its_picture_and_its_data(found: Comparison, tmp_path: Path) -> None:
    """To be put beside a report."""
    page = save(found, tmp_path / "new" / "folder")
    assert "](compare.png)" in page.read_text()
    assert len(pd.read_csv(page.with_suffix(".csv"))) == 12
    assert Image.open(page.with_suffix(".png")).width > 800


def test_the_figure_shows_every_ratio_with_its_interval(found: Comparison) -> None:
    """And none for what has no ratio."""
    axes = figure(found).axes[0]
    drawn = np.concatenate([line.get_xdata() for line in axes.lines if line.get_marker() in "<>ox"])
    expected = found.table["ratio"].dropna()
    assert sorted(drawn) == pytest.approx(sorted(expected))
    assert len(axes.get_yticklabels()) == 10


def test_a_figure_of_thousands_stays_a_page(found: Comparison) -> None:
    """Sorted by ratio, without a name for each."""
    table = pd.concat([found.table] * 200, ignore_index=True)
    many = Comparison(**{**vars(found), "table": table})
    picture = figure(many)
    assert picture.get_figheight() < 8
    assert not picture.axes[0].get_yticks().size
