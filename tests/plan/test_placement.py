"""Where instances run."""

from scalebench_lib.machine import Core, Machine
from scalebench_lib.plan.placement import Placed, placed, ranges
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import InstanceOption
from tests import factories


def test_no_cpu_belongs_to_two_instances_and_smt_off_leaves_siblings_idle() -> None:
    """On a machine whose core i holds CPUs i and i + 4."""
    off = InstanceOption(2, 4, 1.0, cores=2.0)
    on = InstanceOption(2, 4, 1.0, cores=1.0, smt=True)
    found = [one.cpus for one in placed(Plan.of([on, off, on]), factories.machine(cores=4))]
    assert found == [(0, 1), (2, 6), (3, 7)]


def test_odd_threads_with_smt_on_share_a_core() -> None:
    """Three and one fill two cores."""
    three, one = (InstanceOption(n, 1, 1.0, cores=n / 2, smt=True) for n in (3, 1))
    assert [p.cpus for p in placed(Plan.of([one, three]), factories.machine(cores=4))] == [
        (0, 4, 1),
        (5,),
    ]


def test_an_instance_stays_in_a_socket_where_it_fits() -> None:
    """Three and five threads on two sockets of four: the five cannot, the three can."""
    cores = tuple(Core(cpus=(i,), socket=i // 4) for i in range(8))
    machine = Machine(**{**factories.machine().model_dump(), "cores": cores})
    threes = Plan.of(
        [InstanceOption(3, 1, 1.0, cores=3.0)] * 2 + [InstanceOption(1, 1, 1.0, cores=1.0)] * 2
    )
    assert [one.cpus for one in placed(threes, machine)] == [(0, 1, 2), (4, 5, 6), (3,), (7,)]


def test_commands_are_ready_to_be_run() -> None:
    """Ranges as taskset and numactl read them."""
    assert ranges((0, 1, 2, 8, 10, 11)) == "0-2,8,10-11"
    (one,) = placed(
        Plan.of([InstanceOption(2, 1, 1.0, cores=2.0)]), factories.machine(cores=2, smt=False)
    )
    assert one.taskset == "taskset -c 0-1"
    assert one.numactl == "numactl --physcpubind=0-1 --localalloc"
    assert one.environment == {"OMP_NUM_THREADS": "2"}
    faster = Placed(InstanceOption(2, 1, 1.0, cores=2.0, allocator="tcmalloc"), (0, 1))
    assert faster.environment["LD_PRELOAD"] == "libtcmalloc_minimal.so.4"
