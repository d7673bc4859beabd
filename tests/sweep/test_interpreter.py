"""The other Python of ``--against``: what it tells of itself, and what it lacks."""

import os
import sys
from pathlib import Path

import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.kernels import Kernels
from tests.notebooks import notebook, run_notebook

pytestmark = pytest.mark.slow


def fake_python(folder: Path, script: str) -> str:
    """An executable that behaves like a Python which says so."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def changed() -> Interpreter:
    """This Python with one variable more and one less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_DYNAMIC", "false")
        return Interpreter.of(f"env -u OMP_DYNAMIC MALLOC_TOP_PAD_=1048576 {sys.executable}")


def test_its_environment_is_that_of_its_command(changed: Interpreter, monkeypatch) -> None:
    """What decides of it is in its software."""
    monkeypatch.setenv("OMP_DYNAMIC", "false")
    assert changed.environment["MALLOC_TOP_PAD_"] == "1048576"
    assert "OMP_DYNAMIC" not in changed.environment
    assert changed.software.environment["MALLOC_TOP_PAD_"] == "1048576"
    assert changed.software.versions == Interpreter.here().software.versions
    assert os.environ.get("MALLOC_TOP_PAD_") is None


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
def test_its_kernels_have_its_environment(
    changed: Interpreter, warm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked or started afresh."""
    monkeypatch.setenv("OMP_DYNAMIC", "false")
    asked = "import os; print(os.environ.get('MALLOC_TOP_PAD_'), os.environ.get('OMP_DYNAMIC'))"
    source = notebook(tmp_path / "in.ipynb", asked)
    with Kernels(warm, changed) as kernels:
        assert run_notebook(kernels, source, tmp_path / "out.ipynb") == "1048576 None\n"
        assert kernels.warning is None


def test_what_it_lacks_is_told_in_one_line(tmp_path: Path) -> None:
    """By the name of the package."""
    python = fake_python(
        tmp_path, "echo \"ModuleNotFoundError: No module named 'torch.nn'\" >&2; exit 1"
    )
    with pytest.raises(
        RequestError, match=r"^against: \S+ lacks torch: install this checkout there"
    ):
        Interpreter.of(python)


def test_any_other_trouble_is_told_by_its_last_line(tmp_path: Path) -> None:
    """Such as a Python that is too old."""
    trouble = "ImportError: cannot import name 'Self' from 'typing'"
    python = fake_python(tmp_path, f'echo Traceback >&2; echo "{trouble}" >&2; exit 1')
    with pytest.raises(RequestError, match="cannot run this checkout: ImportError: cannot import"):
        Interpreter.of(python)


@pytest.mark.parametrize("command", ["", "/no/such/python", "'unfinished"])
def test_what_is_no_python_is_refused(command: str) -> None:
    """And nothing is started."""
    with pytest.raises(RequestError, match="against: cannot start"):
        Interpreter.of(command)


def test_an_engine_that_it_lacks_is_told_before_anything_starts() -> None:
    """With what to install."""
    bare = Interpreter.here().model_copy(update={"executable": "python", "packages": frozenset()})
    bare.require(("none", "script", "compile", "bf16"))
    with pytest.raises(RequestError, match="python lacks openvino, which openvino-bf16 needs"):
        bare.require(("none", "openvino-bf16"))
