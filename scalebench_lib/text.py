"""Numbers and durations as text for people, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby

from scalebench_lib.errors import RequestError


def format_number(value: float, digits: int = 3) -> str:
    """So many significant digits, or all of a whole number: ``0.123``, ``12.3``, ``1,234``."""
    whole = value >= 10**digits / 10 - 0.05
    return f"{value:,.0f}" if whole else f"{value:#.{digits}g}"


def with_margin(value: float, low: float, high: float) -> str:
    """``9.45 ± 0.45``: the wider side of the interval; the value alone where it has none."""
    text, margin = format_number(value), max(high - value, value - low)
    if not math.isfinite(margin) or margin <= 0:
        return text
    rounded = f"{margin:,.{len(text.partition('.')[2])}f}"
    return f"{text} ± {rounded if re.search('[1-9]', rounded) else format_number(margin, 1)}"


def format_error_db(sqnr_db: float) -> str:
    """``−24``: so far lies an error below the signal; empty where it is not known."""
    return f"{-sqnr_db:+.0f}".replace("-", "−") if math.isfinite(sqnr_db) else ""


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


def cpu_list(cpus: Sequence[int]) -> str:
    """Return ``0-3,8`` for 0, 1, 2, 3, 8, as ``taskset`` and ``numactl`` read it."""
    runs = groupby(enumerate(sorted(cpus)), key=lambda pair: pair[1] - pair[0])
    lists = [[cpu for _, cpu in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in lists)
