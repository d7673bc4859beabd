"""Why a kernel died."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from scalebench_lib import processes
from scalebench_lib.processes import (
    cause_of_death,
    ensure_home,
    exception_reason,
    kernel_exit_reason,
    oom_kills,
    parse_disk_error,
)


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/ours", {"sys/fs/cgroup/ours/memory.events": "oom 4\noom_kill 3\n"}),
        ("4:memory:/ours", {"sys/fs/cgroup/memory/ours/memory.oom_control": "oom_kill 3\n"}),
        ("0::/hidden", {"sys/fs/cgroup/memory.events": "oom_kill 3\n"}),
        ("0::/hidden", {"proc/vmstat": "pgfault 9\noom_kill 3\n"}),
    ],
)
def test_kills_for_lack_of_memory_are_counted(tmp_path: Path, group: str, files: dict) -> None:
    """Control groups of both versions; else the whole system's."""
    for name, text in {"proc/self/cgroup": group, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert oom_kills(tmp_path) == 3


def test_a_user_without_a_home_gets_one(tmp_path: Path, monkeypatch) -> None:
    """Containers run as user ids that nobody has entered anywhere."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ensure_home()
    assert Path.home().parent == tmp_path
    assert Path.home().stat().st_mode & 0o777 == 0o700


def test_where_nothing_tells_nothing_is_counted(tmp_path: Path) -> None:
    """As on other systems than Linux."""
    assert oom_kills(tmp_path) == 0


def test_a_death_has_its_cause(monkeypatch) -> None:
    """A kill counts as lack of memory only where the system says so."""
    monkeypatch.setattr(processes, "oom_kills", lambda: 3)
    assert kernel_exit_reason(-9, 2) == "out of memory: the system killed the kernel"
    assert kernel_exit_reason(-9, 3) == "killed by signal 9 (SIGKILL)"
    assert kernel_exit_reason(-11, 2) == "killed by signal 11 (SIGSEGV)"
    assert kernel_exit_reason(3, 2) == "the kernel died with exit code 3"
    assert kernel_exit_reason(-40, 2) == "killed by signal 40 (a real-time signal)"


def test_an_instance_that_a_real_time_signal_ends_has_a_reason() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 40)"])
    assert cause_of_death(process, "its last\nwords") == "was killed by a real-time signal: words"


def test_exceptions_for_lack_of_memory_are_out_of_memory_too() -> None:
    """torch's own words among them."""
    torch = "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"
    assert exception_reason("RuntimeError", torch).startswith("out of memory: RuntimeError")
    assert exception_reason("MemoryError", "").startswith("out of memory")
    assert exception_reason("ValueError", "no luck\nat all") == "ValueError: no luck"


def test_a_full_disk_is_told_from_other_errors() -> None:
    """By its number."""
    found = parse_disk_error("OSError", "[Errno 28] No space left on device: 'x'")
    assert found is not None
    assert found.errno == errno.ENOSPC
    assert parse_disk_error("FileNotFoundError", "[Errno 2] No such file") is None
    assert parse_disk_error("ValueError", "[Errno 28]") is None
