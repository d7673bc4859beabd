"""When requests arrive, in s from the start: set beforehand, so that no server can delay them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from scalebench_lib.errors import RequestError


def arrival_times(kind: str, rate: float, count: int) -> np.ndarray:
    """Return when `count` requests arrive at `rate` a second, the same each time.

    The gaps of ``poisson`` are exponential, those of ``gamma:CV`` have that coefficient of
    variation, more than 1 for bursts. Raises `RequestError` for another `kind`.
    """
    name, _, value = kind.partition(":")
    try:
        variation = {"poisson": 1.0, "constant": 0.0}[kind] if name != "gamma" else float(value)
        if name == "gamma" and not 0.01 <= variation <= 100:
            raise ValueError
    except (KeyError, ValueError):
        raise RequestError(
            f"arrivals: must be poisson, constant, or gamma:CV with 0.01 to 100, not {kind!r}"
        ) from None
    shape = variation**-2 if variation else 0
    gaps = np.random.default_rng(0).gamma(shape, 1 / shape, count) if shape else np.ones(count)
    return np.cumsum(gaps / rate)


def read_trace(path: Path) -> np.ndarray:
    """Return the times in s in `path`, one a line; `RequestError` says what is wrong."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of an empty file
            times = np.loadtxt(path, ndmin=1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"trace: {path} must hold one time in s a line: {why}") from None
    if not times.size or times.ndim > 1:
        raise RequestError(f"trace: {path} must hold one time in s a line, and at least one")
    wrong = ~np.isfinite(times) | (np.diff(times, prepend=0.0) < 0)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise RequestError(
            f"trace: the times in {path} must ascend from 0, but number {first + 1} is "
            f"{times[first]:g}: sort them"
        )
    return times
