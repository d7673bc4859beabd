"""Processes that take turns on one machine: each runs for a slice while the others stand still.

A machine's speed drifts over seconds, so what is compared has to meet the same seconds. Whole
processes, set-up and all, are stopped and continued by signals; none of them has to know.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Started = Callable[[int], None]
"""A worker calls it with the id of its process, which leads a group of its own."""

Worker = Callable[[Started], Any]


@dataclass
class Turns:
    """Process groups by name, each with the length of its slice in seconds.

    A group that joins stands still until its turn comes.
    """

    slices: Mapping[str, float]
    groups: dict[str, int] = field(default_factory=dict)

    def join(self, name: str, process: int) -> None:
        """Stop the group of `process`; from now on it runs in its slices only."""
        self.groups[name] = process
        _signal(process, signal.SIGSTOP)

    def run_while(self, unfinished: Callable[[], bool]) -> None:
        """Let the groups take turns; in the end all of them go on."""
        try:
            while unfinished():
                for name in list(self.groups) or [""]:
                    self._slice(name)
        finally:
            for process in self.groups.values():
                _signal(process, signal.SIGCONT)

    def _slice(self, name: str) -> None:
        process = self.groups.get(name)
        if process is None:
            time.sleep(_IDLE)
        elif _signal(process, signal.SIGCONT):
            time.sleep(self.slices[name])
            _signal(process, signal.SIGSTOP)
        else:
            del self.groups[name]


_IDLE = 0.02


def in_turns(workers: Mapping[str, Worker], slice_s: float) -> dict[str, Any]:
    """Run `workers` side by side, in slices of `slice_s` seconds; their results by name.

    The first exception of a worker is raised, after all have ended.
    """
    turns = Turns(dict.fromkeys(workers, slice_s))
    with ThreadPoolExecutor(max_workers=len(workers)) as pool:
        futures: dict[str, Future[Any]] = {
            name: pool.submit(work, partial(turns.join, name)) for name, work in workers.items()
        }
        turns.run_while(lambda: not all(future.done() for future in futures.values()))
    return {name: future.result() for name, future in futures.items()}


def _signal(process: int, signum: int) -> bool:
    with suppress(ProcessLookupError):
        os.killpg(process, signum)
        return True
    with suppress(ProcessLookupError):  # it does not lead its group yet
        os.kill(process, signum)
        return True
    return False
