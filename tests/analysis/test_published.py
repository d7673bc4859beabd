"""Published latency files: what is read of them, what is refused, and where it shows."""

import math
from pathlib import Path

import pandas as pd
import papermill
import pytest

from scalebench_lib.analysis import published
from scalebench_lib.analysis.explorer import Explorer, show_view
from scalebench_lib.analysis.page import every_chart, write_page
from scalebench_lib.analysis.published import import_published, parse_published
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.notebook import sweeps
from scalebench_lib.results import CSV, FILE, Results
from tests import factories
from tests.analysis.test_analysis_notebook import NOTEBOOK, outputs, said

START = "benchmark,topology,pinning"
END = "allocator,instance_id,interop_threads,intraop_threads,batch_size"
TIMES = "latency(min),latency(avg),latency(max),flops"


def row(threads=1, batch=1, times="10,11,12,0.0", extra="", name="bert_manual_none", instance=1):
    """A line of a file; `extra` is the cell of ht or source with its comma."""
    return f"{name},sequential,numactl,{extra}default,{instance},1,{threads},{batch},{times}"


def write(path: Path, *rows: str, extra: str = "", times: str = TIMES) -> Path:
    """A file of `rows` under the usual names."""
    path.write_text("\n".join([f"{START},{extra}{END},{times}", *rows]) + "\n", encoding="utf-8")
    return path


def cells(rows: list, *names: str) -> list[tuple]:
    """Those columns of every row."""
    return [tuple(row[name] for name in names) for row in rows]


def with_ht(path: Path) -> Path:
    """Two batch sizes, up to two threads, hyper-threading off and on."""
    rows = [
        row(t, b, f"{20 * b / t},{21 * b / t},{25 * b / t},0.0", f"{ht},", "bert_manual_script")
        for ht in ("false", "true")
        for b in (1, 4)
        for t in (1, 2)
    ]
    return write(path, *rows, extra="ht,")


@pytest.mark.parametrize(("extra", "cell"), [("", ""), ("source,", "torch,"), ("ht,", "false,")])
def test_the_variants_of_columns_read_alike(tmp_path: Path, extra: str, cell: str) -> None:
    _, rows = parse_published([write(tmp_path / "a.csv", row(2, 4, extra=cell), extra=extra)], None)
    assert cells(rows, "model", "optimization", "smt") == [("bert", "none", False)]
    assert cells(rows, "placement", "allocator", "cores") == [("sequential", "default", 2)]
    assert cells(rows, "latency_ms_min", "latency_ms_mean", "latency_ms") == [(10, 11, 11)]


def test_hyper_threads_share_cores(tmp_path: Path) -> None:
    imported, rows = parse_published([with_ht(tmp_path / "a.csv")], None)
    assert set(cells(rows, "smt", "threads", "cores")) == {
        (False, 1, 1),
        (False, 2, 2),
        (True, 1, 0.5),
        (True, 2, 1),
    }
    assert "Hyper-threading is taken to be 2 threads a core." in imported.notes
    assert any("was never TorchScript" in note for note in imported.notes)


def test_exchanged_columns_are_noticed(tmp_path: Path) -> None:
    """Newer files hold minimum, maximum, mean under the old names; rows may be mixed."""
    path = write(tmp_path / "a.csv", row(1, times="10,12,11,0.0"), row(2, times="5,6,7,0.0"))
    imported, rows = parse_published([path], None)
    assert cells(rows, "latency_ms_min", "latency_ms_mean") == [(10, 11), (5, 6)]
    assert any(note.startswith("In 1 of 2 rows") for note in imported.notes)


