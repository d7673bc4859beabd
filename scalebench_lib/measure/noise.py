"""Measure the noise of this machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

PROBE_SECONDS = 10.0

QUIET = 1.15
"""A machine is quiet if its times stay below this ratio to the best."""


class Noise(NamedTuple):
    """Times of a fixed piece of work in ms: the 5th, 50th and 99th percentile."""

    best: float
    typical: float
    worst: float

    @property
    def advice(self) -> str:
        """One sentence: the error to expect of measurements made now, and what to do."""
        if self.worst / self.best < QUIET:
            return "Quiet: measurements made now will repeat well."
        if self.typical / self.best < QUIET:
            return "Disturbed at times: use more seconds a point (--max-seconds)."
        return "Noisy: others use this machine, or its clock changes; stop them, or wait."


def probe_noise(seconds: float = PROBE_SECONDS) -> Noise:
    """Time a small matrix product over and over for `seconds`."""
    left, right = np.ones((16, 768), np.float32), np.ones((768, 3072), np.float32)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(8):
            _ = left @ right
        times.append((time.perf_counter() - start) * 1e3)
    return Noise(*map(float, np.percentile(times, (5, 50, 99))))
