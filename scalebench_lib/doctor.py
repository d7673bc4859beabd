"""What this machine can measure, and what is installed: lines by topic."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from scalebench_lib.allocators import LIBRARIES, library
from scalebench_lib.config import Allocator
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine, available_bytes, search_file, throttled_periods
from scalebench_lib.optimizations import OPTIMIZATIONS, Optimization
from scalebench_lib.text import pluralize

_FLAGS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_tile"},
    "bf16": {"avx512_bf16", "amx_bf16"},
}
"""What makes a CPU fast at inference, by the names that Linux has for it."""

_TURBO = {
    "intel_pstate/no_turbo": {"0": "on", "1": "off"},
    "cpufreq/boost": {"0": "off", "1": "on"},
}


def topics(machine: Machine, root: Path = Path("/")) -> dict[str, list[str]]:
    """Return lines on `machine`, whose files are under `root`, by topic."""
    return {
        "CPU": list(_cpu(machine, root)),
        "Limits": list(_limits(machine)),
        "Memory": [
            f"{machine.memory_bytes / 2**30:.1f} GiB may be used, "
            f"{available_bytes() / 2**30:.1f} GiB of it now",
            f"transparent huge pages: {machine.huge_pages or 'not known'}",
        ],
        "Clock": [f"governor: {machine.governor or 'not known'}", f"turbo: {_turbo(root)}"],
        "Optimizations": [_about(one) for one in OPTIMIZATIONS.values()],
        "Installed": list(_installed()),
    }


def _cpu(machine: Machine, root: Path) -> Iterator[str]:
    nodes = len({(core.socket, core.node) for core in machine.cores})
    sockets = len({core.socket for core in machine.cores})
    yield machine.title
    smt = f"{machine.smt_width} threads a core" if machine.has_smt else "none, only off is measured"
    places = f"{pluralize(sockets, 'socket')}, {pluralize(nodes, 'NUMA node')}"
    yield f"{places}; SMT: {smt}"
    found = (search_file(root / "proc/cpuinfo", r"^flags\s*:\s*(.+)$") or "").split()
    if found:  # Arm's kernel has other names
        has = {title: "yes" if names & set(found) else "no" for title, names in _FLAGS.items()}
        yield ", ".join(f"{title} {answer}" for title, answer in has.items())
    for smt_on in machine.smt_values("auto"):
        counts = ", ".join(map(str, machine.thread_counts("auto", smt_on)))
        yield f"threads that --threads auto takes, SMT {'on' if smt_on else 'off'}: {counts}"


def _limits(machine: Machine) -> Iterator[str]:
    yield "quota: none" if machine.quota is None else f"quota: {machine.quota:g} CPUs"
    cpus = sorted(cpu for core in machine.cores for cpu in core.cpus)
    pinned = "" if machine.pinnable else f"; {machine.system} cannot pin threads to them"
    yield f"affinity: CPU {', '.join(map(str, cpus))}{pinned}"
    if machine.isolated:
        yield f"isolated, used only by 'taskset -c': CPU {', '.join(map(str, machine.isolated))}"
    periods = throttled_periods()
    yield f"throttled so far: {'not known' if periods is None else pluralize(periods, 'period')}"


def _turbo(root: Path) -> str:
    for name, words in _TURBO.items():
        found = search_file(root / "sys/devices/system/cpu" / name, r"^([01])$")
        if found:
            return words[found]
    return "not known"


def _installed() -> Iterator[str]:
    yield "g++: yes" if shutil.which("g++") else "g++: no, compile needs it: apt install g++"
    for allocator in LIBRARIES:
        yield f"{allocator}: {_found(allocator)}"


def _about(one: Optimization) -> str:
    lacking = f"; not installed: pip install -e '.[{one.needs[0]}]'" if one.missing else ""
    return f"{one.name}: {one.description}{lacking}"


def _found(allocator: Allocator) -> str:
    try:
        library(allocator)
    except RequestError as error:
        return f"no: {str(error).partition(': ')[2] or error}"
    return "yes"
