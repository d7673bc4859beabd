"""The machine's reference speed: one probe time per thread count and placement.

A sweep keeps the reference it was read with in ``reference.json``. A later sweep beside it, on
the same machine, takes the same one: then their headlines can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError, ScalebenchError, one_line
from scalebench_lib.files import DamagedError, set_aside, write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.record import Record

FILE = "reference.json"

FAST_END = 0.05
"""The quantile of a sweep's probes that counts as the machine's good speed."""


class Reference(BaseModel):
    """Probe times at the reference speed, in ns, by `key`, of a `machine` or of several `hosts`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine | None = None
    hosts: dict[str, Machine] = {}
    probe_version: int | None = None
    probe_ns: dict[str, float] = {}

    @staticmethod
    def key(config: Config, threads: int, place: str | None = None) -> str:
        """What decides how long a probe takes: ``2``, ``2 smt``, ``2 interleave``, ``2 @host``."""
        words = [str(threads), "smt" * config.smt, config.placement.replace("sequential", "")]
        return " ".join(filter(None, [*words, f"@{place}" if place else ""]))

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """The fast end of the probes in `records`."""
        probes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        first, hosts = None, dict[str, Machine]()
        for record in (record for record in records if record.points):
            first = first or record
            if record.place:
                hosts.setdefault(record.place, record.machine)
            for point in record.points:
                key = cls.key(record.config, point.threads, record.place)
                probes[key].append(point.probe_after_ns)
        times = {key: np.concatenate(every) for key, every in probes.items()}
        return cls(
            machine=first.machine if first and not hosts else None,
            hosts=hosts,
            probe_version=first.probe_version if first else None,
            probe_ns={k: float(np.quantile(t, FAST_END)) for k, t in times.items() if t.size},
        )

    def fits(self, other: Reference) -> bool:
        """Whether both tell the speed of one machine, by the same probe."""
        mine, theirs = (
            {**one.hosts, **({"": one.machine} if one.machine else {})} for one in (self, other)
        )
        shared = mine.keys() & theirs.keys()
        same_probe = self.probe_version == other.probe_version
        return bool(
            same_probe and shared and not any(mine[n].differs_from(theirs[n]) for n in shared)
        )

    def completed_by(self, other: Reference) -> Reference:
        """This reference, with what only `other` knows."""
        probe_ns = {**other.probe_ns, **self.probe_ns}
        hosts = {**other.hosts, **self.hosts}
        return self.model_copy(update={"probe_ns": probe_ns, "hosts": hosts})

    @classmethod
    def load(cls, out: Path) -> Self | None:
        """The reference kept in folder `out`, or None; `ScalebenchError` where it is damaged."""
        path = out / FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DamagedError(f"{path} is damaged: {one_line(error)}") from None

    def save(self, out: Path) -> None:
        """Keep the reference in folder `out`."""
        write_atomically(out / FILE, self.model_dump_json(indent=1) + "\n")


def require_one_machine(records: Iterable[Record]) -> None:
    """Raise `RequestError` where `records` come from several machines, naming what differs.

    In a sweep of several hosts (its records name their `place`) each may be another machine.
    """
    firsts: dict[str | None, Record] = {}
    for record in records:
        first = firsts.setdefault(record.place, record)
        differing = first.machine.differs_from(record.machine)
        if len(firsts) > 1 and None in firsts:
            first, differing = firsts[None], "their host"
        if differing:
            raise RequestError(
                f"these are records of several machines: {first.name} and {record.name} differ in "
                f"{differing}; 'scalebench report --any-machine' shows them together"
            )


def reference_for(out: Path, records: list[Record]) -> Reference:
    """The reference to read the sweep in `out` with: its own, an earlier sweep's, a new one."""
    own = Reference.of(records)
    return next(_kept(out, own), own).completed_by(own)


def _kept(out: Path, own: Reference) -> Iterator[Reference]:
    """References that fit, the sweep's own first, then those beside it, the earliest first."""
    candidates, beside = [_own(out)], list[tuple[float, Reference]]()
    for path in out.resolve().parent.glob(f"*/{FILE}"):
        with suppress(ScalebenchError, OSError):  # another sweep's damage is not ours
            beside += [
                (path.stat().st_mtime, kept) for kept in [Reference.load(path.parent)] if kept
            ]
    candidates += [kept for _, kept in sorted(beside, key=lambda pair: pair[0])]
    yield from (kept for kept in candidates if kept and kept.fits(own))


def _own(out: Path) -> Reference | None:
    """The folder's own; where it is damaged the records give a new one."""
    try:
        return Reference.load(out)
    except DamagedError as error:
        set_aside(out / FILE, str(error))
        return None
