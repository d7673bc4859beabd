"""One sweep at a time: real processes, kills included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalebench_lib.errors import RequestError
from scalebench_lib.sweep import locks
from scalebench_lib.sweep.locks import lock_folder, lock_machine, make_socket_folder
from tests.waiting import wait_until


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that has both the folder and the machine."""
    monkeypatch.setenv(locks.RUNTIME_DIR, str(tmp_path))
    code = (
        "import sys, time; from pathlib import Path; "
        "from scalebench_lib.sweep.locks import lock_folder, lock_machine\n"
        "with lock_folder(Path(sys.argv[1])), lock_machine('outputs/other'):\n"
        "    print('there', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


def test_the_second_is_refused_at_once_and_told_whom_to_wait_for(other, tmp_path) -> None:
    """Within a second, by process id; a kill leaves no stale lock."""
    start = time.monotonic()
    with pytest.raises(RequestError, match=f"process {other.pid}"), lock_folder(tmp_path):
        pass
    with pytest.raises(RequestError, match=f"outputs/other .process {other.pid}.*--if-busy wait"):
        lock_machine("mine").__enter__()
    assert time.monotonic() - start < 1
    other.send_signal(signal.SIGKILL)
    other.wait()
    with lock_folder(tmp_path), lock_machine("mine"):
        pass


def test_the_second_may_ignore_the_first_or_wait_for_it(other) -> None:
    with lock_machine("mine", "ignore"):
        assert other.poll() is None
    other.send_signal(signal.SIGKILL)
    with lock_machine("mine", "wait"):
        wait_until(lambda: other.poll() is not None)


def test_sockets_lie_where_nobody_else_can_enter(tmp_path, monkeypatch) -> None:
    """Under a name that nobody can guess, short enough for a socket."""
    monkeypatch.setenv(locks.RUNTIME_DIR, str(tmp_path / ("long" * 40)))
    (tmp_path / ("long" * 40)).mkdir()
    folder = make_socket_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(folder)) < 60
    folder.rmdir()


def test_a_machine_without_a_place_for_its_lock_says_what_to_do(tmp_path, monkeypatch) -> None:
    """Rather than measure without."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(locks.RUNTIME_DIR, str(tmp_path / "file" / "folder"))
    with pytest.raises(RequestError, match=f"set {locks.RUNTIME_DIR} to a folder of your own"):
        lock_machine("mine").__enter__()
