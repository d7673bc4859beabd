"""Whose malloc this process uses, seen from inside."""

import os
import subprocess
import sys

import pytest

from scalebench_lib import allocators
from scalebench_lib.allocators import preload
from scalebench_lib.errors import RequestError
from tests.test_allocators import installed


def require(wanted: str, loaded: str) -> str:
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
    assert require(name, loaded=name) == ""
    assert "start without LD_PRELOAD" in require("default", loaded=name)


def test_an_allocator_that_is_not_loaded_is_refused_with_the_way_to_do_it() -> None:
    """A notebook run by hand with only the parameter set would measure the default."""
    told = require("tcmalloc", loaded="default")
    assert "start with LD_PRELOAD=libtcmalloc_minimal.so.4 papermill" in told
    assert len(told.splitlines()) == 1
    assert require("default", loaded="default") == ""


def test_elsewhere_than_on_linux_there_is_the_default_only(monkeypatch) -> None:
    """Rather than a wrong word in a record."""
    monkeypatch.setattr(allocators.sys, "platform", "darwin")
    allocators.require_loaded("default")
    with pytest.raises(RequestError, match="only Linux"):
        allocators.require_loaded("jemalloc")
