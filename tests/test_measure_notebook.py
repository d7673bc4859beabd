"""The measurement notebook, run by papermill as a user would."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from scalebench_lib.notebook import NOTEBOOKS
from scalebench_lib.record import load_records

SOURCE = NOTEBOOKS / "measure.ipynb"


def papermill(target: Path, **parameters: object) -> subprocess.CompletedProcess[str]:
    """Run the notebook by papermill's own command."""
    options = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", SOURCE, target, *options],
        capture_output=True,
        text=True,
        check=False,
    )


def test_papermill_alone_measures_a_config(tmp_path: Path) -> None:
    """It leaves a record and shows two pictures."""
    run = papermill(
        tmp_path / "out.ipynb",
        model="bert-tiny",
        batch_size=2,
        optimization="script",
        max_seconds=0.3,
        out=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    (record,) = load_records(tmp_path)
    assert (record.status, record.visit, record.config.batch_size) == ("ok", 1, 2)
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"batch_size": 0}, "batch_size: must be a whole number of at least 1, not 0"),
        ({"optimisation": "script"}, "unknown parameter 'optimisation': did you mean 'optim"),
        ({"model": "brt"}, "unknown model 'brt': did you mean 'bert'?"),
    ],
)
def test_a_wrong_parameter_stops_it_before_anything_is_built(tmp_path, wrong, complaint) -> None:
    """The last line says what is wrong, and no record is left."""
    run = papermill(tmp_path / "out.ipynb", out=tmp_path, **wrong)
    assert run.returncode != 0
    assert complaint in run.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "records").exists()
