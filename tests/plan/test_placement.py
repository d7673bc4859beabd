"""Where instances run."""

from scalebench_lib.machine import Core, Machine
from scalebench_lib.plan.placement import PlacedInstance, place
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.text import cpu_list
from tests import factories


def cpus(plan: Plan, machine: Machine, placement: str = "sequential") -> list[tuple[int, ...]]:
    """The CPUs of each instance of `plan`."""
    return [one.cpus for one in place(plan, machine, placement)]


def sockets(count: int, cores: int) -> Machine:
    """A machine of so many sockets of so many cores, without SMT."""
    found = tuple(Core(cpus=(i,), socket=i // cores) for i in range(count * cores))
    return Machine(**{**factories.machine().model_dump(), "cores": found})


def test_no_cpu_belongs_to_two_instances_and_smt_off_leaves_siblings_idle() -> None:
    """On a machine whose core i holds CPUs i and i + 4."""
    off = Instance(2, 4, 1.0, cores=2)
    on = Instance(2, 4, 1.0, cores=1, smt=True)
    assert cpus(Plan.of([on, off, on]), factories.machine(cores=4)) == [(0, 1), (2, 6), (3, 7)]


def test_odd_threads_with_smt_on_leave_a_sibling_idle() -> None:
    """Three threads have two cores and one has one, as they were measured."""
    three, one = (Instance(n, 1, 1.0, cores=(n + 1) // 2, smt=True) for n in (3, 1))
    assert cpus(Plan.of([one, three]), factories.machine(cores=4)) == [(0, 4, 1), (2,)]


def test_an_instance_stays_in_a_socket_where_it_fits() -> None:
    three, one = Instance(3, 1, 1.0, cores=3), Instance(1, 1, 1.0, cores=1)
    machine = sockets(2, 4)
    assert cpus(Plan.of([three] * 2 + [one] * 2), machine) == [(0, 1, 2), (4, 5, 6), (3,), (7,)]
    assert cpus(Plan.of([three] * 2), machine) == [(0, 1, 2), (4, 5, 6)]


def test_an_interleaved_instance_has_cores_of_all_sockets() -> None:
    two = Instance(2, 1, 1.0, cores=2)
    assert cpus(Plan.of([two] * 2), sockets(2, 2), "interleave") == [(0, 2), (1, 3)]


def test_commands_are_ready_to_be_run() -> None:
    """Ranges are as taskset and numactl read them."""
    assert cpu_list((0, 1, 2, 8, 10, 11)) == "0-2,8,10-11"
    two = Instance(2, 1, 1.0, cores=2)
    (one,) = place(Plan.of([two]), factories.machine(cores=2, smt=False))
    assert one.taskset == "taskset -c 0-1"
    assert one.numactl == "numactl --physcpubind=0-1 --localalloc"
    assert one.environment == {"OMP_NUM_THREADS": "2"}
    faster = PlacedInstance(Instance(2, 1, 1.0, cores=2, allocator="tcmalloc"), (0, 1))
    assert faster.environment["LD_PRELOAD"] == "libtcmalloc_minimal.so.4"
    kept = PlacedInstance(Instance(2, 1, 1.0, cores=2, allocator="glibc-keep"), (0, 1))
    assert kept.environment["MALLOC_MMAP_MAX_"] == "0"
