"""Numbers as they are told to people."""

from __future__ import annotations

import re

from scalebench_lib.errors import RequestError


def format_number(value: float, digits: int = 3) -> str:
    """So many significant digits, or all of a whole number: ``0.123``, ``12.3``, ``1,234``."""
    whole = value >= 10**digits / 10 - 0.05
    return f"{value:,.0f}" if whole else f"{value:#.{digits}g}"


def pluralize(count: int, thing: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def format_duration(seconds: float) -> str:
    """``45 s``, ``10 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_duration(name: str, text: str | None) -> float | None:
    """Return ``90``, ``90s``, ``10m`` or ``2h`` in seconds; a `RequestError` calls it `name`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or float(found[1]) == 0:
        raise RequestError(f"{name}: must be like 90s, 10m or 2h, not {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
