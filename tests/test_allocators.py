"""Allocators: found, preloaded, seen from inside the process, and measured with for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalebench_lib import allocators
from scalebench_lib.allocators import library, preload, require_installed, require_loaded
from scalebench_lib.config import Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.record import load_records
from scalebench_lib.results import Results
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.runner import run_in_turn
from tests.notebooks import notebook, run_notebook


def installed() -> list[str]:
    """The allocators that this machine has, beside its own."""
    found = []
    for name in ("tcmalloc", "jemalloc"):
        try:
            found += [name] * bool(library(name))
        except RequestError:
            continue
    return found


def test_what_is_missing_names_the_package_to_install(monkeypatch) -> None:
    """In one line, before anything starts."""
    monkeypatch.setattr(allocators, "find_library", lambda _: None)
    monkeypatch.setattr(allocators, "LIBRARIES", {"jemalloc": ("libnowhere.so.9",)})
    with pytest.raises(RequestError, match="'jemalloc' is not installed: 'apt install libjemall"):
        require_installed(["default", "jemalloc"])


def test_conda_s_library_comes_before_the_system_s(monkeypatch, tmp_path) -> None:
    """An environment brings its own."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtcmalloc.so.4").touch()
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path))
    monkeypatch.setattr(allocators, "find_library", lambda _: None)
    assert library("tcmalloc") == str(tmp_path / "lib" / "libtcmalloc.so.4")


def test_only_linux_preloads(monkeypatch) -> None:
    """Elsewhere the variable would be ignored in silence."""
    monkeypatch.setattr(allocators.sys, "platform", "darwin")
    with pytest.raises(RequestError, match="needs LD_PRELOAD, which only Linux has"):
        library("tcmalloc")
    assert library("default") is None


def test_the_default_is_the_system_s_whatever_is_preloaded(monkeypatch) -> None:
    """Other libraries of the user's stay."""
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libjemalloc.so.2 libmine.so")
    assert preload("default") == {"LD_PRELOAD": "libmine.so"}
    monkeypatch.setattr(allocators, "find_library", lambda name: f"lib{name}.so.4")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert preload("tcmalloc") == {"LD_PRELOAD": "libtcmalloc_minimal.so.4:libmine.so"}


def complaint(wanted: str, loaded: str) -> str:
    """What `require_loaded` complains of in a process that was started with `loaded`."""
    code = (
        "from scalebench_lib.errors import RequestError\n"
        "from scalebench_lib.allocators import require_loaded\n"
        f"try: require_loaded({wanted!r})\n"
        "except RequestError as error: print(error)"
    )
    env = {**os.environ, **preload(loaded)}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["tcmalloc", "jemalloc"])
def test_what_is_preloaded_is_what_serves(name: str) -> None:
    """And it alone: the default is refused then."""
    if name not in installed():
        pytest.skip(f"{name} is not installed")
    assert complaint(name, loaded=name) == ""
    assert "start without LD_PRELOAD" in complaint("default", loaded=name)


def test_an_allocator_that_is_not_loaded_is_refused_with_the_way_to_do_it() -> None:
    """A notebook run by hand with only the parameter set would measure the default."""
    told = complaint("tcmalloc", loaded="default")
    assert "start with LD_PRELOAD=libtcmalloc_minimal.so.4 papermill" in told
    assert len(told.splitlines()) == 1
    assert complaint("default", loaded="default") == ""


def test_elsewhere_than_on_linux_there_is_the_default_only(monkeypatch) -> None:
    """Rather than a wrong word in a record."""
    monkeypatch.setattr(allocators.sys, "platform", "darwin")
    require_loaded("default")
    with pytest.raises(RequestError, match="only Linux"):
        require_loaded("jemalloc")


def test_fresh_kernels_are_started_with_their_allocator(tmp_path: Path) -> None:
    """As warm ones are, which the sweep below shows."""
    for name in installed()[:1] or pytest.skip("neither tcmalloc nor jemalloc is installed"):
        look = "import json, os; print(json.dumps(os.environ['LD_PRELOAD']))"
        source = notebook(tmp_path / "in.ipynb", "allocator = 0", look)
        with Kernels(warm=False) as fresh:
            printed = run_notebook(fresh, source, tmp_path / "out.ipynb", allocator=name)
        assert json.loads(printed) == preload(name)["LD_PRELOAD"]
        assert "LD_PRELOAD" not in os.environ


@pytest.mark.slow
def test_batch_256_is_measured_with_every_allocator(warm, tmp_path: Path) -> None:
    """Each in kernels of its own, each a row of its own; the loader says which one it is."""
    names = installed() or pytest.skip("neither tcmalloc nor jemalloc is installed")
    sweep = Sweep(
        model="bert-tiny",
        batch_sizes=(256,),
        optimizations=("none",),
        allocators=("default", *names),
        threads=(1,),
        max_seconds=0.2,
        rounds=1,
    )
    prepared = SweepRun.prepare(sweep, tmp_path)
    prepared.kernels = warm
    run_in_turn([prepared], lambda _: None)
    records = load_records(tmp_path)
    assert {(r.status, r.reason, r.kernel) for r in records} == {("ok", None, "warm")}
    told = {r.config.allocator: r.software.libraries["malloc"] for r in records}
    assert told.keys() == {"default", *names}
    for name in names:
        assert told[name].startswith(f"lib{name}")
        assert told["default"] != told[name]
    assert sorted(Results.load(tmp_path).table["allocator"]) == sorted(told)
