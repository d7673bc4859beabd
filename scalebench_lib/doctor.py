"""What this machine can measure, and what is installed: lines by topic."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from scalebench_lib.allocators import library
from scalebench_lib.config import Allocator
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import Machine, available_bytes, search_file, throttled_periods
from scalebench_lib.optimizations import OPTIMIZATIONS, Optimization
from scalebench_lib.text import cpu_list, pluralize

_FLAGS = {"AVX2": "avx2", "AVX-512": "avx512f", "VNNI (fast int8)": "avx(512)?_vnni"}
_FLAGS |= {"AMX (fast bf16 and int8)": "amx_tile", "bf16": "(avx512|amx)_bf16"}
_TURBO = {"intel_pstate/no_turbo": ("on", "off"), "cpufreq/boost": ("off", "on")}


def topics(machine: Machine, root: Path = Path("/")) -> dict[str, list[str]]:
    """Return lines on `machine`, whose files are under `root`, by topic."""
    gib = f"{machine.memory_bytes / 2**30:.1f} GiB, {available_bytes() / 2**30:.1f} free"
    huge_pages = f"transparent huge pages: {machine.huge_pages or 'not known'}"
    return {
        "CPU": list(_cpu(machine, root)),
        "Limits": list(_limits(machine)),
        "Memory": [gib, huge_pages],
        "Clock": [f"governor: {machine.governor or 'not known'}", f"turbo: {_turbo(root)}"],
        "Optimizations": [line for one in OPTIMIZATIONS.values() for line in _about(one)],
        "Installed": list(_installed()),
    }


def _cpu(machine: Machine, root: Path) -> Iterator[str]:
    nodes = {(core.socket, core.node) for core in machine.cores}
    sockets = pluralize(len({socket for socket, _ in nodes}), "socket")
    smt = f"{machine.smt_width} threads a core" if machine.has_smt else "none"
    yield machine.title
    yield f"{sockets}, {pluralize(len(nodes), 'NUMA node')}; SMT: {smt}"
    cpuinfo = root / "proc/cpuinfo"
    if search_file(cpuinfo, r"^(flags)\b"):  # Arm's kernel has other names
        for name, flag in _FLAGS.items():
            found = search_file(cpuinfo, rf"^(flags).*\s{flag}\b")
            yield f"{name}: {'yes' if found else 'no'}"
    for smt_on in machine.smt_values("auto"):
        counts = ", ".join(map(str, machine.thread_counts("auto", smt_on)))
        yield f"threads that are measured, SMT {'on' if smt_on else 'off'}: {counts}"


def _limits(machine: Machine) -> Iterator[str]:
    yield "quota: none" if machine.quota is None else f"quota: {machine.quota:g} CPUs"
    cpus = sorted(cpu for core in machine.cores for cpu in core.cpus)
    yield f"affinity: CPU {cpu_list(cpus)}{'' if machine.pinnable else ', unpinned'}"
    if machine.isolated:
        yield f"isolated, only by 'taskset -c': CPU {', '.join(map(str, machine.isolated))}"
    periods = throttled_periods()
    yield f"throttled so far: {'not known' if periods is None else pluralize(periods, 'period')}"


def _turbo(root: Path) -> str:
    for name, words in _TURBO.items():
        if found := search_file(root / "sys/devices/system/cpu" / name, r"^([01])$"):
            return words[int(found)]
    return "not known"


def _installed() -> Iterator[str]:
    yield "g++: yes" if shutil.which("g++") else "g++: no, compile needs it: apt install g++"
    for allocator in get_args(Allocator)[1:]:
        try:
            library(allocator)
            yield f"{allocator}: yes"
        except RequestError as error:
            yield f"{allocator}: no: {str(error).partition(': ')[2] or error}"


def _about(one: Optimization) -> Iterator[str]:
    yield f"{one.name}: {one.description}"
    if one.lacking:
        yield f"  {one.lacking}"
