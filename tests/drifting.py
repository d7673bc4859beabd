"""Sweeps of a machine that drifts: simulated with the noise that real ones were seen to have.

The machine's slowness wanders over minutes by some per cent. On top come noise of each pass, a
difference between processes, and spikes. A trial meets its own minutes: these sweeps are as far
apart as two sweeps of different hours.
"""

from collections.abc import Mapping
from datetime import timedelta

import numpy as np

from scalebench_lib.config import Config
from scalebench_lib.record import Point, Record
from tests import madeup

LEAP_S = 5.0
MACHINE = madeup.machine(cores=2, smt=False)
CONFIGS = madeup.configs(MACHINE, [1, 4, 16])


class Drift:
    """How much slower the machine is than at its best, second by second."""

    def __init__(self, random: np.random.Generator, steps: int = 400) -> None:
        logs = np.zeros(steps)
        for i in range(1, steps):  # back to the middle within about two minutes
            logs[i] = 0.96 * logs[i - 1] + random.normal(0, 0.006)
        self._logs = np.abs(logs)

    def __call__(self, seconds: np.ndarray) -> np.ndarray:
        """The logarithm of the slowness at each of `seconds`."""
        return np.interp(seconds, LEAP_S * np.arange(self._logs.size), self._logs)


def sweep(
    seed: int,
    slower: Mapping[str, float] | float = 1.0,
    rounds: int = 4,
    samples: int = 20,
    process_sd: float = 0.01,
    noise: float = 0.015,
) -> list[Record]:
    """The records of a sweep; `slower` is a factor on all latencies, or by config id."""
    random = np.random.default_rng(seed)
    drift, now, records = Drift(random), random.uniform(0, 1200), []
    for number in range(1, rounds + 1):
        for config in random.permutation(np.array(CONFIGS, dtype=object)):
            factor = slower if isinstance(slower, float) else slower.get(config.id, 1.0)
            points = []
            for threads in (1, 2):
                level = 1e6 * factor * madeup.latency_ms(config, threads)
                level *= np.exp(random.normal(0, process_sd))
                slow = drift(now + np.sort(random.uniform(0, 4, samples)))
                spikes = np.where(random.random(samples) < 0.03, 1.4, 1.0)
                times = level * np.exp(slow + random.normal(0, noise, samples)) * spikes
                points.append(_point(config, threads, times))
                now += LEAP_S
            records.append(_record(config, number, points, now))
    return records


def _point(config: Config, threads: int, times: np.ndarray) -> Point:
    turns = madeup.turns(int(ns) for ns in times)
    return madeup.point(config, MACHINE, threads).model_copy(update={"turns": turns})


def _record(config: Config, number: int, points: list[Point], now: float) -> Record:
    made = madeup.measured(config, MACHINE)
    began = madeup.START + timedelta(seconds=now)
    return made.model_copy(
        update={
            "trial": number,
            "round": number,
            "block": f"{number:08x}",
            "points": tuple(points),
            "started": began,
            "finished": began + timedelta(seconds=2 * LEAP_S),
        }
    )
