"""A comparison's words, table, Markdown and figure."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from scalebench_lib.analysis.compare import Comparison
from scalebench_lib.analysis.compare_report import (
    figure,
    markdown,
    notes,
    renderables,
    save,
    summary,
    tables,
)
from scalebench_lib.config import Config
from scalebench_lib.record import Record
from tests import factories, simulated
from tests.comparisons import compared, sweep

SLOW, GONE = simulated.CONFIGS[:2]


@pytest.fixture(scope="module")
def found() -> Comparison:
    """One config slower by a fifth, and one that failed."""
    after = [r for r in sweep(1, {SLOW.id: 1.2}) if r.config != GONE]
    after.append(factories.missing(GONE, simulated.ON, "failed", "<img> | *memory*"))
    return compared(sweep(0), after)


def lines(found: Comparison, width: int = 80) -> list[str]:
    """What is printed into a pipe, or a terminal of that `width`."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(*renderables(found), sep="\n", soft_wrap=True, markup=False)
    return capture.get().splitlines()


def test_the_summary_counts_and_tells_what_is_common(found: Comparison) -> None:
    first, common = summary(found)
    assert first == (
        "after (B) against before (A), 12 points: 2 slower, 0 faster, 8 same, 0 unclear, "
        "2 lost in B."
    )
    change = r"no measurable change \(.* % faster to .* % slower\) on"
    assert re.fullmatch(f"Common to all points: {change} 1 thread; {change} 2 threads.", common)
    assert lines(found)[:2] == [first, common]


def test_one_point_is_told_in_the_singular() -> None:
    first = sweep(0, rounds=1)[0]
    one = [first.model_copy(update={"points": first.points[:1]})]
    assert summary(compared(one, one))[0].startswith("after (B) against before (A), 1 point: ")


def test_what_all_points_share_is_a_sentence() -> None:
    change = r"\d\.\d % slower \(\d\.\d–[\d.]+ %\) on"
    told = f"Common to all points: {change} 1 thread; {change} 2 threads."
    first, common, beyond, hint = summary(compared(sweep(0), sweep(1, 1.08)))
    assert first.endswith("12 points: 0 have a lower latency in B, 12 a higher one.")
    assert re.fullmatch(told, common)
    assert beyond == "Against the rest: 0 slower, 0 faster, 12 same, 0 unclear."
    assert "Machine or software: 'scalebench sweep OUT --against PYTHON' tells" in hint
    assert len(summary(compared(sweep(0), sweep(1, 1.08), threshold=0.5))) == 2


def test_where_all_got_faster_the_rest_is_what_a_point_is_slower_than(tmp_path: Path) -> None:
    """A config of 0.6 of its time is slower than the others, of a half, and never slower in B."""
    half = {config.id: 0.5 + 0.1 * (config == SLOW) for config in simulated.CONFIGS}
    found = compared(sweep(0), sweep(1, half))
    assert summary(found)[0].endswith("12 have a lower latency in B, 0 a higher one.")
    assert found.has_regressions
    assert "slower or faster than the rest" in notes(found)[0].lower()
    (_, rows), *_ = tables(found)
    assert list(rows)[-2:] == ["B/A ÷\ncommon", "against\nthe rest"]
    assert "| B/A ÷ common | against the rest |" in markdown(found)
    assert rows["against\nthe rest"].tolist().count("slower") == 2
    assert markdown(found).count("**slower**") == 2
    axes = figure(found).axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "2 slower than the rest" in legend
    assert axes.get_xlabel().endswith("slower than the rest")
    table = pd.read_csv(save(found, tmp_path).with_suffix(".csv"))
    assert table["verdict"].tolist().count("slower") == 2


def test_reasons_are_notes_that_name_their_points(found: Comparison) -> None:
    assert (
        "Note: lost in B (failed: <img> | *memory*): TorchScript, batch 1 on 1, 2 threads."
        in notes(found)
    )
    assert "about 1 in 20 may be chance" in notes(found)[0]
    only = [r for r in sweep(1) if r.config.batch_size == 4 or r.config.optimization == "none"]
    said = notes(compared(sweep(0), only))
    assert "Note: only in A: TorchScript, batch 1, 16 on 1, 2 threads." in said


