"""The machine: the cores and hardware threads that this process may use, and their order.

CPU numbers are the operating system's numbers of hardware threads, as in ``taskset -c``. A core is
the tuple of its CPU numbers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from pydantic import BaseModel

from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.text import pluralize

EVERY_COUNT_UP_TO = 16
"""``auto`` measures every thread count up to this one, where a curve has steps."""

_MUCH_SLOWER = 0.75  # an efficiency core has less than this share of the greatest capacity


class Core(BaseModel, frozen=True):
    """A physical core: its CPU numbers (SMT siblings) and the socket it sits in.

    `node` counts the NUMA nodes of its socket. `efficient` cores are slower than others here.
    """

    cpus: tuple[int, ...]
    socket: int = 0
    node: int = 0
    efficient: bool = False


class Machine(BaseModel, frozen=True):
    """The CPUs and memory that a process may use on this machine, and its description.

    `cores` holds only CPUs in the process's affinity mask; `quota` is the container's limit in
    CPUs; `memory_bytes` respects its limit. An equal `identity` means the same machine since the
    same boot; another one perhaps another machine. `huge_pages` is the setting of transparent huge
    pages. `isolated` are CPUs that the kernel reserves, and that this process may not use.
    """

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
    isolated: tuple[int, ...] = ()

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
        efficient = sum(core.efficient for core in self.cores)
        fast = len(self.cores) - efficient
        kinds = f" ({fast} performance, {efficient} efficiency)" if efficient and fast else ""
        return f"{self.cpu_model}, {pluralize(len(self.cores), 'core')}{kinds}{smt}"

    @property
    def has_smt(self) -> bool:
        """True if a core has more than one hardware thread that this process may use."""
        return self.smt_width > 1

    @property
    def smt_width(self) -> int:
        """Hardware threads of the widest core."""
        return max(len(core.cpus) for core in self.cores)

    def max_threads(self, smt: bool) -> int:
        """Return the most threads that can each have a CPU to itself, within the quota."""
        count = len(self._order(smt))
        return count if self.quota is None else max(1, min(count, int(self.quota)))

    def smt_values(self, rule: Literal["auto", "off", "on", "both"]) -> tuple[bool, ...]:
        """Return whether to measure SMT off, on, or both; raise `RequestError` without SMT."""
        if rule == "auto":
            rule = "both" if self.has_smt else "off"
        if rule != "off" and not self.has_smt:
            raise RequestError(
                f"smt: {rule!r} needs hyper-threading, which this machine has not "
                f"({self.title}): use 'off'"
            )
        return {"off": (False,), "on": (True,), "both": (False, True)}[rule]

    def thread_counts(self, rule: Any, smt: bool = False) -> tuple[int, ...]:
        """Resolve ``auto``, ``all`` or explicit counts into ascending thread counts.

        Raises `RequestError` for more threads than CPUs.
        """
        self.smt_values("on" if smt else "off")
        most = self.max_threads(smt)
        counts = range(1, most + 1)
        if rule == "all":
            return tuple(counts)
        if rule == "auto":  # beyond 16, those of 1 or 3 times a power of two, and all CPUs
            return tuple(
                n for n in counts if n <= EVERY_COUNT_UP_TO or n == most or n // (n & -n) in (1, 3)
            )
        if max(rule) > most:
            raise RequestError(
                f"threads: {max(rule)} is more than the {pluralize(most, 'CPU')} that "
                f"this process may use with SMT {'on' if smt else 'off'}: use at most {most}"
            )
        return tuple(sorted(rule))

    def cpus_for(self, threads: int, smt: bool, placement: str) -> tuple[int, ...]:
        """Return the CPU numbers for `threads` threads, in the order of `placement`."""
        self.thread_counts((threads,), smt)
        return tuple(self._order(smt, placement)[:threads])

    def cores_of(self, threads: int, smt: bool, placement: str = "sequential") -> float:
        """Return how many cores `threads` threads fill: with SMT on, each a share of one."""
        width = {cpu: len(core.cpus) if smt else 1 for core in self.cores for cpu in core.cpus}
        return sum(1 / width[cpu] for cpu in self._order(smt, placement)[:threads])

    def _order(self, smt: bool, placement: str = "sequential") -> list[int]:
        cores: Iterable[Core | None] = self.cores
        if placement == "interleave":
            hands = defaultdict[tuple[int, int], list[Core]](list)
            for core in self.cores:
                hands[core.socket, core.node].append(core)
            cores = chain.from_iterable(zip_longest(*hands.values()))
        return [cpu for core in cores if core for cpu in (core.cpus if smt else core.cpus[:1])]

    def differs_from(self, other: Machine) -> str | None:
        """Return the first property that makes `other` another machine, or None."""
        for field in ("cpu_model", "cores", "quota", "pinnable", "architecture"):
            if getattr(self, field) != getattr(other, field):
                return field.replace("_", " ")
        same_memory = abs(self.memory_bytes - other.memory_bytes) <= 0.05 * self.memory_bytes
        return None if same_memory else "memory"

    def other_setting(self, other: Machine) -> str | None:
        """Return the first known setting of the system that differs, with both values."""
        for name, title in {"governor": "governor", "huge_pages": "transparent huge pages"}.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if None not in (mine, theirs) and mine != theirs:
                return f"{title} {mine} against {theirs}"
        return None

    def new_governor(self, root: Path = Path("/")) -> str | None:
        """Return the governor of the CPUs now, if it has changed; else None."""
        now = _governor(root)
        return now if self.governor not in (None, now) else None

    def require_unchanged(self) -> None:
        """Raise `MeasurementError` if CPUs, quota or memory have changed."""
        if changed := self.differs_from(Machine.here()):
            raise MeasurementError(
                f"the machine changed in the middle ({changed}): its times before and after "
                "cannot be compared"
            )

    @classmethod
    def here(cls, root: Path = Path("/")) -> Self:
        """Read this machine from the kernel's files under `root`, or from psutil."""
        allowed = _affinity()
        usable = set(range(psutil.cpu_count(logical=False) or 1)) if allowed is None else allowed
        memory = filter(None, map(_memory_limit, control_groups(root, "memory")))
        quotas = filter(None, map(_cpu_quota, control_groups(root, "cpu")))
        huge_pages = root / "sys/kernel/mm/transparent_hugepage/enabled"
        isolated = set(_numbers(_text(root / "sys/devices/system/cpu/isolated")))
        return cls(
            cpu_model=search_file(root / "proc/cpuinfo", r"^model name\s*:\s*(.+)$")
            or platform.processor()
            or platform.machine(),
            cores=_cores(root / "sys/devices", usable)
            or tuple(Core(cpus=(cpu,)) for cpu in sorted(usable)),
            quota=min(quotas, default=None),
            pinnable=allowed is not None,
            memory_bytes=int(min([psutil.virtual_memory().total, *memory])),
            system=platform.system(),
            kernel=platform.release(),
            architecture=platform.machine(),
            governor=_governor(root),
            huge_pages=search_file(huge_pages, r"\[(\w+)\]"),  # always [madvise] never
            identity=_identity(root),
            isolated=tuple(sorted(isolated - usable)),
        )

    def __str__(self) -> str:
        text = self.title + (f", quota {self.quota:g} CPUs" if self.quota else "")
        text += f", {self.memory_bytes / 2**30:.0f} GiB"
        if not self.pinnable:
            text += f"; {self.system} has no affinity: unpinned"
        if cpus := ",".join(map(str, self.isolated)):
            text += f"; isolated CPUs are left out: 'taskset -c {cpus}' measures on them"
        return text


