"""When requests arrive, in s from the start, and their lengths: set beforehand.

No server can delay them, and every run and simulation has the same.
"""

from __future__ import annotations

import math
import reprlib
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from scalebench_lib.errors import RequestError


def _lengths(value: Any) -> Any:
    """Return the pairs in a text, ascending; values of other types are returned as they are."""
    if not isinstance(value, str):
        return value
    try:
        pairs = sorted(
            (int(n), float(share)) for n, share in (p.split(":") for p in value.split(","))
        )
        lengths, shares = zip(*pairs, strict=True)
        if (
            len(set(lengths)) < len(lengths)
            or lengths[0] < 1
            or not 0 < min(shares) <= math.fsum(shares) < math.inf
        ):
            raise ValueError
    except ValueError:
        raise ValueError(
            "must be lengths in tokens, each once with its share, such as 16:70,128:30, not "
            f"{reprlib.repr(value)}"
        ) from None
    return pairs


Lengths = Annotated[tuple[tuple[int, float], ...], BeforeValidator(_lengths)]
"""Lengths of requests in tokens, ascending, each with its share of them; none: all are alike."""


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


def request_lengths(lengths: Lengths, count: int) -> np.ndarray:
    """Return the lengths of `count` requests, the same each time; 0 where all are alike."""
    if not lengths:
        return np.zeros(count, dtype=int)
    values, shares = np.array(lengths).T
    return np.random.default_rng(1).choice(values.astype(int), count, p=shares / shares.sum())


def lengths_suffix(lengths: Lengths) -> str:
    """Return ``; tokens 16 (70%), 128 (30%)``, to put behind a text; empty where all are alike."""
    total = sum(share for _, share in lengths)
    each = ", ".join(f"{length} ({share / total:.0%})" for length, share in lengths)
    return f"; tokens {each}" * bool(each)


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
