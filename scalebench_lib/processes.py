"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

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
