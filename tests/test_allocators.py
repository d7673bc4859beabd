"""Allocators: found, preloaded, seen from inside the process, and measured with for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalebench_lib import allocators
from scalebench_lib.allocators import library, require_installed, require_loaded, variables
from scalebench_lib.config import Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.record import load_records
from scalebench_lib.results import Results
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.runner import run_rounds
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.notebooks import notebook, run_notebook


def installed() -> list[str]:
    """The allocators that this machine has, beside its own."""
    return [name for name in ("tcmalloc", "jemalloc") if is_had(name)]


def is_had(name: str) -> bool:
    """Whether a process can be started with it here."""
    try:
        variables(name)
    except RequestError:
        return False
    return True


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
    assert variables("default") == {"LD_PRELOAD": "libmine.so"}
    monkeypatch.setattr(allocators, "find_library", lambda name: f"lib{name}.so.4")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert variables("tcmalloc") == {"LD_PRELOAD": "libtcmalloc_minimal.so.4:libmine.so"}


def complaint(wanted: str, loaded: str, changed: dict[str, str | None] | None = None) -> str:
    """What `require_loaded` complains of in a process that was started with `loaded`.

    Its variables are `changed`, or not set where that is None.
    """
    code = (
        "from scalebench_lib.errors import RequestError\n"
        "from scalebench_lib.allocators import require_loaded\n"
        f"try: require_loaded({wanted!r})\n"
        "except RequestError as error: print(error)"
    )
    asked = {**os.environ, **variables(loaded), **(changed or {})}
    env = {name: value for name, value in asked.items() if value is not None}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["tcmalloc", "jemalloc"])
def test_what_is_preloaded_is_what_serves(name: str) -> None:
    """And it alone: the default is refused then."""
    if name not in installed():
        pytest.skip(f"{name} is not installed")
    assert complaint(name, loaded=name) == ""
    assert "start without LD_PRELOAD" in complaint("default", loaded=name)


@pytest.mark.parametrize("name", ["glibc-keep", "thp", "jemalloc"])
def test_what_malloc_was_told_is_what_it_does(name: str) -> None:
    """Asked of malloc itself; one that was told nothing is refused, with what to tell it."""
    if not is_had(name):
        pytest.skip(f"{name} is not to be had")
    assert complaint(name, loaded=name) == ""
    told = allocators.SETTINGS[name].items()
    unset = {name: None for name, _ in told}
    silent = complaint(name, loaded=name, changed=unset)
    assert f"{name!r} is not what malloc was told here; start with" in silent
    assert all(f"{variable}={value}" in silent for variable, value in told)


def test_huge_pages_are_refused_where_they_make_no_difference(monkeypatch, tmp_path) -> None:
    """Off, or given to all."""
    monkeypatch.setattr(allocators, "_HUGE_PAGES", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always madvise [never]")
    with pytest.raises(RequestError, match="'thp': huge pages are off: 'echo madvise"):
        require_installed(["thp"])
    (tmp_path / "enabled").write_text("[always] madvise never")
    with pytest.raises(RequestError, match="gives huge pages to all: use 'glibc-keep'"):
        require_installed(["thp"])
    (tmp_path / "enabled").write_text("always [madvise] never")
    require_installed(["thp"])
    assert variables("thp", {"GLIBC_TUNABLES": "glibc.rtld.nns=2"})["GLIBC_TUNABLES"] == (
        "glibc.rtld.nns=2:glibc.malloc.hugetlb=1"
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
def test_kernels_are_started_with_their_allocator(warm: bool, tmp_path: Path) -> None:
    """Forked kernels as well: from a process that was started with it."""
    look = "from scalebench_lib.allocators import require_loaded; print(require_loaded(allocator))"
    source = notebook(tmp_path / "in.ipynb", look)
    with Kernels(warm=warm) as kernels:
        for name in ("glibc-keep", *installed()[:1]):
            printed = run_notebook(kernels, source, tmp_path / "out.ipynb", allocator=name)
            assert printed == "None\n"
        assert kernels.warning is None
        assert len(kernels._fork_servers) == warm * (1 + len(installed()[:1]))


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
    run_rounds([prepared], lambda _: None)
    records = load_records(tmp_path)
    assert {(r.status, r.reason, r.kernel) for r in records} == {("ok", None, "warm")}
    told = {r.config.allocator: r.software.libraries["malloc"] for r in records}
    assert told.keys() == {"default", *names}
    for name in names:
        assert told[name].startswith(f"lib{name}")
        assert told["default"] != told[name]
    assert sorted(Results.load(tmp_path).table["allocator"]) == sorted(told)
