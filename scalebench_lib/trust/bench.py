"""Visits made on purpose, rather than by a sweep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scalebench_lib.config import Config
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS, OUTPUTS
from scalebench_lib.record import Record, next_visit
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.turns import Started

NO_EARLY_STOP = 1e-6
"""A ``target_ci`` that nothing reaches: the visit takes all of its time."""


@dataclass
class Bench:
    """Visits into `folder`, made on purpose rather than by a sweep."""

    folder: Path
    kernels: Kernels

    def visit(
        self,
        threads: Iterable[int],
        seconds: float,
        name: str = "visit",
        started: Started = lambda process: None,
        thorough: bool = True,
        **config: Any,
    ) -> Record:
        """Measure one config for `seconds` a point; raises `MeasurementError` if it fails.

        Visits of one `name` lie in a folder of their own, one after another.
        """
        folder = self.folder / name
        visit = f"{Config(**config).id}-v{(number := next_visit(folder, Config(**config)))}"
        limits = {"threads": list(threads), "max_seconds": seconds, "target_ci": NO_EARLY_STOP}
        rest = {"out": str(folder), "visit": number, "thorough": thorough}
        parameters = {**config, **limits, **rest}
        target = folder / "notebooks" / f"{visit}.ipynb"
        self.kernels.run(NOTEBOOKS / "measure.ipynb", target, parameters, started=started)
        return Record.load(folder / "records" / f"{visit}.json")


def new_folder(out: str) -> Path:
    """Folder `out`, or the first of ``outputs/trust-1``, ``-2`` … that does not exist yet."""
    numbers = (OUTPUTS / f"trust-{number}" for number in count(1))
    return Path(out) if out else next(folder for folder in numbers if not folder.exists())


def two_counts() -> tuple[int, ...]:
    """The thread counts that the experiments use: one, and the next."""
    return Machine.here().thread_counts("auto")[:2]
