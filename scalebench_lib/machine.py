"""The machine: its cores and hardware threads, what of them we may use, and in which order.

CPU numbers are the operating system's numbers of hardware threads, as in ``taskset -c``. Core
numbers are never used as CPU numbers: a core is the tuple of its CPU numbers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict

from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.text import pluralize

EVERY_COUNT_UP_TO = 16
"""Below this many CPUs ``auto`` measures every thread count: a curve needs its steps there."""

_GIB = 2**30


class Core(BaseModel):
    """A physical core: its CPU numbers (SMT siblings) and the socket it sits in."""

    model_config = ConfigDict(frozen=True)

    cpus: tuple[int, ...]
    socket: int = 0


class Machine(BaseModel):
    """What a process may use of this machine, and where its numbers come from.

    `cores` holds only CPUs in the process's affinity mask; `quota` is the container's limit in
    CPUs, `memory_bytes` the memory that may be used (its limit included). Equal `identity`
    means the same machine since the same start; unequal only that it may be another one.
    `huge_pages` is the setting of transparent huge pages.
    """

    model_config = ConfigDict(frozen=True)

    cpu_model: str
    cores: tuple[Core, ...]
    quota: float | None = None
    pinnable: bool = True
    memory_bytes: int
    system: str
    kernel: str
    architecture: str
    governor: str | None = None
    huge_pages: str | None = None
    identity: str | None = None

    @property
    def name(self) -> str:
        """Short, without the host's name, so that results can be shared: ``amd-epyc-2c``."""
        words = re.sub(r"\(r\)|\(tm\)|@.*|\bcpu\b|processor|\d+-core", " ", self.cpu_model.lower())
        slug = "-".join(re.findall(r"[a-z0-9]+", words)) or self.architecture
        smt = f"{len(self._order(smt=True))}t" if self.has_smt else ""
        return f"{slug}-{len(self.cores)}c{smt}"

    @property
    def title(self) -> str:
        """For captions: ``AMD EPYC, 16 cores, 32 threads``."""
        smt = f", {len(self._order(smt=True))} threads" if self.has_smt else ""
        return f"{self.cpu_model}, {pluralize(len(self.cores), 'core')}{smt}"

    @property
    def has_smt(self) -> bool:
        """Whether any core offers more than one hardware thread to us."""
        return self.smt_width > 1

    @property
    def smt_width(self) -> int:
        """Hardware threads of the widest core."""
        return max(len(core.cpus) for core in self.cores)

    def max_threads(self, smt: bool) -> int:
        """The most threads that can each have a CPU to itself, within the quota."""
        count = len(self._order(smt))
        return count if self.quota is None else max(1, min(count, int(self.quota)))

    def smt_values(self, rule: Literal["auto", "off", "on", "both"]) -> tuple[bool, ...]:
        """Which of SMT off and on to measure; `RequestError` where there is no SMT to turn on."""
        if rule == "auto":
            rule = "both" if self.has_smt else "off"
        if rule != "off" and not self.has_smt:
            raise RequestError(
                f"smt: {rule!r} needs hyper-threading, which this machine has not "
                f"({self.title}): use 'off'"
            )
        return {"off": (False,), "on": (True,), "both": (False, True)}[rule]

    def thread_counts(self, rule: Any, smt: bool = False) -> tuple[int, ...]:
        """Resolve ``auto``, ``all`` or explicit counts into ascending thread counts."""
        self.smt_values("on" if smt else "off")
        most = self.max_threads(smt)
        if rule == "all":
            return tuple(range(1, most + 1))
        if rule == "auto":
            return tuple(_telling_counts(most))
        if max(rule) > most:
            raise RequestError(
                f"threads: {max(rule)} is more than the {pluralize(most, 'CPU')} that "
                f"this process may use with SMT {'on' if smt else 'off'}: use at most {most}"
            )
        return tuple(sorted(rule))

    def cpus_for(self, threads: int, smt: bool, placement: str) -> tuple[int, ...]:
        """The CPU numbers for `threads` threads, in the order in which they are filled."""
        self.thread_counts((threads,), smt)
        return tuple(self._order(smt, placement)[:threads])

    def cores_of(self, threads: int, smt: bool) -> float:
        """How many cores `threads` threads fill: half of them with two-way SMT on."""
        return threads / self.smt_width if smt else float(threads)

    def _order(self, smt: bool, placement: str = "sequential") -> list[int]:
        cores = _dealt(self.cores) if placement == "interleave" else self.cores
        return [cpu for core in cores for cpu in (core.cpus if smt else core.cpus[:1])]

    def differs_from(self, other: Machine) -> str | None:
        """The first thing that makes `other` another machine to measure, or None."""
        for field in ("cpu_model", "cores", "quota", "pinnable", "architecture"):
            if getattr(self, field) != getattr(other, field):
                return field.replace("_", " ")
        same_memory = abs(self.memory_bytes - other.memory_bytes) <= 0.05 * self.memory_bytes
        return None if same_memory else "memory"

    def new_governor(self, root: Path = Path("/")) -> str | None:
        """The governor of the CPUs now, if it is no longer `governor`; else None."""
        now = _governor(root)
        return now if self.governor not in (None, now) else None

    def require_unchanged(self) -> None:
        """Raise `MeasurementError` where CPUs, quota or memory are no longer what they were."""
        changed = self.differs_from(Machine.here())
        if changed:
            raise MeasurementError(
                f"the machine changed in the middle ({changed}): its times before and after "
                "cannot be compared"
            )

    @classmethod
    def here(cls, root: Path = Path("/")) -> Self:
        """Read this machine from the kernel's files under `root`, or as psutil sees it."""
        allowed = _affinity()
        cores = _cores(root / "sys/devices/system/cpu", allowed)
        return cls(
            cpu_model=_cpu_model(root),
            cores=cores or _cores_unknown(allowed),
            quota=_cgroup_limit(root, "cpu"),
            pinnable=allowed is not None,
            memory_bytes=int(
                min(psutil.virtual_memory().total, _cgroup_limit(root, "memory") or float("inf"))
            ),
            system=platform.system(),
            kernel=platform.release(),
            architecture=platform.machine(),
            governor=_governor(root),
            huge_pages=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
            identity=_identity(root),
        )

    def __str__(self) -> str:
        quota = f", quota {self.quota:g} CPUs" if self.quota is not None else ""
        pinning = "" if self.pinnable else f"; {self.system} has no affinity: unpinned"
        return f"{self.title}{quota}, {self.memory_bytes / _GIB:.0f} GiB{pinning}"


