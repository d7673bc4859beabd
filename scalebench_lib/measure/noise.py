"""What this machine can measure, and how noisy it is now."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

PROBE_SECONDS = 10.0


class Noise(NamedTuple):
    """How long a fixed piece of work took, in ms: at best, typically, and at worst."""

    best: float
    typical: float
    worst: float

    @property
    def slowdown(self) -> float:
        """How much slower than at its best the machine typically is: 0.1 is 10 %."""
        return self.typical / self.best - 1

    @property
    def advice(self) -> str:
        """One sentence: what to expect of measurements made now, and what to do."""
        if self.worst / self.best < QUIET:
            return "Quiet: measurements made now will repeat well."
        if self.typical / self.best < QUIET:
            return "Disturbed at times: use more seconds a point (--max-seconds)."
        return "Noisy: others use this machine, or its clock changes; stop them, or measure later."


QUIET = 1.15
"""Up to this ratio to the best time a machine is quiet."""


def probe_noise(seconds: float = PROBE_SECONDS) -> Noise:
    """Time a small matrix product over and over for `seconds`."""
    left = np.ones((16, 768), dtype=np.float32)
    right = np.ones((768, 3072), dtype=np.float32)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(8):
            _ = left @ right
        times.append((time.perf_counter() - start) * 1e3)
    best, typical, worst = np.percentile(times, (5, 50, 99))
    return Noise(float(best), float(typical), float(worst))
