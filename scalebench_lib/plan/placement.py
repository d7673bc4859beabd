"""Give each instance of a plan cores of its own, and the command that starts it there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from scalebench_lib.allocators import portable_variables
from scalebench_lib.machine import Core, Machine
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.text import cpu_list


@dataclass(frozen=True)
class PlacedInstance:
    """An instance with the CPU numbers of its threads."""

    instance: Instance
    cpus: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """The threads, as every OpenMP or BLAS runtime reads them, and the allocator."""
        threads = {"OMP_NUM_THREADS": str(self.instance.threads)}
        return {**threads, **portable_variables(self.instance.allocator)}

    @property
    def taskset(self) -> str:
        """``taskset -c 0-3``: put it before the command to run."""
        return f"taskset -c {cpu_list(self.cpus)}"

    @property
    def numactl(self) -> str:
        """The same with memory from the socket that these CPUs belong to."""
        return f"numactl --physcpubind={cpu_list(self.cpus)} --localalloc"


def place(
    plan: Plan, machine: Machine, placement: str = "sequential"
) -> tuple[PlacedInstance, ...]:
    """Give each instance cores of its own, the largest first, within one socket where it fits.

    An interleaved plan takes cores of all sockets in turn. Raises `RequestError` if the
    machine has fewer cores than the plan.
    """
    order = machine.cpus_for(max(plan.cores, machine.max_threads(smt=False)), False, placement)
    by_cpu = {core.cpus[0]: core for core in machine.cores}
    cores = [by_cpu[cpu] for cpu in order]
    by_socket = [list(some) for _, some in groupby(cores, key=lambda core: core.socket)]
    free = by_socket if placement == "sequential" else [cores]
    return tuple(_place_instance(one, free) for one in plan.instances)


def _place_instance(instance: Instance, sockets: list[list[Core]]) -> PlacedInstance:
    """Give an instance cores of the fullest socket that holds it, else of all in order."""
    fitting = [cores for cores in sockets if len(cores) >= instance.cores]
    sources = [min(fitting, key=len)] if fitting else sockets
    taken = [core for cores in sources for core in cores][: instance.cores]
    for cores in sources:
        cores[:] = [core for core in cores if core not in taken]
    cpus = [cpu for core in taken for cpu in (core.cpus if instance.smt else core.cpus[:1])]
    return PlacedInstance(instance, tuple(cpus[: instance.threads]))
