"""What all tests share."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from scalebench_lib import cli
from scalebench_lib.sweep.locks import RUNTIME_DIR
from tests.browser import NAMES, found, launched

if TYPE_CHECKING:
    from scalebench_lib.sweep.kernels import Kernels

_LIGHT_FORK_SERVER = (
    "from scalebench_lib.sweep import forkserver\n"
    "forkserver.IMPORTS, forkserver.reseed = ('ipykernel.kernelapp',), lambda: None\n"
    "forkserver.main()"
)


@pytest.fixture(autouse=True, scope="session")
def _a_runtime_folder_of_our_own(tmp_path_factory: pytest.TempPathFactory):
    """Tests neither wait for sweeps of this machine nor hold them up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUNTIME_DIR, str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _exports_of_our_own(tmp_path_factory: pytest.TempPathFactory):
    """Tests export and compile into a folder of this run, never into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        patch.setenv("SCALEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _the_environment_is_put_back() -> Iterator[None]:
    """Engines set variables when they are imported, which later tests would find recorded; and
    what was pinned would be another machine to them."""
    before, cpus = dict(os.environ), getattr(os, "sched_getaffinity", lambda _: ())(0)
    yield
    if cpus:
        os.sched_setaffinity(0, cpus)
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({n: v for n, v in before.items() if n != "PYTEST_CURRENT_TEST"})


@pytest.fixture(scope="session")
def warm() -> Iterator["Kernels"]:
    """Kernels forked from one fork server, which takes seconds to start."""
    from scalebench_lib.sweep.kernels import Kernels  # not every test waits for papermill

    with Kernels(warm=True) as made:
        yield made
        assert made.warning is None


@pytest.fixture
def light_fork_server(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fork servers import what a kernel needs alone: return the command that starts them."""
    command = ["-c", _LIGHT_FORK_SERVER]
    monkeypatch.setattr("scalebench_lib.sweep.kernels.COMMAND", command)
    return command


@pytest.fixture
def scalebench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process: its exit code, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(cli.console, "_file", None)  # `file` is read as what it is now
        monkeypatch.setattr(sys, "argv", ["scalebench", *map(str, arguments)])
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as left:
            cli.main()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run


class _SignalStack(ctypes.Structure):
    """``stack_t`` of ``sigaltstack``."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def _signals_have_a_stack() -> None:
    """OpenVINO leaves the alternate signal stack of its process where nothing is mapped any more:
    the next signal that Python handles would crash. Without one they take the usual stack."""
    if sys.platform == "linux" and "openvino" in sys.modules:
        off = _SignalStack(None, 2, 0)  # SS_DISABLE
        ctypes.CDLL(None).sigaltstack(ctypes.byref(off), None)


@pytest.fixture
def heeding_interrupts() -> Iterator[None]:
    """Started in the background, a shell may have us ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, in this process, takes any model for measurable: to ask takes seconds."""
    monkeypatch.setattr(
        "scalebench_lib.sweep.sweep_run.SweepRun.require_measurable", lambda run: None
    )


@pytest.fixture
def kernels_for_all(warm: "Kernels", monkeypatch: pytest.MonkeyPatch, any_model: None) -> None:
    """The command, in this process, takes the kernels that are there."""
    monkeypatch.setattr("scalebench_lib.sweep.progress.Kernels", lambda *_: nullcontext(warm))


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Pages whose PNG files are empty: to draw them takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalebench_lib.analysis.page.draw", lambda chart: mock.Mock(png=bytes))
        yield


@pytest.fixture(scope="module")
def browser():
    """One for a module, and ended with it: other tests need asyncio."""
    if not found():
        names = ", ".join(NAMES)
        pytest.skip(f"no browser: none of {names} is on the PATH; .ci/run installs one as root")
    with launched() as running:
        yield running
