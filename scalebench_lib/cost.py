"""How many machines serve a rate, and what a million requests cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

from scalebench_lib.errors import RequestError
from scalebench_lib.stats import Interval

MARGIN = 0.2
"""The share of a machine's highest rate that is left unused."""


@dataclass(frozen=True)
class Fleet:
    """So many `machines`, all alike; `per_million` requests they cost so much."""

    machines: int
    per_million: float


def fleet(highest: Interval, price_per_hour: float, rate: float = 0.0) -> Fleet:
    """Return the machines for `rate` requests/s, of which one serves `highest` at most.

    Each has the low end of `highest`, if that is known, less `MARGIN`. Without a rate it is one
    machine, as busy as that allows. Raises `RequestError` for a price or rate that is none.
    """
    for name, value in {"price_per_hour": price_per_hour, "rate": rate}.items():
        if not (isfinite(value) and value >= 0):
            raise RequestError(f"{name}: must be a number of at least 0, not {value}")
    usable = (1 - MARGIN) * (highest.low or highest.value)
    machines = max(1, ceil(rate / usable))
    return Fleet(machines, machines * price_per_hour / 3600 / (rate or usable) * 1e6)
