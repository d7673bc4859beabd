"""Ending a sweep in good order: what it has seen so far is kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the sweep is to end after the cycle in flight: at a signal, or a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.signum: int | None = None

    def __call__(self) -> bool:
        """Whether it is to end."""
        return self.asked() or time.monotonic() > self.deadline

    def asked(self) -> bool:
        """Whether a signal has asked for the end."""
        return self.signum is not None

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM ask for the end; the second does what it did before.

        In the end the first one is passed on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for signum, handler in before.items():
                signal.signal(signum, handler)

        def ask(signum: int, frame: FrameType | None) -> None:
            self.signum = signum
            restore()

        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, ask)
        try:
            yield
        finally:
            restore()
        if self.signum is not None:
            signal.raise_signal(self.signum)
