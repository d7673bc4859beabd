"""The other Python of ``--against``: what it tells of itself, and what it lacks."""

import os
import sys
from pathlib import Path

import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.optimizations import OPTIMIZATIONS
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


@pytest.mark.parametrize(
    "trouble", ["ModuleNotFoundError: No module named 'torch'", "ImportError: cannot import Self"]
)
def test_why_it_cannot_run_this_checkout_is_told_in_one_line(tmp_path: Path, trouble: str) -> None:
    """Such as a package that it lacks, or that it is too old."""
    python = fake_python(tmp_path, f'echo Traceback >&2; echo "{trouble}" >&2; exit 1')
    told = rf"^against: \S+ cannot run this checkout \({trouble}\): install it there"
    with pytest.raises(RequestError, match=told):
        Interpreter.of(python)


@pytest.mark.parametrize("command", ["", "/no/such/python", "'unfinished"])
def test_what_is_no_python_is_refused(command: str) -> None:
    """And nothing is started."""
    with pytest.raises(RequestError, match="against: cannot start"):
        Interpreter.of(command)


def test_an_engine_that_it_lacks_is_told_before_anything_starts() -> None:
    """With what to install."""
    missing = {name: list(one.needs) for name, one in OPTIMIZATIONS.items()}
    bare = Interpreter.here().model_copy(update={"executable": "python", "missing": missing})
    bare.require(("none", "script", "compile", "bf16"))
    with pytest.raises(RequestError, match="python lacks openvino, which openvino-bf16 needs"):
        bare.require(("none", "openvino-bf16"))
