"""scalebench: how fast does a model run on this machine?

The way of the data, and the order to read the library in:
``config`` → ``sweep.runner`` → ``measure.trial`` → ``record`` → ``results`` → ``analysis.figures``.

The names of `__all__` are for notebooks and scripts; each is loaded when it is first used:

>>> from scalebench_lib import Results, conclusions
>>> results = Results.load(Path("outputs/mine"))      # doctest: +SKIP
>>> results.table[["batch_size", "latency_ms"]]       # doctest: +SKIP
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Config", "Sweep", "Trial"), "config"),
    "Machine": "machine",
    "Record": "record",
    "Results": "results",
    "find_sweep": "notebook",
    **dict.fromkeys(("recommendations", "conclusions"), "analysis.findings"),
    "Explorer": "analysis.explorer",
    "write_page": "analysis.page",
    "compare": "analysis.compare",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
