"""Executed notebooks to share: no paths, no dead widgets, no network."""

import re
from pathlib import Path

import nbformat
import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import NOTEBOOKS, PROJECT, WIDGET, render, scrub

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhf"
    "DwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def executed(folder: Path) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it, with paths wherever they can be, and a widget."""
    said = f"{folder}/sweep and {PROJECT}/outputs, {Path.home()}/x, /tmp/ipykernel_12/34.py"
    view = nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "a"}, "image/png": PNG})
    cells = [
        nbformat.v4.new_markdown_cell("# Question"),
        nbformat.v4.new_code_cell(f'out = "{folder}/sweep"'),
        nbformat.v4.new_code_cell(
            "1/0",
            outputs=[
                nbformat.v4.new_output("stream", text=said),
                nbformat.v4.new_output("error", ename="E", evalue=said, traceback=[said]),
                view,
            ],
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["papermill"] = {
        "input_path": "/somewhere/in.ipynb",
        "output_path": f"{folder}/out.ipynb",
        "parameters": {"out": f"{folder}/sweep"},
    }
    return notebook


def test_addresses_stay_where_the_home_is_the_root(monkeypatch) -> None:
    """As in some containers: "//" is no path in it."""
    monkeypatch.setenv("HOME", "/")
    cell = nbformat.v4.new_markdown_cell("https://example.org")
    assert scrub(nbformat.v4.new_notebook(cells=[cell])).cells[0].source == "https://example.org"


def test_no_path_of_this_machine_is_left(tmp_path: Path) -> None:
    """Neither in metadata nor in parameters, printed text or tracebacks."""
    text = nbformat.writes(scrub(executed(tmp_path), tmp_path))
    for path in (str(tmp_path), str(PROJECT), f"{Path.home()}/", "/somewhere", "ipykernel_12"):
        assert path not in text
    assert 'out = \\"sweep\\"' in text


def test_a_widget_without_its_state_leaves_its_picture(tmp_path: Path) -> None:
    """JupyterLab would say that it cannot find the model."""
    output = scrub(executed(tmp_path)).cells[-1].outputs[-1]
    assert output.data == {"image/png": PNG}


def test_a_widget_with_its_state_is_kept(tmp_path: Path) -> None:
    """It can be shown."""
    notebook = executed(tmp_path)
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    assert WIDGET in scrub(notebook).cells[-1].outputs[-1].data


def test_a_notebook_is_a_page_that_loads_nothing(tmp_path: Path) -> None:
    """Pictures are inside; scripts, styles and frames from elsewhere are not there."""
    nbformat.write(executed(tmp_path), tmp_path / "out.ipynb")
    page = render(tmp_path / "out.ipynb").read_text()
    assert PNG in page
    assert "Question" in page
    assert not re.findall(
        r"<(?:script|img|iframe|link)[^>]*(?:src|href)=[\"']?(?:https?:)?//", page
    )
    assert not re.findall(r"@import|url\([\"']?https?:|cdnjs|unpkg|jsdelivr", page)
    assert str(tmp_path) not in (tmp_path / "out.ipynb").read_text()


def test_the_title_of_a_measurement_names_its_config(tmp_path: Path) -> None:
    """In the notebook and on its page, once; a parameter that is wrong leaves it as it was."""
    source = nbformat.read(NOTEBOOKS / "measure.ipynb", as_version=4)
    next(cell for cell in source.cells if cell.cell_type == "code").execution_count = 1
    for parameters, title in (
        ({"batch_size": 8, "trial": 2}, "How fast is BERT, batch 8 of 16 tokens, eager, SMT off"),
        ({"batch_size": "x"}, "How fast is this config on this machine?"),
    ):
        source.metadata["papermill"] = {"parameters": parameters}
        nbformat.write(source, tmp_path / "out.ipynb")
        for _ in range(2):
            page = render(tmp_path / "out.ipynb").read_text()
        first = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].source
        assert first.startswith(f"# {title}")
        assert f"<title>{title}" in page


def test_a_notebook_that_never_ran_is_refused(tmp_path: Path) -> None:
    """Its page would be empty."""
    path = tmp_path / "plan.ipynb"
    path.write_bytes((NOTEBOOKS / "plan.ipynb").read_bytes())
    with pytest.raises(
        RequestError, match=r"plan\.ipynb: no cell of it was executed: run it first"
    ):
        render(path)


def test_what_is_no_notebook_is_refused(tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "x.ipynb").write_text("{")
    for name in ("x.ipynb", "none.ipynb"):
        with pytest.raises(RequestError, match=r"cannot read .* as a notebook"):
            render(tmp_path / name)
