"""How much instances slow each other down, learned from plans that were run.

Kept with the sweep in ``interference.json``. A plan that was run is known; what was learned from
it about others is one exponent (see `planner`), for each optimization where there is evidence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime
from math import log
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scalebench_lib.config import DEFAULT_IMAGE_SIZE
from scalebench_lib.errors import ScalebenchError, one_line
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import CHOICES, InstanceOption, Profile
from scalebench_lib.record import write_atomically
from scalebench_lib.stats import Interval

FILE = "interference.json"

_LARGEST_EXPONENT = 1.0
"""From here on more instances would not serve more."""

Shape = tuple[tuple[Any, ...], ...]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Observation(_Part):
    """A plan that was run: its instances with their latencies alone, what was expected of it then,
    and how long it took, in ms.
    """

    when: datetime
    machine: str
    model: str
    seq_len: int
    placement: str
    image_size: int = DEFAULT_IMAGE_SIZE
    instances: tuple[InstanceOption, ...]
    predicted_ms: float
    measured_ms: Annotated[float, Field(gt=0)]
    low_ms: float
    high_ms: float

    @property
    def shape(self) -> Shape:
        """What makes it the same plan as another."""
        return shape(self.instances)

    @property
    def busy(self) -> float:
        """Physical cores in use."""
        return sum(one.cores for one in self.instances)

    @property
    def alone_ms(self) -> float:
        """What the slowest instance takes without the others."""
        return max(one.latency_ms for one in self.instances)

    def evidence(self) -> tuple[float, float] | None:
        """Log of the slow-down, and of what it is the exponent's multiple of; None if alone."""
        if len(self.instances) < 2:
            return None
        pairs = [
            (log(self.measured_ms / one.latency_ms), log(self.busy / one.cores))
            for one in self.instances
        ]
        return min(pairs, key=lambda pair: pair[0] / pair[1])


class Interference(_Part):
    """Every plan that was run with a sweep, the latest run of each."""

    schema_version: int = 1
    observations: tuple[Observation, ...] = ()

    @classmethod
    def load(cls, out: Path) -> Self:
        """What was learned in folder `out`, if anything; `ScalebenchError` where it is damaged."""
        path = out / FILE
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ScalebenchError(
                f"{path} is damaged: {one_line(error)}; delete it, and 'plan --verify' learns anew"
            ) from None

    def save(self, out: Path) -> None:
        """Keep it in folder `out`."""
        write_atomically(out / FILE, self.model_dump_json(indent=1) + "\n")

    def with_runs(self, runs: Iterable[Observation]) -> Interference:
        """This, and `runs` in place of earlier ones of the same plans."""
        latest = {(_about(run), run.shape): run for run in (*self.observations, *runs)}
        return Interference(observations=tuple(latest.values()))

    def about(self, profile: Profile) -> list[Observation]:
        """The observations of this profile's model, on its machine."""
        return [one for one in self.observations if _about(one) == _about(profile)]

    def exponent(self, profile: Profile) -> float:
        """The exponent for plans of this profile's options: a fit through the origin.

        Of plans with these optimizations only, where there are such; 0 where nothing is known.
        """
        seen = self.about(profile)
        names = set(profile.optimizations)
        alike = [one for one in seen if {i.optimization for i in one.instances} <= names]
        pairs = [pair for one in alike or seen if (pair := one.evidence())]
        if not pairs:
            return 0.0
        slope = sum(y * x for y, x in pairs) / sum(x * x for _, x in pairs)
        return min(max(slope, 0.0), _LARGEST_EXPONENT)

    def known(self, plan: Plan, profile: Profile) -> Plan:
        """`plan` with what its own run taught, if it was run: that counts more than the fit."""
        for one in self.about(profile):
            if one.shape == shape(plan.instances):
                alone = max(option.latency_ms for option in plan.instances)
                return replace(plan, predicted_ms=alone * one.measured_ms / one.alone_ms)
        return plan


def observation(profile: Profile, plan: Plan, when: datetime, measured: Interval) -> Observation:
    """A run of `plan`; `measured` is its latency in ms."""
    return Observation(
        when=when,
        **{name: getattr(profile, name) for name in CHOICES},
        instances=plan.instances,
        predicted_ms=plan.predicted_ms,
        measured_ms=measured.value,
        low_ms=measured.low,
        high_ms=measured.high,
    )


def shape(instances: Iterable[InstanceOption]) -> Shape:
    """What is run, without how long it takes: equal for the same instances in any order."""
    measured = {"latency_ms", "low_ms", "high_ms", "memory_mb"}
    each = ({k: v for k, v in asdict(one).items() if k not in measured} for one in instances)
    return tuple(sorted(tuple(sorted(one.items())) for one in each))


def _about(one: Observation | Profile) -> tuple[Any, ...]:
    return tuple(getattr(one, name) for name in CHOICES)