@pytest.mark.parametrize(
    ("damaged", "complaint"),
    [
        (row(times="10,soon,12,0.0"), "latency(avg)"),
        (row(times="10,,12,0.0"), "latency(avg)"),
        (row(times="10,nan,12,0.0"), "latency(avg)"),
        (row(times="10,0,12,0.0"), "latency"),
        (row(times="-1,11,12,0.0"), "latency(min)"),
        (row(times="10,9,12,0.0"), "no latency can be less than the minimum"),
        (row(times="10,11"), "cells where"),
        (row(threads=0), "intraop_threads"),
        (row(batch="many"), "batch_size"),
        (row(name="bert"), "benchmark"),
    ],
)
def test_a_damaged_row_is_named_by_line_and_nothing_is_imported(
    tmp_path: Path, damaged: str, complaint: str
) -> None:
    path = write(tmp_path / "a.csv", row(), damaged)
    with pytest.raises(RequestError, match="line 3") as error:
        import_published([path], tmp_path / "out")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no column 'batch_size', 'benchmark', 'intraop_threads', "),
        (b"batch_size,benchmark,throughput\n1,2,3\n", "no column 'intraop_threads': "),
        (f"{START},{END},{TIMES}\n".encode(), "no rows"),
        (f"{START},{START},{END},{TIMES}\n".encode(), "twice"),
        (b"\x89PNG\r\n\xff\xfe", "not a text file"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(RequestError, match=complaint):
        parse_published([tmp_path / "a.csv"], None)


def test_the_help_names_every_column(scalebench) -> None:
    _, printed, _ = scalebench("import", "--help")
    assert [name for name in published._FIELDS if name not in printed] == ["swapped"]
    assert "throughput" in printed


def test_rows_of_one_point_are_pooled_and_a_row_twice_counts_once(tmp_path: Path) -> None:
    """Two runs may have appended to one file; the notes say so."""
    path = write(tmp_path / "a.csv", row(), row(), row(times="8,13,20,0.0"))
    imported, rows = parse_published([path], None)
    assert cells(rows, "latency_ms_min", "latency_ms_mean", "trials") == [(8, 12, 2)]
    notes = " ".join(imported.notes)
    assert "count once: 1." in notes
    assert "averaged: 1." in notes


def test_the_older_layout_is_read_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    """It has no topology, pinning or instance_id, and calls intraop_threads threads."""
    path = tmp_path / "a.csv"
    columns = "benchmark,allocator,interop_threads,threads,batch_size,latency(min),latency(avg)"
    path.write_text(f"{columns},latency(max)\nresnet_manual_none,default,1,4,4096,10,11,12\n")
    imported, rows = parse_published([path], None)
    assert cells(rows, "model", "threads", "batch_size") == [("resnet50", 4, 4096)]
    assert cells(rows, "placement", "pinned", "latency_ms") == [("sequential", True, 11)]
    lacks = "does not tell of instance_id, pinning, topology: taken as 1, numactl, sequential."
    assert any(lacks in note for note in imported.notes)
    assert any("timed with autograd on" in note for note in imported.notes)


def copies(count: int, ms: float, threads: int = 1, batch: int = 4) -> list[str]:
    """The rows of so many copies at once; the last is the slowest."""
    times = (f"{ms - n},{ms - n},{ms - n},0.0" for n in reversed(range(count)))
    return [row(threads, batch, each, instance=n) for n, each in enumerate(times, 1)]


def test_copies_that_ran_at_once_are_no_points_but_runs(tmp_path: Path) -> None:
    """Of one file, or of a file of single ones and another; in any order where ids are unique."""
    single = [row(1, 4, "99,100,101,0.0"), *copies(1, 80, 2)]
    several = [*copies(2, 110), *copies(4, 133)]
    one = write(tmp_path / "a.csv", *single, *several)
    both = [write(tmp_path / "b.csv", *single), write(tmp_path / "c.csv", *copies(4, 133)[::-1])]
    for files, runs in (([one], [(2, 110), (4, 133)]), (both, [(4, 133)])):
        imported, rows = parse_published(files, None)
        assert cells(rows, "threads", "latency_ms") == [(1, 100), (2, 80)]
        assert [(run["instances"], run["latency_ms"]) for run in imported.together] == runs
    assert imported.file == "b.csv, c.csv"
    assert imported.sha256.count(", ") == 1


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row(), row(2, instance=2)], "instance_id 2 at batch 1 on 2 threads ran beside others"),
        ([row(), *copies(3, 9)[1:]], "instance_id 2 at batch 4 on 1 threads ran beside others"),
        (copies(2, 9), "every instance ran beside others"),
    ],
)
def test_copies_that_cannot_be_told_apart_are_refused(tmp_path, rows, complaint) -> None:
    """No number of one that ran beside others is taken for how fast one runs alone."""
    with pytest.raises(RequestError, match=complaint):
        import_published([write(tmp_path / "a.csv", *rows)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_measured_unusually_is_kept_apart(tmp_path: Path) -> None:
    unpinned = row(name="inception_manual_ipex").replace("numactl", "none")
    _, rows = parse_published([write(tmp_path / "a.csv", unpinned)], None)
    assert cells(rows, "model", "optimization") == [("inception", "ipex")]
    assert cells(rows, "placement", "pinned") == [("sequential, pinning none", False)]
    assert cells(rows, "seq_len", "item") == [(0, "")]


def test_a_throughput_file_gives_means(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", row(batch=4, times="8.0"), times="throughput")
    _, rows = parse_published([path], None)
    assert cells(rows, "latency_ms_mean") == [(500,)]
    assert pd.isna(rows[0]["latency_ms_min"])
    broken = write(tmp_path / "b.csv", row(times="0"), times="throughput")
    with pytest.raises(RequestError, match=r"line 2: batch_size, throughput: must be above 0"):
        parse_published([broken], None)


def test_the_results_table_marks_what_was_imported(tmp_path: Path) -> None:
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out", "Xeon")
    table = Results.load(tmp_path / "out").table
    assert len(table) == 8
    assert set(table["imported_from"]) == {"a.csv"}
    assert set(table["machine"]) == {"Xeon"}
    assert table["latency_ms"].equals(table["latency_ms_mean"])
    assert table[["latency_ms_low", "latency_ms_high", "samples"]].isna().all(axis=None)
    assert not table["coarse"].any()


def test_its_page_says_that_it_was_imported(tmp_path: Path) -> None:
    """Its figures have the names of the published page."""
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out")
    page = write_page(tmp_path / "out").read_text(encoding="utf-8")
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    kinds = ("1", "4", "script-False", "script-True")
    assert names == {f"bert-{m}-{kind}" for m in ("latency", "throughput") for kind in kinds}
    assert "Imported from a.csv: published means, no intervals · an unknown machine" in page
    assert "Every sample lies" not in page
    assert "its 95 % interval is" not in page
    assert "Fastest" not in page
    assert "bands and bars" not in page
    assert "&lt;NA&gt;" not in page
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 8


def test_a_speed_up_of_published_means_stands_on_the_page_without_an_interval(tmp_path) -> None:
    """Of files with eager and another optimization."""
    fast = row(times="5,5.5,6,0.0", name="bert_manual_script")
    import_published([write(tmp_path / "a.csv", row(), fast)], tmp_path / "out")
    page = write_page(tmp_path / "out").read_text(encoding="utf-8")
    best = page.partition('<h2 id="best">')[2].partition('<h2 id="every">')[0]
    assert "<td>2.00</td>" in best
    assert "2.00× as fast as eager (not measured together)" in page


def test_an_import_says_nothing_that_only_samples_can_tell(tmp_path: Path) -> None:
    """In no caption of any view; views that it cannot have are not offered."""
    rows = [
        row(threads, 4, f"{9 / threads},{10 / threads},11,0.0", name=f"bert_manual_{name}")
        for name in ("none", "script")
        for threads in (1, 2)
    ]
    apart = [each.replace("sequential", "interleave") for each in rows]
    import_published([write(tmp_path / "a.csv", *rows, *apart)], tmp_path / "out")
    contexts, charts = every_chart(Results.load(tmp_path / "out"))
    assert [context["values"]["placement"] for context in contexts] == [
        "interleave",
        "sequential",
        "all",
    ]
    for chart in charts.values():
        assert isinstance(chart, str) is False, chart
        assert "95 %" not in " ".join(chart.caption)
    (both,) = (chart for key, chart in charts.items() if "/all/" in key and "/batch/latency" in key)
    assert [line.label for line in both.lines] == [
        "eager",
        "eager, interleave",
        "TorchScript",
        "TorchScript, interleave",
    ]
    page = write_page(tmp_path / "out").read_text(encoding="utf-8")
    assert '<th scope="col" id="interval">' not in page
    assert "timed with autograd on" in page
    explorer = Explorer(tmp_path / "out", tmp_path / "none")
    assert explorer.filters["placement"].options == ("sequential", "interleave", "all")
    explorer.filters["placement"].value = "all"
    assert not explorer.save_picture.disabled


def test_the_explorer_shows_it_among_the_sweeps(tmp_path: Path) -> None:
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "outputs" / "published")
    own = factories.save_sweep(tmp_path / "outputs" / "own", factories.small_records([1]))
    assert {path.name for path in sweeps(tmp_path / "outputs")} == {"published", "own"}
    explorer = Explorer(tmp_path / "outputs" / "published", tmp_path / "outputs")
    assert bytes(explorer.picture.value[:4]) == b"\x89PNG"
    before = explorer.picture.value
    explorer.sweep.value = own
    assert explorer.picture.value != before


def test_it_is_shown_beside_ones_own_on_one_axis(tmp_path: Path, capsys) -> None:
    """A sweep without that batch size has a sentence in place of a picture."""
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out")
    own = factories.save_sweep(tmp_path / "own", factories.small_records([1, 4, 16]))
    both = Results.load(own), Results.load(tmp_path / "out")
    show_view("scaling", *both)
    assert capsys.readouterr().out.count("<p>Largest speed-up") == 2
    show_view("batch", *both, batch_size=16)
    said = capsys.readouterr().out
    assert (said.count("<p>Lowest latency"), said.count("<p>nothing has batch_size 16")) == (1, 1)


def test_the_command_imports_tells_and_is_not_swept_into(scalebench, tmp_path: Path) -> None:
    path, out = with_ht(tmp_path / "a.csv"), tmp_path / "out"
    code, told, _ = scalebench("import", path, "--out", out)
    assert code == 0
    assert "8 points. Imported from a.csv" in told
    assert "note: Hyper-threading" in told
    assert scalebench("status", out)[1].startswith("8 points. Imported from a.csv")
    before = (out / FILE).read_bytes()
    refusals = {
        "is not empty": ("import", path, "--out", out),
        "holds an imported sweep": ("sweep", out, "--model", "bert-tiny"),
        "cannot read": ("import", tmp_path / "none.csv", "--out", tmp_path / "new"),
        "is a file": ("import", path, "--out", path),
    }
    for complaint, arguments in refusals.items():
        code, _, err = scalebench(*arguments)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert complaint in err
    assert (out / FILE).read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_damaged_import_is_named(tmp_path: Path) -> None:
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out")
    (tmp_path / "out" / CSV).write_text("model,batch_size\nbert,four\n")
    with pytest.raises(ScalebenchError, match=f"{CSV} is damaged"):
        Results.load(tmp_path / "out")
    (tmp_path / "out" / FILE).write_text("{}")
    with pytest.raises(ScalebenchError, match=f"{FILE} is damaged"):
        Results.load(tmp_path / "out")


def test_an_import_of_an_older_scalebench_is_to_be_made_anew(tmp_path: Path) -> None:
    (tmp_path / "imported.json").write_text("{}")
    with pytest.raises(RequestError, match="import its file again, with 'scalebench import'"):
        Results.load(tmp_path)


def test_an_import_is_read_as_it_was_written(tmp_path: Path) -> None:
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out", "NA")
    source, rows = parse_published([tmp_path / "a.csv"], "NA")
    results = Results.load(tmp_path / "out")
    pd.testing.assert_frame_equal(results.table, Results((), source, rows).table)
    one, two = results.table.sort_values("threads").to_dict("records")[::7]
    found = results.row_ratio(one, two)
    assert found.value == pytest.approx(one["latency_ms"] / two["latency_ms"])
    assert (found.how, math.isnan(found.low)) == ("not measured together", True)


def test_an_import_from_before_a_column_was_added_is_read(tmp_path: Path) -> None:
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out")
    now, path = Results.load(tmp_path / "out").table, tmp_path / "out" / CSV
    pd.read_csv(path).drop(columns=["phase", "profiled_ms"]).to_csv(path, index=False)
    pd.testing.assert_frame_equal(Results.load(tmp_path / "out").table, now)


@pytest.mark.slow
def test_the_analysis_notebook_lays_it_beside_ones_own(tmp_path: Path) -> None:
    import_published([with_ht(tmp_path / "a.csv")], tmp_path / "out")
    own = factories.save_sweep(tmp_path / "own", factories.small_records([1]))
    asked = {"out": str(tmp_path / "out"), "beside": str(own)}
    executed = papermill.execute_notebook(NOTEBOOK, tmp_path / "x.ipynb", asked, progress_bar=False)
    pictures = [
        o["metadata"]["image/png"]["alt"]
        for o in outputs(executed)
        if "metadata" in o and "image/png" in o["metadata"]
    ]
    assert pictures[-2:] == 2 * ["BERT speed-up over 1 thread: TorchScript, SMT off"]
    assert (
        said(*executed.cells).count("Largest speed-up") == 3
    )  # of the import by itself, and of both
