"""What became of a kernel: why it died, and whether that was for lack of memory or of disk."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

from scalebench_lib.machine import control_groups

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


def cause_of_death(code: int | None, oom_kills_before: int) -> str:
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


def told_by(ename: str, evalue: str) -> str:
    """The reason for an exception in a notebook, in one line."""
    line = f"{ename}: {evalue}".splitlines()[0]
    short_of_memory = ename == "MemoryError" or _NO_MEMORY.search(evalue)
    return f"{OUT_OF_MEMORY}: {line}" if short_of_memory else line


def disk_trouble(ename: str, evalue: str) -> OSError | None:
    """The error of a disk that is full or cannot be written, if an exception tells of one."""
    found = re.match(r"\[Errno (\d+)\]", evalue)
    if ename in ("OSError", "PermissionError") and found and int(found[1]) in _NO_DISK:
        number = int(found[1])
        return OSError(number, os.strerror(number))
    return None
