"""Waiting for other processes, but not for ever."""

import time
from collections.abc import Callable


def wait_until(happened: Callable[[], object], seconds: float = 240) -> None:
    """Return when `happened()` is true; fail where that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
