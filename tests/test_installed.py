"""The package as a wheel brings it: without its checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scalebench_lib.notebook import NOTEBOOKS, PROJECT
from scalebench_lib.record import load_records

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of this checkout holds, unpacked."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("scalebench_lib", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    build = [sys.executable, "-c", BUILD, str(target)]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in `folder`, with the `installed` package in the place of the checkout."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_holds_the_notebooks(installed: Path) -> None:
    """As they are in the checkout."""
    found = installed / "scalebench_lib" / "notebooks"
    sources = {path.name: path.read_bytes() for path in NOTEBOOKS.glob("*.ipynb")}
    assert {path.name: path.read_bytes() for path in found.glob("*.ipynb")} == sources
    assert "measure.ipynb" in sources


def test_an_installed_package_writes_below_the_folder_at_hand(
    installed: Path, tmp_path: Path
) -> None:
    """Not among the installed packages."""
    code = "from scalebench_lib.notebook import *; print(NOTEBOOKS, OUTPUTS)"
    printed = run(installed, tmp_path, "-c", code).stdout.split()
    assert printed == [f"{installed}/scalebench_lib/notebooks", f"{tmp_path}/outputs"]


def test_an_installed_package_lends_itself_to_no_other_python(
    installed: Path, tmp_path: Path
) -> None:
    """All that is installed beside it, torch too, would come along, and be compared with itself."""
    asked = ("sweep", "out", "--preset", "quick", "--against", sys.executable)
    ran = run(installed, tmp_path, "-m", "scalebench_lib", *asked)
    complaint = "--against: needs a checkout of scalebench, not an installed wheel"
    assert (ran.returncode, ran.stderr) == (2, f"scalebench: {complaint}\n")


@pytest.mark.slow
def test_a_sweep_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    """From an empty folder."""
    options = ("--model", "bert-tiny", "--batch-sizes", "1", "--optimizations", "none")
    limits = ("--threads", "1", "--rounds", "1", "--max-seconds", "0.3", "--if-busy", "ignore")
    ran = run(installed, tmp_path, "-m", "scalebench_lib", "sweep", "out", *options, *limits)
    assert ran.returncode == 0, ran.stderr
    assert [record.status for record in load_records(tmp_path / "out")] == ["ok"]
    assert (tmp_path / "out" / "index.html").exists()
