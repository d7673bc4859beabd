"""A model of one's own: measured as it is, or refused in one line that says where."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.measure.models import build, digest
from scalebench_lib.measure.preflight import reason_against
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.record import load_records, model_files_digest
from tests.factories import machine

RIGHT = """
import torch
from beside import Two

def inputs(batch_size, seed):
    random = torch.Generator().manual_seed(seed)
    return {
        "right": torch.randn(batch_size, 4, generator=random),
        "left": torch.randn(batch_size, 8, generator=random),
    }

def make():
    return Two(), inputs
"""
BESIDE = """
import torch

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Linear(8, 32), torch.nn.Linear(4, 32)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, left, right):
        hidden = self.drop(torch.tanh(self.left(left) + self.right(right)))
        return {"each": [hidden, (hidden * 2, None)], "best": hidden.argmax(-1), "name": "two"}
"""


def write(folder: Path, source: str) -> str:
    """Write ``mine.py`` and what it imports; return the name of its model."""
    (folder / "beside.py").write_text(BESIDE, encoding="utf-8")
    (folder / "mine.py").write_text(source, encoding="utf-8")
    sys.modules.pop("beside", None)
    return f"{folder}/mine.py:make"


def returning(expression: str, body: str = "") -> str:
    """A function of one input whose pass returns `expression` of ``x``."""
    return f"""
import random, threading, torch
linear = torch.nn.Linear(4, 4)
kept = torch.zeros(2, 4)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear
        self.drop = Drop()
        self.register_buffer("count", torch.zeros(1))
    def forward(self, x):
        {body or "pass"}
        return {expression}

def waiting():
    return threading.Thread(target=threading.Event().wait, args=(9,), name="mine", daemon=True)

class Drop(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5)

def make():
    return Model(), inputs

def inputs(n, seed):
    return (torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)),)
