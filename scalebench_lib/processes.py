"""Processes: stopped and continued, ended with the one that started them, and why they died."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scalebench_lib.machine import control_groups

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel of the system end this process when its parent ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stand_still(leader: int) -> None:
    """Stop the process group of `leader` until it may `go_on`."""
    _signal_group(leader, signal.SIGSTOP)


def go_on(leader: int) -> None:
    """Continue the process group of `leader`."""
    _signal_group(leader, signal.SIGCONT)


def _signal_group(leader: int, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # its end is seen elsewhere
        os.killpg(leader, signum)


def prefer_to_kill(pid: int, preferred: bool) -> None:
    """Have the system, where memory runs out, end this process before others; or no longer."""
    with suppress(OSError):  # not Linux, or it has just ended
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000" if preferred else "0")


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far; 0 where the system does not tell."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.M):
            return int(found[1]) * 1024
    return 0


def end(process: subprocess.Popen[bytes]) -> None:
    """End `process`, which leads a session of its own, and all that it started; at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cause_of_death(process: subprocess.Popen[bytes], words: str = "") -> str:
    """What ended `process`, and the last line of `words`, what it wrote: for a message."""
    code = process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    lines = words.strip().splitlines()
    return f"{how}: {lines[-1]}" if lines else how


OUT_OF_MEMORY = "out of memory"
"""How the reason begins of every trial that ended for lack of memory."""

KILLED = "killed by signal"
"""How the reason begins of every trial whose kernel a signal ended."""

_NO_MEMORY = re.compile(r"can't allocate memory|bad_alloc|failed to allocate memory", re.I)
_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def oom_kills(root: Path = Path("/")) -> int:
    """How often the system has ended a process of this control group for lack of memory.

    Where no control group tells, those of the whole system; 0 where nothing tells.
    """
    for folder in control_groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            if (found := _counted(folder / name)) is not None:
                return found
    return _counted(root / "proc/vmstat") or 0


def _counted(path: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) if found else None


def exit_reason(code: int | None, oom_kills_before: int) -> str:
    """Why a kernel is gone, from its exit `code` (negative: a signal) and what has happened."""
    if code is None:
        return "the kernel stopped answering"
    if code >= 0:
        return f"the kernel died with exit code {code}"
    if -code == signal.SIGKILL and oom_kills() > oom_kills_before:
        return f"{OUT_OF_MEMORY}: the system killed the kernel"
    return f"{KILLED} {-code} ({_signal_name(-code)})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


def error_reason(ename: str, evalue: str) -> str:
    """The reason for an exception in a notebook, in one line."""
    line = f"{ename}: {evalue}".splitlines()[0]
    short_of_memory = ename == "MemoryError" or _NO_MEMORY.search(evalue)
    return f"{OUT_OF_MEMORY}: {line}" if short_of_memory else line


def disk_error(ename: str, evalue: str) -> OSError | None:
    """The error of a disk that is full or cannot be written, if an exception tells of one."""
    found = re.match(r"\[Errno (\d+)\]", evalue)
    if ename in ("OSError", "PermissionError") and found and int(found[1]) in _NO_DISK:
        number = int(found[1])
        return OSError(number, os.strerror(number))
    return None