def another_host_warning(before: Iterable[Machine], now: Iterable[Machine]) -> str | None:
    """Return a sentence if machines of one kind may be different ones; else None.

    None, too, if they differ in kind (`Machine.differs_from`), or if an identity is not known.
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


def available_bytes(root: Path = Path("/")) -> int:
    """Return the memory that a new process may fill now, within the limits of control groups."""
    left = [int(psutil.virtual_memory().available)]
    for folder in control_groups(root, "memory"):
        limit = _memory_limit(folder)
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit and used:
            cached = search_file(folder / "memory.stat", r"^(?:total_)?inactive_file (\d+)$")
            left.append(int(limit) - int(used) + int(cached or 0))
    return max(0, min(left))


def throttled_periods(root: Path = Path("/")) -> int | None:
    """Return the number of periods in which a quota has stopped this process; None if not known."""
    stats = (folder / "cpu.stat" for folder in control_groups(root, "cpu"))
    found = [text for path in stats if (text := search_file(path, r"^nr_throttled (\d+)$"))]
    return sum(map(int, found)) if found else None


def stolen_ns(cpus: Iterable[int], root: Path = Path("/")) -> int | None:
    """Return the time in ns that the hypervisor has taken from all of `cpus` so far.

    The kernel usually counts in ticks of 10 ms. None if it does not count one of them.
    """
    steal = re.findall(r"^cpu(\d+)(?: \d+){7} (\d+)", _text(root / "proc/stat") or "", re.M)
    ticks = {int(cpu): int(stolen) for cpu, stolen in steal}
    wanted = set(cpus)
    if not wanted or not wanted <= ticks.keys():
        return None
    return sum(ticks[cpu] for cpu in wanted) * 10**9 // os.sysconf("SC_CLK_TCK")


def control_groups(root: Path, resource: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups for `resource`, its own first."""
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers or resource in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (resource if controllers else "")
            folder = mount / group.lstrip("/")
            yield from (folder, *(p for p in folder.parents if p.is_relative_to(mount)))


