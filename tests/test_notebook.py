"""The notebooks' parameters and folders, and the source notebooks themselves."""

from pathlib import Path

import nbformat
import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import NOTEBOOKS, OUTPUTS, measurement_request
from scalebench_lib.record import next_trial

SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_what_ipython_and_imports_put_into_a_namespace_is_no_parameter() -> None:
    """A misspelled parameter is one."""
    namespace = {"batch_size": 3, "_i": "hidden", "In": [], "Out": {}, "Path": Path, "p": Path()}
    assert measurement_request(namespace)[0].config.batch_size == 3
    with pytest.raises(RequestError, match="unknown parameter 'batch_sise'"):
        measurement_request({**namespace, "batch_sise": 4})


def test_an_empty_request_is_the_next_trial_by_hand() -> None:
    """As when the notebook is run in JupyterLab."""
    trial, _, folder = measurement_request({"batch_size": 3})
    assert folder == OUTPUTS / "by-hand"
    assert trial.number == next_trial(folder, trial.config)
    assert (trial.round, trial.block, trial.thorough) == (1, "", True)


def test_a_folder_that_is_no_name_is_refused() -> None:
    """Before anything is built."""
    with pytest.raises(RequestError, match="out: must be a folder's name"):
        measurement_request({"out": 7})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_source_notebooks_are_committed_clean_and_short(path: Path) -> None:
    """No outputs, no long cells, no classes, as much prose as code."""
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    prose = [cell for cell in book.cells if cell.cell_type == "markdown"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    plain = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
    assert all(cell.source.count("\n") < 8 for cell in plain)
    assert not any("class " in cell.source or "def " in cell.source for cell in code)
    assert len(prose) >= len(code) - 1
    assert book.metadata.kernelspec.name == "python3"