def test_a_note_of_many_points_is_short_and_counts_the_others() -> None:
    sizes = [{"model": "resnet50", "image_size": size} for size in range(32, 32 * 12, 32)]
    records = [r for size in sizes for r in factories.small_records([1], **size)]
    (note,) = [n for n in notes(compared(records, records[:2])) if n.startswith("Note: only in A")]
    assert len(note) <= 200
    named = len(re.findall("pixels", note))
    assert note.endswith(f"; … and {20 - named} more.")


def _long(record: Record, smt: bool) -> Record:
    """The record as that of a config of long names and numbers: 16 threads, minutes a pass."""
    config = Config(batch_size=1024, optimization="onnxruntime-int8", smt=smt)
    point = record.points[0]
    turns = [
        turn.model_copy(update={"samples_ns": tuple(300 * ns for ns in turn.samples_ns)})
        for turn in point.turns
    ]
    points = [
        factories.with_turns(point, turns).model_copy(update={"threads": threads})
        for threads in (15, 16)
    ]
    update = {"config": config, "config_id": config.id, "points": tuple(points)}
    return record.model_copy(update=update)


@pytest.mark.parametrize("width", [80, 40])
def test_the_longest_names_fit_into_80_columns(width: int) -> None:
    """Nothing is cut in a narrower terminal either."""
    sides = [
        [
            _long(r, smt=r.config.optimization == "script")
            for r in sweep(seed)
            if r.config.batch_size == 16
        ]
        for seed in (0, 1)
    ]
    found = compared(*sides)
    (_, rows), *others = tables(found)
    start = lines(found, width).index("") + 1
    table = lines(found, width)[start : start + len(rows) + 2]
    assert not others
    assert max(map(len, table)) <= 80
    assert [line.split() for line in table[2:]] == [
        " ".join(row).split() for row in rows.to_numpy()
    ]
    assert {"ONNX Runtime int8", "1024", "16", "on", "off"} <= set(rows.to_numpy().ravel())


def test_where_all_is_lost_there_is_no_table(tmp_path: Path) -> None:
    after = [
        factories.missing(config, simulated.ON, "failed", "no") for config in simulated.CONFIGS
    ]
    nothing = compared(sweep(0), after)
    assert tables(nothing) == []
    assert (
        "Note: lost in B (failed: no): eager, batch 1, 4, 16 on 1, 2 threads;" in notes(nothing)[-1]
    )
    assert save(nothing, tmp_path).exists()


def test_settings_have_tables_of_their_own() -> None:
    sizes = [{"model": "resnet50", "image_size": size} for size in (64, 224)]
    records = [r for size in sizes for r in factories.small_records([1], **size)]
    found = compared(records, records)
    assert [title for title, _ in tables(found)] == ["64 pixels", "224 pixels"]
    assert [len(rows) for _, rows in tables(found)] == [4, 4]
    assert "**64 pixels**" in markdown(found)


def test_the_markdown_is_one_table_with_a_row_a_point(found: Comparison) -> None:
    """Other people's text is made harmless."""
    table = [line for line in markdown(found).splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 10
    assert len({line.count("|") for line in table}) == 1
    assert markdown(found).count("**slower**") == 2
    assert "&lt;img&gt; \\| \\*memory\\*" in markdown(found)


def test_it_is_saved_with_its_picture_and_its_data(found: Comparison, tmp_path: Path) -> None:
    page = save(found, tmp_path / "new" / "folder")
    assert "](compare.png)" in page.read_text()
    table = pd.read_csv(page.with_suffix(".csv"))
    assert len(table) == 12
    assert table["beyond"].max() == pytest.approx(1.2, rel=0.05)
    assert Image.open(page.with_suffix(".png")).width > 800


def test_the_figure_shows_what_each_point_is_judged_by(found: Comparison) -> None:
    axes = figure(found).axes[0]
    drawn = np.concatenate([line.get_xdata() for line in axes.lines if line.get_marker() in "<>ox"])
    expected = found.table["beyond"].dropna()
    assert sorted(drawn) == pytest.approx(sorted(expected))
    assert len(axes.get_yticklabels()) == 10
    assert "common to all points" in axes.get_xlabel()
    assert axes.get_yticklabels()[0].get_text() == "eager, batch 1, 1 thread"


def test_a_figure_of_thousands_stays_a_page(found: Comparison) -> None:
    table = pd.concat([found.table] * 200, ignore_index=True)
    many = replace(found)
    vars(many)["table"] = table
    picture = figure(many)
    assert picture.get_figheight() < 8
    assert not picture.axes[0].get_yticks().size
