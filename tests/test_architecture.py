"""The architecture: which parts may know of which, and what loads torch."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

import scalebench_lib
from scalebench_lib.config import WITHIN
from scalebench_lib.plan.profile import Instance

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "scalebench_lib"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in LIBRARY.rglob("*.py")
}
PARTS = ("measure", "sweep", "analysis", "plan")
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def imports(path: Path) -> set[str]:
    """The modules that the file at `path` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: p.stem)
def test_wings_meet_on_the_ground_floor_only(path: Path) -> None:
    """measure, sweep, analysis and plan do not import each other; the ground floor none."""
    home = path.relative_to(LIBRARY).parts[0]
    if path.name == "worker.py":  # a process of its own, that measures
        home = "measure"
    if home in ("cli.py", "validation"):  # they bring the wings together
        return
    for module in imports(path):
        other = re.match(r"scalebench_lib\.(\w+)", module)
        assert not other or other[1] not in PARTS or other[1] == home, module


def test_only_measuring_loads_torch() -> None:
    """So that help, a report and the analysis notebook start fast."""
    modules = ("cli", "analysis.page", "analysis.explorer", "plan.decide", "sweep.progress")
    code = "".join(
        f"import sys, scalebench_lib.{name}\nassert 'torch' not in sys.modules, '{name}'\n"
        for name in modules
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def loaded_with(path: Path) -> set[str]:
    """The modules of the library that importing the file at `path` imports, at its level."""
    found = set()
    for node in _at_import(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= names or {node.module}
    return found & MODULES.keys()


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's `body` that run when it is imported."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _at_import(getattr(node, block, []))


def test_no_module_imports_itself_in_a_circle() -> None:
    """The library can be read from its shared modules on."""
    sorter = TopologicalSorter({name: loaded_with(path) for name, path in MODULES.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def requirements(lines: list) -> dict[str, str]:
    """Package names and their ranges."""
    parts = (re.match(r"([\w.-]+)\s*(.*)", line) for line in lines if isinstance(line, str))
    return {part[1].replace("_", "-"): part[2] for part in parts if part}


def test_the_conda_environment_is_in_step_with_the_project() -> None:
    """The same packages, the same ranges, from conda-forge."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    wanted = {
        CONDA_NAMES.get(name, name): spec
        for name, spec in requirements(project["dependencies"]).items()
    }
    wanted["python"] = project["requires-python"]
    found = requirements(conda["dependencies"])
    assert {name: found.get(name) for name in wanted} == wanted
    assert set(found) - set(wanted) == {"pip", "pytorch-cpu"}
    assert conda["channels"][0] == "conda-forge"
    assert conda["dependencies"][-1] == {"pip": ["-e .[cluster,onnxruntime,openvino,torchao]"]}


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    """So that a fresh installation is the one that was tested; torch exactly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    for name in requirements(project["dependencies"]):
        assert re.search(rf"^{name}==", pinned, re.M), name


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_is_pickled_and_no_foreign_code_is_run(path: Path) -> None:
    """Files are JSON, YAML, CSV and safetensors, only dask's wire is pickle; clocks that decide are
    monotonic."""
    text = path.read_text(encoding="utf-8")
    foreign = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not imports(path) & (foreign - {"pickle" * (path.stem == "cluster")})
    forbidden = r"torch\.(save|load)\(|trust_remote_code=True|allow_pickle=True|read_pickle"
    assert not re.search(forbidden, text)
    assert not re.search(r"yaml\.(load|unsafe_load)\(|\btime\.time(_ns)?\(|mktemp\(\)", text)


def test_jupyterlab_keeps_its_token_and_to_this_machine() -> None:
    """In every command and text of ours."""
    ours = [*ROOT.glob("*.md"), *ROOT.glob("notebooks/*"), *LIBRARY.rglob("*.py")]
    for path in (ROOT / "Makefile", ROOT / ".ci/run", ROOT / "environment.yml", *ours):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"token\s*=\s*(''|\"\"|\s)|--ip[= ](0\.0\.0\.0|\*)|password=", text)


@pytest.mark.parametrize("name", scalebench_lib.__all__)
def test_public_names_are_documented(name: str) -> None:
    assert getattr(scalebench_lib, name).__doc__


def test_an_instance_of_a_plan_has_every_axis_within_groups() -> None:
    """Else instances that differ in it would be taken for the same."""
    assert set(WITHIN) <= {field.name for field in fields(Instance)}
