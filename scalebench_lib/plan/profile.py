"""The measured points of one model on one machine, as instances that plans can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf, log, nan
from typing import Annotated, Any

import pandas as pd
from pydantic import BeforeValidator

from scalebench_lib.config import AXES, DEFAULTS, WITHIN, axis_value_label
from scalebench_lib.errors import RequestError, did_you_mean
from scalebench_lib.record import Record
from scalebench_lib.stats import VarianceEstimate
from scalebench_lib.text import pluralize

SHARED = (
    *("machine", "model"),
    *(name for name, axis in AXES.items() if axis.splits and not axis.within),
)
"""The columns of the results table in which all instances of a plan are alike."""

NanFromNull = Annotated[float, BeforeValidator(lambda value: nan if value is None else value)]
"""JSON has no NaN: pydantic writes null."""


@dataclass(frozen=True, order=True)
class Instance:
    """A copy of the model on cores of its own, with the latency in ms that it has alone.

    `cores` are whole physical cores: with SMT on and an odd number of threads a sibling idles, as
    it did when the point was measured. `latency_ms` is NaN where the point was not measured.
    Instances are equal where they are run alike, whatever their latencies.
    """

    threads: int
    batch_size: int
    latency_ms: NanFromNull = field(compare=False)
    cores: int
    high_ms: float | None = field(default=None, compare=False)
    optimization: str = "none"
    smt: bool = False
    allocator: str = "default"
    memory_mb: float | None = field(default=None, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Its values of the axes `WITHIN` groups."""
        return {name: getattr(self, name) for name in WITHIN}

    @property
    def variance(self) -> VarianceEstimate:
        """Variance of the latency's logarithm; infinite where no interval was measured."""
        width = inf if self.high_ms is None else log(self.high_ms / self.latency_ms)
        return VarianceEstimate((width / 1.96) ** 2)

    @property
    def label(self) -> str:
        """How it is run: ``2 threads, OpenVINO, SMT on``; other defaults are left out."""
        others = (n for n in WITHIN if n != "optimization" and self.settings[n] != DEFAULTS[n])
        values = (axis_value_label(n, self.settings[n]) for n in ("optimization", *others))
        return ", ".join([pluralize(self.threads, "thread"), *values])

    def __str__(self) -> str:
        return f"({pluralize(self.threads, 'thread')}, batch {self.batch_size})"


@dataclass(frozen=True)
class Profile:
    """The instances of one model on one machine, and their values of `SHARED`."""

    instances: tuple[Instance, ...]
    shared: Mapping[str, Any]

    @property
    def optimizations(self) -> tuple[str, ...]:
        """Every optimization that was measured."""
        return tuple(dict.fromkeys(one.optimization for one in self.instances))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Every batch size that was measured, ascending."""
        return tuple(sorted({one.batch_size for one in self.instances}))

    @property
    def unit(self) -> str:
        """Of throughput: passes that decode give tokens."""
        return "tokens/s" if self.shared.get("phase") == "decode" else "inferences/s"

    def only(self, optimization: str) -> Profile:
        """Return the instances with this optimization; `RequestError` if there are none."""
        found = tuple(one for one in self.instances if one.optimization == optimization)
        if not found:
            raise RequestError(
                f"optimization: no point was measured with {optimization!r}: "
                f"{did_you_mean(optimization, self.optimizations)}"
            )
        return replace(self, instances=found)

    def holds(self, record: Record) -> bool:
        """Return whether the points of `record` are instances of this profile."""
        theirs = {**record.config.model_dump(), "machine": record.machine_name}
        return self.shared.items() <= theirs.items()

    @classmethod
    def of(cls, table: pd.DataFrame, wanted: Mapping[str, Any]) -> Profile:
        """Return the instances in the results `table`; `wanted` chooses if it holds several.

        Its keys are of `SHARED`. Placement is sequential if there is a choice. Raises
        `RequestError` if nothing was measured, or a choice is open.
        """
        rows = table[(table["status"] == "ok") & table["latency_ms"].notna()]
        if rows.empty:
            raise RequestError("the sweep holds no measured point: nothing can be planned from it")
        shared: dict[str, Any] = {}
        for column in SHARED:
            shared[column] = _chosen(rows, column, wanted.get(column))
            rows = rows[rows[column] == shared[column]]
        return cls(tuple(instance_of(row) for row in rows.to_dict("records")), shared)


def _chosen(rows: pd.DataFrame, column: str, wanted: Any) -> Any:
    known = {str(value): value for value in sorted(rows[column].unique().tolist())}
    if wanted is None and "sequential" in known:
        return "sequential"
    if wanted is None and len(known) == 1:
        return next(iter(known.values()))
    if str(wanted) in known:
        return known[str(wanted)]
    there = ", ".join(known)
    if wanted is None:
        raise RequestError(f"the sweep has more than one {column}: choose one of {there}")
    raise RequestError(f"{column}: no point was measured with {wanted!r}: there is {there}")


def instance_of(row: Mapping[Any, Any]) -> Instance:
    """Return the instance of a row of the results table."""
    optional = {"high_ms": row["latency_ms_high"], "memory_mb": row["peak_memory_mb"]}
    others: dict[str, Any] = {n: None if pd.isna(v) else float(v) for n, v in optional.items()}
    others |= {name: row.get(name, DEFAULTS[name]) for name in WITHIN}
    return Instance(
        threads=int(row["threads"]),
        batch_size=int(row["batch_size"]),
        latency_ms=float(row["latency_ms"]),
        cores=ceil(row["cores"]),
        **others,
    )