"""


def test_inputs_by_name_and_outputs_of_any_depth(tmp_path: Path) -> None:
    """Its tensors of floats are the outputs; all else is passed over, and said."""
    config = Config(model=write(tmp_path, RIGHT))
    assert reason_against([config]) is None
    with torch.inference_mode():
        model = build(config)
        inputs = model.inputs(3, seed=0)
        assert [part.shape for part in inputs] == [(3, 4), (3, 8)]
        one, two = model.module(*inputs)
        assert torch.equal(two, one * 2)
        found = Verifier(model, inputs).check(model.module)
    assert (str(model.kind), found.reference) == ("4 float32, 8 float32", "fp64")
    assert "left out of the outputs: best (torch.int64), name (str)" in str(found)
    assert config.id.startswith("mine_make-none-smt_off-bs1-")


def test_its_identity_is_that_of_its_code_and_what_that_imports(tmp_path: Path) -> None:
    """A file beside it that it does not import is nothing to it."""
    config = Config(model=write(tmp_path, RIGHT))
    before, hashed = model_files_digest(config), digest(build(config))
    assert digest(build(config)) == hashed, "random weights are those of the seed"
    (tmp_path / "other.py").write_text("", encoding="utf-8")
    assert model_files_digest(config) == before
    (tmp_path / "beside.py").write_text(BESIDE + "\n# changed\n", encoding="utf-8")
    assert model_files_digest(config) != before
    assert digest(build(config)) != hashed


def test_a_callable_that_is_no_module_is_measured(tmp_path: Path) -> None:
    """Its code alone tells it from another."""
    source = returning("x").replace("return Model(),", "return lambda x: linear(x) + 1,")
    config = Config(model=write(tmp_path, source))
    assert reason_against([config]) is None
    before = digest(build(config))
    assert digest(build(Config(model=write(tmp_path, source.replace("+ 1", "+ 2"))))) != before


def test_a_function_of_an_installed_package_is_taken(tmp_path: Path, monkeypatch) -> None:
    """``package.module:function``; its files are all those of the package."""
    package = tmp_path / "ours_to_measure"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(returning("linear(x)"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(model="ours_to_measure.models:make")
    assert reason_against([config]) is None
    before = model_files_digest(config)
    (package / "__init__.py").write_text("changed = True\n", encoding="utf-8")
    assert model_files_digest(config) != before


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def mak(): pass", "has no function 'make': did you mean 'mak'?"),
        ("import nothing_like_it", r"No module named 'nothing_like_it' \(mine\.py, line 1\)"),
        ("def make(:", r"invalid syntax \(mine\.py, line 1\)"),
        ("def make():\n    return {}['a']", r"KeyError: 'a' \(mine\.py, line 2\)"),
        ("def make():\n    raise SystemExit(3)", r"SystemExit: 3 \(mine\.py, line 2\)"),
        ("def make(): return print", r"returns a builtin.*, not \(model, inputs\)"),
        ("def make(): pass", r"returns a NoneType, not \(model, inputs\)"),
        (
            "def make(): return print, lambda n, seed: 1",
            "returns a int, not a tuple",
        ),
        (
            "def make(): return print, lambda n, seed: ('x',)",
            "returns a str, not a",
        ),
        (
            "import torch\ndef make(): return print, lambda n, seed: (torch.ones(3),)",
            r"inputs\(1, seed\) .* returns shape \(3,\), not",
        ),
        (returning("x.argmax(-1)"), r"returns no floats; left out.* it \(torch.int64\)"),
        (returning("linear(x).mean()"), "not of single items"),
        (returning("linear(x[0])"), "not of single items"),
        (returning("linear(x, 1)"), r"takes 2 positional .* \(mine\.py, line 14\)"),
        (returning("self.drop(linear(x))"), r"differently: .* in 'drop' \(Drop\)"),
        (
            returning("linear(x) + self.n", "self.n = vars(self).get('n', 0) + 1"),
            r"in 'model' \(Model\)",
        ),
        (returning("linear(x)", "self.count += 1"), "keeps state in buffers"),
        (returning("linear(x)", "print('hi')"), "a pass prints 'hi"),
        (returning("linear(x)", "x += 1"), "changes its inputs"),
        (returning("x[:, :2]"), "returns memory of its inputs"),
        (returning("kept[:len(x)].copy_(linear(x))"), "returns the same memory as the pass before"),
        (returning("linear(x)", "threading.Thread(target=list).start()"), "a pass starts a thread"),
        (
            returning("linear(x)").replace("return Model()", "waiting().start(); return Model()"),
            r"starts threads \(mine\)",
        ),
        (
            returning("linear(x)").replace(
                "def make():", "def make():\n    torch.seed()\n    linear.reset_parameters()"
            ),
            "is another each time that it is made: seed its weights",
        ),
        (returning("torch.ones(len(x), 2) * 3"), "another input gives the same output"),
        (returning("linear(x).bfloat16()"), r"outputs are torch\.bfloat16, not fp32"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, source: str, reason: str) -> None:
    """With its file and line where its code raised something."""
    found = str(reason_against([Config(model=write(tmp_path, source))]))
    assert re.search(reason, found), found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"model": "nowhere/mine.py:make"}, "there is no nowhere/mine.py to take"),
        ({"model": "nowhere.mine:make"}, "there is no nowhere.mine to take"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_starts(asked: dict, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        Sweep.from_input(asked).trials(machine(cores=2, smt=False))


@pytest.mark.parametrize("axis", [{"seq_len": 8}, {"image_size": 64}])
def test_it_knows_no_sizes(axis: dict) -> None:
    with pytest.raises(RequestError, match=r"takes its own inputs: leave .* out"):
        Config.from_input({"model": "mine.py:make", **axis})


@pytest.mark.parametrize("asked", [{"task": "ctc"}, {"weights": "pretrained"}])
def test_it_has_its_own_head_and_weights(asked: dict) -> None:
    with pytest.raises(RequestError, match="is what it makes: leave task and weights out"):
        Config.from_input({"model": "mine.py:make", **asked})


@pytest.mark.slow
def test_a_sweep_of_it_goes_on_until_it_changes(tmp_path: Path) -> None:
    """By a relative path, from a kernel; then the model is another, and the folder is not its."""
    write(tmp_path, RIGHT)
    scalebench = [sys.executable, "-m", "scalebench_lib"]
    limits = ["--rounds", "1", "--max-seconds", "3", "--threads", "1", "--if-busy", "ignore"]
    sweep = [*scalebench, "sweep", "out", "--model", "mine.py:make", "--batch-sizes", "2", *limits]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )

    first = run(*sweep)
    assert first.returncode == 0, first.stdout + first.stderr
    records = load_records(tmp_path / "out")
    assert [record.status for record in records] == ["ok", "ok"]
    assert {record.item for record in records} == {"4 float32, 8 float32"}
    assert "mine_make" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    planned = run(*scalebench, "plan", "out", "--batch-size", "2")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    compared = run(*scalebench, "compare", "out", "copy")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    (tmp_path / "beside.py").write_text(BESIDE.replace("* 2", "* 3"), encoding="utf-8")
    again = run(*sweep)
    assert again.returncode == 2
    assert "have changed" in " ".join((again.stdout + again.stderr).split())
