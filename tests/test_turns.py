"""Processes in turns: real ones, looked at from outside."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from scalebench_lib.turns import in_turns

BUSY = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"


def busy(code: str = BUSY) -> subprocess.Popen:
    """A process that computes, in a group of its own."""
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def worker(process: subprocess.Popen):
    """Waits for the end of `process`, whose turns are told."""

    def work(started) -> int:
        started(process.pid)
        return process.wait(timeout=30)

    return work


def running(processes: list[subprocess.Popen]) -> int:
    """How many of `processes` do not stand still."""
    states = [psutil.Process(p.pid).status() for p in processes if p.poll() is None]
    return sum(state not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) for state in states)


def test_only_one_runs_at_a_time_and_all_come_to_their_end() -> None:
    """But for the moment that a signal takes."""
    processes, seen = [busy(), busy()], []
    with ThreadPoolExecutor(1) as pool:
        workers = {str(n): worker(process) for n, process in enumerate(processes)}
        found = pool.submit(in_turns, workers, 0.2)
        time.sleep(0.2)
        while not found.done():
            try:
                seen.append(running(processes))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.01)
        assert found.result() == {"0": 0, "1": 0}
    assert sum(one > 1 for one in seen) < len(seen) / 3


def test_a_worker_that_fails_leaves_no_other_standing_still() -> None:
    """Its exception is raised when all have ended."""
    process = busy()

    def fail(started) -> None:
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        in_turns({"fails": fail, "goes on": worker(process)}, 0.05)
    assert process.poll() == 0


def test_a_process_that_is_gone_has_no_turn() -> None:
    """And takes none from the others."""
    gone = busy("pass")
    gone.wait()
    assert in_turns({"gone": worker(gone), "there": worker(busy())}, 0.05) == {
        "gone": 0,
        "there": 0,
    }
