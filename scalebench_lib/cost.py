"""How many machines serve a rate, and what a million requests cost."""

from __future__ import annotations

from math import ceil, isfinite

from scalebench_lib.errors import RequestError
from scalebench_lib.stats import Interval

MARGIN = 0.2
"""The share of a machine's highest rate that is left unused."""


def fleet(highest: Interval, price_per_hour: float, rate: float = 0.0) -> tuple[int, float]:
    """Return how many machines serve `rate` requests/s, and what a million requests cost.

    A machine serves the low end of `highest`, if that is known, less `MARGIN`. Without a rate it is
    one machine that does. Raises `RequestError` for a price or rate that is none.
    """
    for name, value in {"price_per_hour": price_per_hour, "rate": rate}.items():
        if not (isfinite(value) and value >= 0):
            raise RequestError(f"{name}: must be a number of at least 0, not {value}")
    usable = (1 - MARGIN) * (highest.low or highest.value)
    machines = max(1, ceil(rate / usable))
    return machines, machines * price_per_hour / 3600 / (rate or usable) * 1e6