def perhaps_another_host(before: Iterable[Machine], now: Iterable[Machine]) -> str | None:
    """A sentence where machines of one kind are not surely the same ones; else None.

    Nor where they differ in kind, which is another matter (`Machine.differs_from`), or where an
    identity is not known.
    """
    sides = set(before), set(now)
    one, other = ({machine.identity for machine in side} for side in sides)
    known = one and other and None not in one | other
    if not known or one == other or any(a.differs_from(b) for a, b in product(*sides)):
        return None
    return (
        "perhaps another host (or this one since a restart): the kind of machine is the same, its "
        "machine-id or boot-id is not; latencies may differ, ratios within a block hold"
    )


def _telling_counts(most: int) -> list[int]:
    powers = [2**k for k in range(most.bit_length())]
    beyond = set(powers) | {3 * p // 4 for p in (*powers, 2 * powers[-1])} | {most}
    small = range(1, min(most, EVERY_COUNT_UP_TO) + 1)
    return [*small, *sorted(n for n in beyond if EVERY_COUNT_UP_TO < n <= most)]


def _dealt(cores: Iterable[Core]) -> list[Core]:
    sockets: dict[int, list[Core]] = {}
    for core in cores:
        sockets.setdefault(core.socket, []).append(core)
    return [core for hand in zip_longest(*sockets.values()) for core in hand if core is not None]


def _affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _cores(cpu_dir: Path, allowed: set[int] | None) -> tuple[Core, ...]:
    found = set()
    for cpu in _numbers(_text(cpu_dir / "online")):
        topology = cpu_dir / f"cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        usable = [n for n in _numbers(siblings) or [cpu] if allowed is None or n in allowed]
        if usable:
            socket = int(_text(topology / "physical_package_id") or 0)
            core_id = int(_text(topology / "core_id") or cpu)
            found.add((socket, core_id, tuple(usable)))
    return tuple(Core(cpus=cpus, socket=socket) for socket, _, cpus in sorted(found))


def _cores_unknown(allowed: set[int] | None) -> tuple[Core, ...]:
    if allowed is not None:
        return tuple(Core(cpus=(cpu,)) for cpu in sorted(allowed))
    return tuple(Core(cpus=(cpu,)) for cpu in range(psutil.cpu_count(logical=False) or 1))


def _numbers(text: str | None) -> list[int]:
    ranges = [part.partition("-") for part in (text or "").split(",") if part]
    return [n for low, _, high in ranges for n in range(int(low), int(high or low) + 1)]


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _governor(root: Path) -> str | None:
    return _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def _chosen(text: str | None) -> str | None:
    """What the kernel marks in ``always [madvise] never``."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found[1] if found else None


def _identity(root: Path) -> str | None:
    """A digest that tells this machine, since its start, from others, and nothing else of it."""
    files = (root / "etc/machine-id", root / "proc/sys/kernel/random/boot_id")
    texts = [text for path in files if (text := _text(path))]
    if not texts:
        return None
    return hashlib.sha256(" ".join(["scalebench", *texts]).encode()).hexdigest()[:12]


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that a new process may fill now: the system's, and what is left of a limit."""
    left = [int(psutil.virtual_memory().available)]
    for folder in control_groups(root, "memory"):
        limit = _memory_limit(folder)
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit and used:
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat") or "", re.M
            )
            left.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(0, min(left))


