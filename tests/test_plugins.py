"""Optimizations of other packages: found, measured, verified, plotted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scalebench_lib import optimizations
from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.optimizations import OPTIMIZATIONS, Optimization
from scalebench_lib.record import load_records
from scalebench_lib.results import Results

DOCUMENTATION = (Path(__file__).parent.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")


def package(folder: Path, *names: str) -> None:
    """The documentation's example as it is installed, under `names`."""
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENTATION, re.MULTILINE | re.DOTALL)
    (point,) = re.findall(r'^traced = "(.*)"$', DOCUMENTATION, re.MULTILINE)
    (folder / "my_module.py").write_text(code)
    info = folder / "my_package-1.2.dist-info"
    info.mkdir()
    about = "Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\nSummary: TorchScript, traced\n"
    (info / "METADATA").write_text(about)
    lines = "\n".join(f"{name} = {point}" for name in names)
    (info / "entry_points.txt").write_text(f"[{optimizations.PLUGINS}]\n{lines}\n")


def scalebench(folder: Path, *arguments: object) -> str:
    """What the command prints where the package in `folder` is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "scalebench_lib", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_optimization_of_an_installed_package_is_found(monkeypatch, tmp_path: Path) -> None:
    """With the package's words; its module is not imported, names that are taken are left out."""
    package(tmp_path, "traced-bf16", "script", "No name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="my-package: '(script|No name)' is no free name"):
        (found,) = optimizations._of_plugins()
    assert (found.name, found.precision, found.needs) == ("traced-bf16", "bf16", ("my-package",))
    assert found.description == "TorchScript, traced (package my-package)"
    assert found.missing == []
    assert "my_module" not in sys.modules


def test_one_whose_function_is_not_there_fails_its_config_in_one_line() -> None:
    """Not the whole sweep."""
    for where in ("nowhere:at_all", "json:at_all"):
        with pytest.raises(MeasurementError, match=f"'mine' has no function {where}: ") as caught:
            Optimization("mine", "mine", where, "").apply(None)
        assert len(str(caught.value).splitlines()) == 1


def test_what_is_not_installed_is_refused_where_it_is_asked_for_and_read_where_it_was() -> None:
    """A record may come from another machine."""
    with pytest.raises(RequestError, match="unknown optimization 'traced'"):
        Sweep.from_input({"optimizations": "traced"})
    assert Config(optimization="traced").id.startswith("bert-traced-smt_off")
    assert "traced" not in OPTIMIZATIONS


@pytest.mark.slow
def test_the_example_of_the_documentation_is_measured_and_plotted(tmp_path: Path) -> None:
    """Verified as any; its records are read where it is not installed."""
    package(tmp_path, "traced")
    assert "traced: TorchScript, traced (package my-package)" in scalebench(tmp_path, "doctor")
    out = tmp_path / "out"
    limits = ("--threads", 1, "--rounds", 1, "--max-seconds", 0.2, "--if-busy", "ignore")
    asked = ("--model", "bert-tiny", "--batch-sizes", 1, "--optimizations", "none,traced")
    scalebench(tmp_path, "sweep", out, *asked, *limits)
    (record,) = (one for one in load_records(out) if one.config.optimization == "traced")
    assert record.status == "ok"
    assert record.verification.sqnr_db > 90
    assert record.software.versions["my-package"] == "1.2"
    assert set(Results.load(out).table["optimization"]) == {"none", "traced"}
    scalebench(tmp_path / "elsewhere", "report", out)
    assert "traced" in (out / "index.html").read_text(encoding="utf-8")
