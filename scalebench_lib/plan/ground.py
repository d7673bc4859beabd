"""What a decision stands on: the request, the sweep's profile, and what was learned before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Core, Machine
from scalebench_lib.numerals import counted, number
from scalebench_lib.plan.candidates import candidates, fastest, fat, thin
from scalebench_lib.plan.interference import Interference, Observation
from scalebench_lib.plan.planner import Plan, Planner
from scalebench_lib.plan.profile import Profile
from scalebench_lib.plan.proof import Limits, Proof, Say
from scalebench_lib.record import Record
from scalebench_lib.results import Results
from scalebench_lib.words import Whole, Words

CANDIDATES = 3
"""How many plans a proof runs beside the baselines."""


class Request(Words):
    """What is asked: the best plan for `batch_size`, or of most throughput within `slo_ms`.

    `threads` counts physical cores. What is not given is 0 or empty: all cores, any
    optimization, and the only model, size of items and machine that there is.
    """

    batch_size: Whole = 0
    threads: Whole = 0
    optimization: str = ""
    slo_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.0
    machine: str = ""
    model: str = ""
    seq_len: Whole = 0
    image_size: Whole = 0
    placement: str = ""

    @classmethod
    def of(cls, **values: Any) -> Request:
        """Check `values` (None: not given); `RequestError` where they are wrong or too few."""
        given = {name: value for name, value in values.items() if value is not None}
        if not {"batch_size", "slo_ms"} & given.keys():
            raise RequestError("name a batch size, or a latency limit with slo_ms, or both")
        return cls.checked(given)


@dataclass(frozen=True)
class Ground:
    """What a decision stands on: the profile, the cores to use, and what was learned before."""

    out: Path
    profile: Profile
    machine: Machine
    cores: int
    records: tuple[Record, ...]
    learned: Interference

    @classmethod
    def load(cls, out: Path, request: Request) -> Ground:
        """Read what the sweep in `out` has for `request`; `RequestError` says what it lacks."""
        results = Results.load(out)
        profile = Profile.of(results.table, **request.model_dump())
        machine = _machine(profile, results.table, results.records)
        most = machine.max_threads(smt=False)
        records = tuple(results.records)
        return cls(out, profile, machine, most, records, Interference.load(out))

    def narrowed(self, request: Request) -> Ground:
        """Only the cores and the optimization that `request` allows."""
        if request.threads > self.cores:
            raise RequestError(
                f"threads: {request.threads} is more than the "
                f"{counted(self.cores, 'core')} of {self.profile.machine}, "
                f"where this sweep was measured: use at most {self.cores}"
            )
        profile = self.profile.only(request.optimization or None)
        return replace(self, profile=profile, cores=request.threads or self.cores)

    @cached_property
    def planner(self) -> Planner:
        """Plans with the slow-down that was learned so far."""
        return Planner(self.profile.options, self.cores, self.exponent)

    @property
    def exponent(self) -> float:
        """How instances slow each other down; see `planner`."""
        return self.learned.exponent(self.profile)

    @property
    def seen(self) -> list[Observation]:
        """The plans of this profile's model that were run, by batch size."""
        runs = self.learned.about(self.profile)
        return sorted(runs, key=lambda run: sum(one.batch_size for one in run.instances))

    def known(self, plan: Plan) -> Plan:
        """`plan` with what its own run taught, if it was run."""
        return self.learned.known(plan, self.profile)

    def fastest(self, batch_size: int) -> Plan:
        """The best plan for `batch_size`, with what is known of it."""
        return fastest(self.planner, self.profile, batch_size, self.learned)

    def frontier(self) -> list[Plan]:
        """Plans that none beats in both latency and throughput, with what is known of each."""
        return self.planner.frontier(self.known)

    def best(self, request: Request) -> Plan:
        """The best plan; `RequestError` where there is none, with the nearest that there is."""
        if not request.batch_size:
            return self.planner.under(request.slo_ms, self.known)
        best = self.fastest(request.batch_size)
        if request.slo_ms and best.predicted_ms > request.slo_ms:
            less = self.planner.under(request.slo_ms, self.known)
            raise RequestError(
                f"slo_ms: batch {request.batch_size} takes {number(best.predicted_ms, 4)} ms "
                f"at least; within {request.slo_ms:g} ms the largest is batch {less.batch_size} "
                f"in {number(less.predicted_ms, 4)} ms, {less}"
            )
        return best

    def candidates(self, batch_size: int) -> list[Plan]:
        """The plans that promise most, the best first."""
        return candidates(self.planner, self.profile, batch_size, self.learned)[:CANDIDATES]

    def fat(self, batch_size: int) -> Plan | None:
        """The one-instance baseline with what is known of it, if it was profiled."""
        plan = fat(self.profile, self.cores, batch_size)
        return plan and self.known(plan)

    def thin(self, batch_size: int) -> Plan | None:
        """The baseline of one thread an instance with what is known of it, if there is one."""
        plan = thin(self.profile, self.cores, batch_size, self.exponent)
        return plan and self.known(plan)

    def proof(self, limits: Limits, say: Say) -> Proof:
        """The means to run plans here; `RequestError` where the sweep is of another machine."""
        here = Machine.here()
        if not self.records:
            raise RequestError("this sweep was imported: only one measured here can be verified")
        if differs := self.machine.differs_from(here):
            raise RequestError(
                f"this sweep was measured on {self.machine.title}, which differs from this machine "
                f"in its {differs}: verify there, or measure here"
            )
        record = next(one for one in self.records if one.points and self.profile.is_of(one))
        return Proof(record.config, here, limits, say)


def _machine(profile: Profile, table: pd.DataFrame, records: Iterable[Record]) -> Machine:
    """The machine of the records; of an imported sweep what its rows tell of one."""
    for record in records:
        if record.machine_name == profile.machine:
            return record.machine
    rows = table[(table["machine"] == profile.machine) & (table["status"] == "ok")]
    count = int(np.ceil(rows["cores"].max()))
    width = int(np.ceil((rows["threads"] / rows["cores"]).max()))
    cores = [Core(cpus=tuple(range(first, width * count, count))) for first in range(count)]
    unknown = {"system": "unknown", "kernel": "unknown", "architecture": "unknown"}
    return Machine(cpu_model=profile.machine, cores=tuple(cores), memory_bytes=1, **unknown)