def throttled_periods(root: Path = Path("/")) -> int | None:
    """In how many periods a quota has stopped this process's control groups; None: not told."""
    for folder in control_groups(root, "cpu"):
        if found := re.search(r"^nr_throttled (\d+)$", _text(folder / "cpu.stat") or "", re.M):
            return int(found[1])
    return None


def stolen_ns(cpus: Iterable[int], root: Path = Path("/")) -> int | None:
    """The time that the hypervisor has taken from `cpus` so far, in ns, all together.

    The kernel counts it in ticks of 10 ms, as a rule. None: not told of each of them.
    """
    wanted, stat = set(cpus), _text(root / "proc/stat") or ""
    steal = re.findall(r"^cpu(\d+)(?: \d+){7} (\d+)", stat, re.M)
    ticks = [int(stolen) for cpu, stolen in steal if int(cpu) in wanted]
    if not ticks or len(ticks) < len(wanted):
        return None
    return sum(ticks) * 10**9 // os.sysconf("SC_CLK_TCK")


def _cpu_model(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo") or "", re.M)
    return found[1] if found else platform.processor() or platform.machine()


def _cgroup_limit(root: Path, resource: Literal["cpu", "memory"]) -> float | None:
    """The tightest limit of this process's control groups: CPUs, or bytes."""
    read = _cpu_quota if resource == "cpu" else _memory_limit
    limits = [limit for folder in control_groups(root, resource) if (limit := read(folder))]
    return min(limits, default=None)


def control_groups(root: Path, resource: str) -> Iterable[Path]:
    """The folders under `root` of this process's control groups for `resource`, its own first."""
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers or resource in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (resource if controllers else "")
            folder = mount / group.lstrip("/")
            yield from (folder, *(p for p in folder.parents if p.is_relative_to(mount)))


def _cpu_quota(folder: Path) -> float | None:
    both = (_text(folder / "cpu.max") or "").split()
    if not both:
        both = [_text(folder / f"cpu.cfs_{what}_us") or "-1" for what in ("quota", "period")]
    quota, period = both
    return int(quota) / int(period) if quota not in ("max", "-1") else None


def _memory_limit(folder: Path) -> float | None:
    text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    return float(text) if text and text != "max" else None
