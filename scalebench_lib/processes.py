"""Processes: signalled, ended with the one that started them, and why they died."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from scalebench_lib.errors import reason_in
from scalebench_lib.machine import control_groups, search_file

OUT_OF_MEMORY = "out of memory"
"""How the reason begins of every trial that ended for lack of memory."""

KILLED = "killed by signal"
"""How the reason begins of every trial whose kernel a signal ended."""

_PR_SET_PDEATHSIG = 1
_NO_MEMORY = re.compile(r"can't allocate memory|bad_alloc|failed to allocate memory", re.I)
_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def ensure_home() -> None:
    """Give a user without a home, as in some containers, one in the temporary folder.

    Libraries end with a traceback where there is none.
    """
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"scalebench-home-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        ours = home.lstat().st_uid == os.getuid()
        os.environ["HOME"] = str(home) if ours else tempfile.mkdtemp(prefix="scalebench-home-")


def die_with_parent() -> None:
    """Have the operating system kill this process when its parent ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def mute_terminal() -> None:
    """Write nothing more to a terminal: to one that has closed it would be an error."""
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def signal_group(leader: int, number: int) -> None:
    """Send signal `number` to the process group of `leader`; nothing where it has ended."""
    with suppress(ProcessLookupError, PermissionError):  # its end is seen elsewhere
        os.killpg(leader, number)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and the rest of the group that it leads; wait for its end."""
    signal_group(process.pid, signal.SIGKILL)
    process.wait()


def prefer_to_kill(pid: int, preferred: bool) -> None:
    """Have the system, if memory runs out, end this process before others; or no longer."""
    with suppress(OSError):  # not Linux, or it has just ended
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000" if preferred else "0")


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has held so far; 0 if the system does not tell."""
    return 1024 * int(search_file(Path(f"/proc/{pid}/status"), r"^VmHWM:\s+(\d+) kB") or 0)


def cause_of_death(process: subprocess.Popen[bytes], output: str = "") -> str:
    """Wait for `process`; return what ended it, with the last line of its `output`."""
    code = process.wait()
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
    lines = output.strip().splitlines()
    return f"{how}: {lines[-1]}" if lines else how


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else "a real-time signal"


def oom_kills(root: Path = Path("/")) -> int:
    """Return how often the system has ended a process of this control group for lack of memory.

    Without a control group that counts them, it is those of the whole system; else 0.
    """
    files = [
        folder / name
        for folder in control_groups(root, "memory")
        for name in ("memory.events", "memory.oom_control")
    ]
    counts = (search_file(path, r"^oom_kill (\d+)$") for path in (*files, root / "proc/vmstat"))
    return int(next(filter(None, counts), 0))


def kernel_exit_reason(code: int | None, oom_kills_before: int) -> str:
    """Return why a kernel has ended, by its exit `code` (negative: a signal)."""
    if code is None:
        return "the kernel stopped answering"
    if code >= 0:
        return f"the kernel died with exit code {code}"
    if -code == signal.SIGKILL and oom_kills() > oom_kills_before:
        return f"{OUT_OF_MEMORY}: the system killed the kernel"
    return f"{KILLED} {-code} ({_signal_name(-code)})"


def exception_reason(ename: str, evalue: str) -> str:
    """Return the reason for an exception in a notebook, in one line."""
    line = f"{ename}: {reason_in(evalue)}"
    short_of_memory = ename == "MemoryError" or _NO_MEMORY.search(evalue)
    return f"{OUT_OF_MEMORY}: {line}" if short_of_memory else line


def parse_disk_error(ename: str, evalue: str) -> OSError | None:
    """Return the error of a disk that is full or cannot be written, if an exception is one."""
    found = re.match(r"\[Errno (\d+)\]", evalue)
    number = int(found[1]) if found else 0
    is_disk = ename in ("OSError", "PermissionError") and number in _NO_DISK
    return OSError(number, os.strerror(number)) if is_disk else None
