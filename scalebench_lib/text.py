"""Numbers as they are told to people."""

from __future__ import annotations


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