def _cpu_quota(folder: Path) -> float | None:
    both = (_text(folder / "cpu.max") or "").split()
    if not both:
        both = [_text(folder / f"cpu.cfs_{name}_us") or "-1" for name in ("quota", "period")]
    quota, period = both
    return int(quota) / int(period) if quota not in ("max", "-1") else None


def _memory_limit(folder: Path) -> float | None:
    text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    return float(text) if text and text != "max" else None


def _affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _cores(devices: Path, usable: set[int]) -> tuple[Core, ...]:
    """Return the cores with `usable` CPUs: fast ones first, then by socket and NUMA node."""
    cpus = devices / "system/cpu"
    online = _numbers(_text(cpus / "online"))
    nodes, efficient = _node_of_cpu(devices / "system/node"), _efficient(devices, online)
    found = set()
    for cpu in online:
        topology = cpus / f"cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        if ours := tuple(n for n in _numbers(siblings) or [cpu] if n in usable):
            socket = int(_text(topology / "physical_package_id") or 0)
            core_id = int(_text(topology / "core_id") or ours[0])
            found.add((cpu in efficient, socket, nodes.get(cpu, 0), core_id, ours))
    ranks = {
        socket: sorted({node for _, s, node, *_ in found if s == socket}) for _, socket, *_ in found
    }
    return tuple(
        Core(cpus=ours, socket=socket, node=ranks[socket].index(node), efficient=slow)
        for slow, socket, node, _, ours in sorted(found)
    )


def _node_of_cpu(folder: Path) -> dict[int, int]:
    lists = {int(path.name[4:]): path / "cpulist" for path in folder.glob("node[0-9]*")}
    return {cpu: node for node, path in lists.items() for cpu in _numbers(_text(path))}


def _efficient(devices: Path, online: Iterable[int]) -> set[int]:
    """Return the CPUs of efficiency cores: on Intel they are listed, on Arm by their capacity."""
    listed = (_text(devices / kind / "cpus") for kind in ("cpu_atom", "cpu_lowpower"))
    of_cpu = {n: _text(devices / f"system/cpu/cpu{n}/cpu_capacity") for n in online}
    capacity = {cpu: int(text) for cpu, text in of_cpu.items() if text}
    least = _MUCH_SLOWER * max(capacity.values(), default=0)
    slow = {cpu for cpu, value in capacity.items() if value < least}
    return slow.union(*map(_numbers, listed))


def _numbers(text: str | None) -> list[int]:
    """Return the numbers of ``0-2,5``."""
    ranges = [part.partition("-") for part in (text or "").split(",") if part]
    return [n for low, _, high in ranges for n in range(int(low), int(high or low) + 1)]


def _governor(root: Path) -> str | None:
    return _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def _identity(root: Path) -> str | None:
    files = (root / "etc/machine-id", root / "proc/sys/kernel/random/boot_id")
    texts = [text for path in files if (text := _text(path))]
    digest = hashlib.sha256(" ".join(["scalebench", *texts]).encode()).hexdigest()[:12]
    return digest if texts else None


def search_file(path: Path, pattern: str) -> str | None:
    """Return the first group of `pattern` in the lines of a file; None without a match."""
    found = re.search(pattern, _text(path) or "", re.M)
    return found[1] if found else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
