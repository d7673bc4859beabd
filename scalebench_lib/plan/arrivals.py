"""When requests arrive: set before a load test or a simulation begins, so that nothing delays them.

Times are in s from the start, ascending.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, field_validator

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import RequestError

KINDS = "poisson, constant, or gamma:CV such as gamma:2"


class Arrivals(StrictModel):
    """Requests that arrive at `rate` a second, with gaps of a `kind`; or those of a `trace`.

    The gaps of ``poisson`` are exponential, those of ``gamma:CV`` have that coefficient of
    variation: bursts above 1. The `seed` makes them the same each time.
    """

    rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    kind: str = "poisson"
    trace: str = ""
    seed: int = 0

    @field_validator("kind")
    @classmethod
    def _has_known_gaps(cls, kind: str) -> str:
        _variation(kind)
        return kind

    def times(self, count: int) -> np.ndarray:
        """Return when the first `count` requests arrive; of a trace, those that it has."""
        if self.trace:
            return read_trace(Path(self.trace))[:count]
        gaps = unit_gaps(self.kind, count, self.seed)
        return np.cumsum(gaps) / self.rate

    def within(self, seconds: float) -> np.ndarray:
        """Return when the requests of the first `seconds` arrive, at least one."""
        times = self.times(max(1, round(self.rate * seconds)))
        return times[: max(1, int(np.searchsorted(times, seconds)))] if self.trace else times

    def at(self, rate: float) -> Self:
        """Return the same gaps in proportion, at another rate."""
        return self.model_copy(update={"rate": rate})

    @classmethod
    def of_trace(cls, path: Path) -> Self:
        """Return the arrivals in a file of one time in s a line; `RequestError` if it is wrong."""
        times = read_trace(path)
        return cls.from_input({"rate": len(times) / max(times[-1], 1e-9), "trace": str(path)})

    def __str__(self) -> str:
        return f"the trace {Path(self.trace).name}" if self.trace else f"{self.kind} arrivals"


def unit_gaps(kind: str, count: int, seed: int) -> np.ndarray:
    """Return `count` gaps of mean 1."""
    if not (variation := _variation(kind)):
        return np.ones(count)
    shape = variation**-2
    return np.random.default_rng(seed).gamma(shape, 1 / shape, count)


def _variation(kind: str) -> float:
    """Return the coefficient of variation of the gaps."""
    name, _, value = kind.partition(":")
    try:
        found = {"poisson": 1.0, "constant": 0.0}[kind] if not value else float(value)
        if value and not (name == "gamma" and 0.01 <= found <= 100):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(f"must be {KINDS} (0.01 to 100), not {kind!r}") from None
    return found


def read_trace(path: Path) -> np.ndarray:
    """Return the times in `path`, one a line; `RequestError` says which line is wrong."""
    try:
        times = np.loadtxt(path, dtype=float, ndmin=1)
    except OSError as error:
        raise RequestError(f"trace: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise RequestError(f"trace: {path} must hold one time in s a line: {error}") from None
    if not times.size or times.ndim > 1:
        raise RequestError(f"trace: {path} must hold one time in s a line, at least one")
    wrong = ~np.isfinite(times) | (times < 0) | (np.diff(times, prepend=0.0) < 0)
    if wrong.any():
        line = int(np.argmax(wrong))
        raise RequestError(
            f"trace: time {line + 1} in {path} is {times[line]:g}: times in s must ascend from 0"
        )
    return times
