"""How many machines serve a rate, and what a million requests cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, isfinite
from typing import Any

from scalebench_lib.errors import RequestError
from scalebench_lib.stats import Interval
from scalebench_lib.text import format_number, pluralize

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
    return machines, per_million(machines * price_per_hour, rate or usable)


def per_million(price_per_hour: float, rate: Any) -> Any:
    """Return what a million requests cost at `rate` requests/s: a number, or a column of them."""
    return price_per_hour / 3600 / rate * 1e6


def cost_lines(highest: Mapping[str, Interval], price: float, rate: float = 0.0) -> Iterator[str]:
    """Yield what a million requests cost with each of what serves `highest`, the cheapest first."""
    yield f"Cost per million requests, {price:g} an hour, {MARGIN:.0%} left unused:"
    fleets = {name: fleet(most, price, rate) for name, most in highest.items()}
    for name, (machines, cost) in sorted(fleets.items(), key=lambda each: each[1][1]):
        most = f"{pluralize(machines, 'machine')} of {format_number(highest[name].value)}/s at most"
        yield f"  {format_number(cost)} with {name}: {most}"
