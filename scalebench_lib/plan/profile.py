"""What a plan can be made of: the measured points of one model on one machine, as options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import Any

import pandas as pd

from scalebench_lib.config import DEFAULT_IMAGE_SIZE
from scalebench_lib.errors import RequestError, nearest
from scalebench_lib.record import Record

CHOICES = ("machine", "model", "seq_len", "image_size", "placement")
"""What all instances of a plan have in common."""

_FINEST = 8
"""No core has more hardware threads than this."""


@dataclass(frozen=True)
class InstanceOption:
    """An instance that a plan may have: a profiled point, with its latency in ms.

    `cores` counts physical cores: threads with SMT off, a share of them with SMT on.
    """

    threads: int
    batch_size: int
    latency_ms: float
    cores: float
    low_ms: float | None = None
    high_ms: float | None = None
    optimization: str = "none"
    smt: bool = False
    allocator: str = "default"
    memory_mb: float | None = None

    def __str__(self) -> str:
        return f"⟨{self.threads}, {self.batch_size}⟩"


@dataclass(frozen=True)
class Profile:
    """The options of one model on one machine, and what all of them share."""

    options: tuple[InstanceOption, ...]
    machine: str
    model: str
    seq_len: int
    placement: str
    image_size: int = DEFAULT_IMAGE_SIZE

    @property
    def optimizations(self) -> tuple[str, ...]:
        """Every optimization that was measured."""
        return tuple(dict.fromkeys(option.optimization for option in self.options))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Every batch size that was measured, ascending."""
        return tuple(sorted({option.batch_size for option in self.options}))

    def only(self, optimization: str | None) -> Profile:
        """The options with this optimization (all, for None); `RequestError` if there are none."""
        if optimization is None:
            return self
        found = tuple(one for one in self.options if one.optimization == optimization)
        if not found:
            raise RequestError(
                f"optimization: no point was measured with {optimization!r}: "
                f"{nearest(optimization, self.optimizations)}"
            )
        return replace(self, options=found)

    def is_of(self, record: Record) -> bool:
        """Whether `record` holds options of this profile."""
        mine = {name: getattr(self, name) for name in CHOICES}
        theirs = {**record.config.model_dump(), "machine": record.machine_name}
        return mine.items() <= theirs.items()

    @classmethod
    def of(cls, table: pd.DataFrame, **wanted: Any) -> Profile:
        """The options in the results `table`; `wanted` chooses where it holds several.

        Keys: machine, model, seq_len, image_size, placement. Placement is sequential where there
        is a choice. Raises `RequestError` where nothing was measured, or a choice is open.
        """
        rows = table[(table["status"] == "ok") & table["latency_ms"].notna()]
        if rows.empty:
            raise RequestError("the sweep holds no measured point: nothing can be planned from it")
        found: dict[str, Any] = {}
        for column in CHOICES:
            found[column] = _chosen(rows, column, wanted.get(column))
            rows = rows[rows[column] == found[column]]
        options = tuple(_option(row) for row in rows.to_dict("records"))
        return cls(options, **found)


def _chosen(rows: pd.DataFrame, column: str, wanted: Any) -> Any:
    known = sorted(rows[column].unique().tolist())
    if not wanted and len(known) > 1 and "sequential" in known:
        return "sequential"
    if not wanted and len(known) == 1:
        return known[0]
    if wanted in known:
        return wanted
    there = ", ".join(map(str, known))
    if not wanted:
        raise RequestError(f"the sweep has more than one {column}: choose one of {there}")
    raise RequestError(f"{column}: no point was measured with {wanted!r}: there is {there}")


def _option(row: dict[Any, Any]) -> InstanceOption:
    return InstanceOption(
        threads=int(row["threads"]),
        batch_size=int(row["batch_size"]),
        latency_ms=float(row["latency_ms"]),
        cores=float(row["cores"]),
        low_ms=_number(row["latency_ms_low"]),
        high_ms=_number(row["latency_ms_high"]),
        optimization=row["optimization"],
        smt=bool(row["smt"]),
        allocator=row["allocator"],
        memory_mb=_number(row["peak_memory_mb"]),
    )


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def shares_of_a_core(options: Iterable[InstanceOption]) -> int:
    """Into how many equal shares a core must be cut so that every option takes whole ones."""
    cores = (Fraction(option.cores).limit_denominator(_FINEST) for option in options)
    return lcm(*(share.denominator for share in cores))
