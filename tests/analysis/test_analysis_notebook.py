"""The analysis notebook runs headless, shows every figure, and loads no torch."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from scalebench_lib.notebook import WIDGET
from tests import factories
from tests.notebooks import said

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "analysis.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook, run by papermill on a quick sweep of two batch sizes, and asked about torch.

    A third record of the sweep is damaged.
    """
    folder = tmp_path_factory.mktemp("analysis")
    sweep = factories.save_sweep(folder / "sweep", factories.small_records([1, 4]))
    (sweep / "records" / "cut-v1.json").write_text('{\n "schema_version": 1,')
    asking = nbformat.read(NOTEBOOK, as_version=4)
    question = "import sys; print('torch loaded:', 'torch' in sys.modules)"
    asking.cells.append(nbformat.v4.new_code_cell(question))
    nbformat.write(asking, folder / "in.ipynb")
    return papermill.execute_notebook(
        folder / "in.ipynb",
        folder / "out.ipynb",
        {"out": str(folder / "sweep")},
        progress_bar=False,
    )


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """All outputs, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_it_shows_one_figure_of_each_kind_each_with_a_sentence(
    executed: nbformat.NotebookNode,
) -> None:
    """Without a widget being touched; the speed of its matrix product is not known."""
    cells = [
        [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        for cell in executed.cells
    ]
    pictures = [output["metadata"]["image/png"]["alt"] for (output,) in filter(None, cells)]
    assert pictures[1:] == [
        "BERT throughput by batch size, each at its best thread count",
        "BERT latency: batch size 1, by cores",
        "BERT latency: TorchScript, SMT off, by threads",
        "BERT speed-up over 1 thread: TorchScript, SMT off",
        "BERT latency: TorchScript, SMT off",
        "BERT every pass: batch size 1, TorchScript, SMT off",
    ]
    for cell, found in zip(executed.cells, cells, strict=True):
        if found and "show(" in cell.source:
            assert re.search(r"\d", said(cell)), cell.source
    assert "Share of PyTorch matmul: nothing of it is known" in said(*executed.cells)


def test_it_tells_of_a_damaged_record_in_a_line(executed: nbformat.NotebookNode) -> None:
    """And goes on without it."""
    assert re.search(r"cut-v1.json is damaged: .*: left out", said(*executed.cells))
    assert "Traceback" not in nbformat.writes(executed)


def test_it_has_the_explorer(executed: nbformat.NotebookNode) -> None:
    """Headless as its picture: a widget without its state would be shown as an error."""
    assert WIDGET not in [kind for o in outputs(executed) for kind in o.get("data", {})]
    first = next(o for o in outputs(executed) if "image/png" in o.get("data", {}))
    assert first["metadata"]["image/png"]["alt"] == (
        "sweep: BERT speed-up over eager by batch size, each at its best thread count"
    )


def test_it_is_small_enough_to_be_shown_by_a_code_hosting_site(
    executed: nbformat.NotebookNode,
) -> None:
    """Under 1 MB."""
    assert len(nbformat.writes(executed)) < 1e6


def test_it_says_what_was_found_and_what_is_not_there(executed: nbformat.NotebookNode) -> None:
    """Computed from the sweep that it was given."""
    told = said(*executed.cells)
    assert "Lowest latency" in told
    assert "Every config of the sweep was measured." in told
    assert "This machine has no hyper-threading (SMT)" in told


def test_it_loads_no_torch(executed: nbformat.NotebookNode) -> None:
    """Looking at results must not wait for what measured them."""
    assert "torch loaded: False" in said(*executed.cells)


def test_the_source_is_clean() -> None:
    """No outputs, cell ids, one cell of parameters, and as much prose as code."""
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [
        cell.source.split(" ")[0] for cell in code if "parameters" in cell.metadata.get("tags", [])
    ] == ["out"]
    assert all(len(cell.source.splitlines()) <= 6 for cell in code)
    assert 2 * len(code) <= len(notebook.cells)
