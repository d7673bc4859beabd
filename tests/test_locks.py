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
from scalebench_lib.sweep.locks import folder_to_itself, machine_to_itself, socket_folder
from tests.waiting import wait_until


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that has both the folder and the machine."""
    monkeypatch.setenv(locks.PLACE, str(tmp_path))
    code = (
        "import sys, time; from pathlib import Path; "
        "from scalebench_lib.sweep.locks import folder_to_itself, machine_to_itself\n"
        "with folder_to_itself(Path(sys.argv[1])), machine_to_itself('outputs/other'):\n"
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
    with pytest.raises(RequestError, match=f"process {other.pid}"), folder_to_itself(tmp_path):
        pass
    with pytest.raises(RequestError, match=f"outputs/other .process {other.pid}.*--if-busy wait"):
        machine_to_itself("mine").__enter__()
    assert time.monotonic() - start < 1
    other.send_signal(signal.SIGKILL)
    other.wait()
    with folder_to_itself(tmp_path), machine_to_itself("mine"):
        pass


def test_the_second_may_go_on_beside_the_first_or_wait_for_it(other, tmp_path, monkeypatch) -> None:
    """If it is told to."""
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.05)
    with machine_to_itself("mine", "beside"):
        assert other.poll() is None
    other.send_signal(signal.SIGKILL)
    with machine_to_itself("mine", "wait"):
        wait_until(lambda: other.poll() is not None)


def test_sockets_lie_where_nobody_else_can_enter(tmp_path, monkeypatch) -> None:
    """Under a name that nobody can guess, short enough for a socket."""
    monkeypatch.setenv(locks.PLACE, str(tmp_path / ("long" * 40)))
    (tmp_path / ("long" * 40)).mkdir()
    folder = socket_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(folder)) < 60
    folder.rmdir()


def test_a_machine_without_a_place_for_its_lock_says_what_to_do(tmp_path, monkeypatch) -> None:
    """Rather than measure without."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(locks.PLACE, str(tmp_path / "file" / "folder"))
    with pytest.raises(RequestError, match=f"set {locks.PLACE} to a folder of your own"):
        machine_to_itself("mine").__enter__()
