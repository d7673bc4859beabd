"""Where the instances of a plan run: CPUs that are theirs alone, and how to start them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from scalebench_lib.allocators import LIBRARIES
from scalebench_lib.machine import Machine
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import InstanceOption


@dataclass(frozen=True)
class Placed:
    """An instance with the CPU numbers of its threads."""

    option: InstanceOption
    cpus: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """The threads, as every OpenMP or BLAS runtime reads them, and the allocator's library."""
        library = LIBRARIES.get(self.option.allocator)
        preloaded = {"LD_PRELOAD": library[0]} if library else {}
        return {"OMP_NUM_THREADS": str(self.option.threads), **preloaded}

    @property
    def taskset(self) -> str:
        """``taskset -c 0-3``: put it before the command to run."""
        return f"taskset -c {ranges(self.cpus)}"

    @property
    def numactl(self) -> str:
        """The same with memory from the socket that these CPUs belong to."""
        return f"numactl --physcpubind={ranges(self.cpus)} --localalloc"


def placed(plan: Plan, machine: Machine, placement: str = "sequential") -> tuple[Placed, ...]:
    """Give each instance CPUs of its own, the largest first, within one socket where it fits.

    Instances with SMT off have cores to themselves; with SMT on, those of odd thread counts may
    share one. Raises `RequestError` where the machine has fewer cores than the plan.
    """
    free = _cores(plan, machine, placement)
    alone = [_place(one, free, width=1) for one in plan.instances if not one.smt]
    shared = [_place(one, free, machine.smt_width) for one in plan.instances if one.smt]
    return (*alone, *shared)


def _cores(plan: Plan, machine: Machine, placement: str) -> dict[int, list[list[int]]]:
    """The first cores of the machine, as many as the plan needs: their CPUs, by socket.

    An interleaved plan has its cores from all sockets on purpose: they stay in one list.
    """
    of_cpu = {core.cpus[0]: core for core in machine.cores}
    sockets: dict[int, list[list[int]]] = {}
    for cpu in machine.cpus_for(-int(-plan.cores // 1), smt=False, placement=placement):
        core = of_cpu[cpu]
        sockets.setdefault(core.socket * (placement == "sequential"), []).append(list(core.cpus))
    return sockets


def _place(option: InstanceOption, free: dict[int, list[list[int]]], width: int) -> Placed:
    """Take CPUs from the fullest socket that holds the instance, or else from all in order."""
    room = {socket: _room(cores, width) for socket, cores in free.items()}
    fitting = [socket for socket in room if room[socket] >= option.threads]
    sockets = [min(fitting, key=room.__getitem__)] if fitting else list(free)
    cpus: list[int] = []
    for core in [core for socket in sockets for core in free[socket]]:
        wanted = min(option.threads - len(cpus), width, len(core))
        cpus += core[:wanted]
        core[:] = core[wanted:] if width > 1 else core[:0] if wanted else core
    return Placed(option, tuple(cpus))


def _room(cores: Sequence[Sequence[int]], width: int) -> int:
    return sum(min(len(core), width) for core in cores)


def ranges(cpus: Sequence[int]) -> str:
    """``0-3,8`` for 0, 1, 2, 3, 8, as ``taskset`` and ``numactl`` read them."""
    runs = groupby(enumerate(sorted(cpus)), key=lambda pair: pair[1] - pair[0])
    lists = [[cpu for _, cpu in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in lists)
