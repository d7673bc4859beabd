"""The measurement notebook, run by papermill as a user would."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import NOTEBOOKS, errors_as_warnings, measurement_request
from scalebench_lib.record import load_records
from tests.notebooks import said

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
    """It leaves a record and shows two pictures, each followed by a sentence; no cell is empty."""
    run = papermill(
        tmp_path / "out.ipynb",
        model="bert-tiny",
        batch_size=2,
        optimization="script",
        threads=1,
        max_seconds=0.3,
        thorough=False,
        out=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    (record,) = load_records(tmp_path)
    assert (record.status, record.trial, record.config.batch_size) == ("ok", 1, 2)
    assert (record.block, record.round, len(record.points)) == (None, 1, 1)
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    sentences = [said(cell) for cell in cells[-3::2]]
    assert sentences[0].endswith("of them outliers.")
    assert sentences[1].startswith("Lowest latency: ")
    assert not [output for output in outputs if output.output_type == "error"]


def test_a_wrong_parameter_stops_it_before_anything_is_built(tmp_path: Path) -> None:
    """The last line says what is wrong, without a traceback, and no record is left."""
    run = papermill(tmp_path / "out.ipynb", out=tmp_path, optimisation="script")
    assert run.returncode != 0
    complaint = "RequestError: unknown parameter 'optimisation': did you mean 'optimization'?"
    assert run.stderr.strip().splitlines()[-1] == complaint
    shown = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    errors = [o for cell in shown for o in cell.get("outputs", []) if o.output_type == "error"]
    assert [error.traceback for error in errors] == [[complaint]]
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"batch_size": 0}, "batch_size: input should be greater than or equal to 1, not 0"),
        ({"model": "brt"}, "unknown model 'brt': did you mean 'bert'?"),
    ],
)
def test_a_wrong_value_is_told_as_it_is(wrong: dict, complaint: str) -> None:
    """By what the notebook calls first."""
    with pytest.raises(RequestError, match=re.escape(complaint)):
        measurement_request(wrong)


def test_what_cannot_be_drawn_is_a_warning() -> None:
    """The record is written by then, and the trial is a good one."""
    with (
        pytest.warns(UserWarning, match="cannot draw this: ValueError: no such font"),
        errors_as_warnings(),
    ):
        raise ValueError("no such font")


@pytest.mark.slow
def test_a_trial_that_failed_ends_at_its_reason(tmp_path: Path) -> None:
    """Its record is written, and no cell behind that is run."""
    run = papermill(tmp_path / "out.ipynb", model="bert-tiny", weights="pretrained", out=tmp_path)
    assert run.stderr.strip().splitlines()[-1].startswith("MeasurementError: weights: bert-tiny")
    (record,) = load_records(tmp_path)
    assert record.status == "failed"
    *_, last = [
        cell for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.get("outputs")
    ]
    assert "record.require_ok()" in last.source
