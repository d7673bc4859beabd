"""The validation notebook runs whole; what it finds on a busy machine is another matter."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from scalebench_lib.notebook import NOTEBOOKS
from tests.notebooks import said

pytestmark = pytest.mark.stress


def test_every_experiment_ends_in_a_verdict(tmp_path: Path) -> None:
    """With its figures, and a picture each, on a model that is measured in a moment."""
    target = tmp_path / "validation.ipynb"
    asked = {"model": "bert-tiny", "batch_sizes": [1], "max_seconds": 0.4, "hog_cycles": 6}
    papermill.execute_notebook(
        str(NOTEBOOKS / "validation.ipynb"),
        str(target),
        {"out": str(tmp_path / "out"), **asked},
        progress_bar=False,
    )
    cells = nbformat.read(target, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert len(re.findall(r": (holds|does not hold)\. ", said(*cells))) == 7
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
