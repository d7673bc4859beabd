"""The notebooks' parameters and folders, what they say, and the source notebooks themselves."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import nbformat
import papermill
import pytest

from scalebench_lib import notebook
from scalebench_lib.errors import RequestError
from scalebench_lib.notebook import (
    NOTEBOOKS,
    OUTPUTS,
    PROJECT,
    check_parameters,
    measurement_request,
    progress,
    say,
)
from scalebench_lib.record import next_trial_number
from tests.waiting import wait_until

SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_what_ipython_and_imports_put_into_a_namespace_is_no_parameter() -> None:
    """A misspelled parameter is one."""
    namespace = {"batch_size": 3, "_i": "hidden", "In": [], "Out": {}, "Path": Path, "p": Path()}
    assert measurement_request(namespace)[0].config.batch_size == 3
    with pytest.raises(RequestError, match="unknown parameter 'batch_sise'"):
        measurement_request({**namespace, "batch_sise": 4})


def test_names_that_a_person_set_are_no_parameters() -> None:
    """In JupyterLab cells are run again, after others set names of their own."""
    assert check_parameters({"out": "x", "columns": [], "n": 5}, ["out", "beside"]) == {"out": "x"}
    with pytest.raises(RequestError, match="unknown parameter 'besides': did you mean 'beside'"):
        check_parameters({"besides": "x"}, ["out", "beside"])


@pytest.mark.parametrize("name", ["analysis", "validation"])
def test_papermill_is_refused_a_parameter_that_a_notebook_does_not_take(
    name: str, tmp_path: Path
) -> None:
    """Papermill alone warns, and the newest sweep would be analysed."""
    source, target = str(NOTEBOOKS / f"{name}.ipynb"), str(tmp_path / "out.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'sweep': "):
        papermill.execute_notebook(source, target, {"sweep": "mine"}, progress_bar=False)


def test_an_empty_request_is_the_next_trial_by_hand() -> None:
    """As when the notebook is run in JupyterLab."""
    trial, _, folder = measurement_request({"batch_size": 3})
    assert folder == OUTPUTS / "by-hand"
    assert trial.number == next_trial_number(folder, trial.config)
    assert (trial.round, trial.block, trial.thorough) == (1, "", True)


def test_a_folder_that_is_no_name_is_refused() -> None:
    """Before anything is built."""
    with pytest.raises(RequestError, match="out: must be a folder's name"):
        measurement_request({"out": 7})


class _Line:
    """Where a notebook's progress is shown: all that it showed."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, html: object) -> None:
        self.shown.append(html.data)


def test_what_is_said_is_no_markup_and_lines_without_words_are_left_out(monkeypatch) -> None:
    """As a paragraph each, and as text for who reads no HTML."""
    told: list[dict[str, str]] = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: told.append(data))
    say("a < b", "", "c")
    assert told == [{"text/html": "<p>a &lt; b</p><p>c</p>", "text/plain": "a < b\nc"}]


def test_progress_is_seen_while_it_lasts_and_by_people_alone(monkeypatch) -> None:
    """A notebook that papermill runs has none; what is done leaves nothing behind."""
    line = _Line()
    monkeypatch.setattr(notebook, "display", lambda *_, **__: line)
    for interactive in (False, True):
        monkeypatch.setattr(notebook, "is_interactive", lambda found=interactive: found)
        with progress() as show:
            show("setting up <x>")
            show("cycle 3", 0.25)
    setting_up, cycle, last = line.shown
    assert "setting up &lt;x&gt;" in setting_up
    assert 'value="0.250"></progress> <span>cycle 3' in cycle
    assert last == ""


def _opens(address: str) -> bool:
    """Whether a server answers with what there is; it says its address before it listens."""
    with suppress(URLError), urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310
        return json.load(answer)["path"] == "outputs/analysis.ipynb"
    return False


@pytest.mark.slow
def test_make_lab_opens_copies_and_keeps_token_and_localhost(tmp_path: Path) -> None:
    """Rooted at the checkout; a copy of before is kept where its original is newer."""
    for name in ("Makefile", "notebooks"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "plan.ipynb").write_text("mine")
    os.utime(tmp_path / "outputs" / "plan.ipynb", (1, 1))
    told = tmp_path / "runtime"
    folders = {"JUPYTER_RUNTIME_DIR": str(told), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    make = ["make", "-o", ".venv/.ready", "lab", f"BIN={Path(sys.executable).parent}"]
    running = subprocess.Popen(
        [*make, "LAB=--no-browser --port=0"],
        cwd=tmp_path,
        env={**{n: v for n, v in os.environ.items() if n != "DISPLAY"}, **folders},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        address = next(line for line in running.stderr if "http://" in line).split()[-1]
        end = time.monotonic() + 30  # the file follows the address
        while not (files := list(told.glob("jpserver-*.json"))) and time.monotonic() < end:
            time.sleep(0.1)
        server = json.loads(files[0].read_text())
        asked = f"{server['url']}api/contents/outputs/analysis.ipynb?token={server['token']}"
        wait_until(lambda: _opens(asked), 120)
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate(timeout=60)
    assert address == f"{server['url']}lab/tree/outputs/analysis.ipynb?token={server['token']}"
    assert server["token"]
    assert server["hostname"] == "localhost"
    assert server["root_dir"] == str(tmp_path)
    assert (tmp_path / "outputs" / "plan-before.ipynb").read_text() == "mine"
    assert json.loads((tmp_path / "outputs" / "plan.ipynb").read_text())["cells"]


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
