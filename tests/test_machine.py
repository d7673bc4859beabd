"""Topologies that we do not have, as made-up files of the kernel."""

import os
import re
from pathlib import Path

import pytest

from scalebench_lib import machine as machine_module
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import (
    Machine,
    another_host_warning,
    available_bytes,
    stolen_ns,
    throttled_periods,
)


def kernel_files(root: Path, cpus: dict[int, tuple[int, int, str]]) -> Path:
    """A /sys tree under `root`: CPU number → (socket, core id, siblings)."""
    top = root / "sys/devices/system/cpu"
    for cpu, (socket, core, siblings) in cpus.items():
        folder = top / f"cpu{cpu}/topology"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "physical_package_id").write_text(f"{socket}\n")
        (folder / "core_id").write_text(f"{core}\n")
        (folder / "core_cpus_list").write_text(f"{siblings}\n")
    (top / "online").write_text(f"0-{max(cpus)}\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Intel(R) Xeon(R) 6130 CPU\n")
    return root


def adjacent() -> dict[int, tuple[int, int, str]]:
    """2 sockets × 8 cores × 2 threads, siblings side by side: 0 and 1, 2 and 3 …"""
    return {n: (n // 16, n % 16 // 2, f"{n // 2 * 2}-{n // 2 * 2 + 1}") for n in range(32)}


def far_apart() -> dict[int, tuple[int, int, str]]:
    """The same, siblings 16 apart: 0 and 16, 1 and 17 …"""
    return {n: (n % 16 // 8, n % 8, f"{n % 16},{n % 16 + 16}") for n in range(32)}


def no_smt(cores: int) -> dict[int, tuple[int, int, str]]:
    """One socket, one thread a core."""
    return {n: (0, n, str(n)) for n in range(cores)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Read a made-up machine: its CPUs, and which of them the process may use."""

    def read(cpus: dict, allowed: set[int] | None = None) -> Machine:
        usable = set(cpus) if allowed is None else allowed
        monkeypatch.setattr(machine_module, "_affinity", lambda: usable)
        return Machine.here(kernel_files(tmp_path, cpus))

    return read


def test_siblings_side_by_side(here) -> None:
    """SMT off takes one CPU a core; on fills both before the next core."""
    found = here(adjacent())
    assert (len(found.cores), found.has_smt, found.smt_width) == (16, True, 2)
    assert found.cpus_for(3, smt=False, placement="sequential") == (0, 2, 4)
    assert found.cpus_for(4, smt=True, placement="sequential") == (0, 1, 2, 3)
    assert found.cpus_for(16, smt=False, placement="sequential") == tuple(range(0, 32, 2))


def test_siblings_far_apart(here) -> None:
    """CPU numbers are not core numbers: core 0 is CPUs 0 and 16."""
    found = here(far_apart())
    assert found.cpus_for(3, smt=False, placement="sequential") == (0, 1, 2)
    assert found.cpus_for(4, smt=True, placement="sequential") == (0, 16, 1, 17)
    assert found.cpus_for(9, smt=False, placement="sequential") == tuple(range(9))
    assert found.cores[8].socket == 1


def test_siblings_are_one_core_where_cores_have_no_numbers(here) -> None:
    """As a virtual machine may leave them out."""
    cpus = {n: (*one[:1], "", one[2]) for n, one in far_apart().items()}
    assert here(cpus).cores == here(far_apart()).cores


def test_interleave_deals_cores_out_across_sockets(here) -> None:
    """Socket 0, socket 1, socket 0 … and with SMT both threads of a core together."""
    found = here(far_apart())
    assert found.cpus_for(4, smt=False, placement="interleave") == (0, 8, 1, 9)
    assert found.cpus_for(4, smt=True, placement="interleave") == (0, 16, 8, 24)
    assert sorted(found.cpus_for(32, smt=True, placement="interleave")) == list(range(32))


def test_cores_of_threads(here) -> None:
    """With SMT on two threads fill one core."""
    found = here(adjacent())
    assert found.cores_of(3, smt=True) == 1.5
    assert found.cores_of(3, smt=False) == 3


def test_a_core_of_which_we_have_one_thread_is_filled_by_it(here) -> None:
    """CPU 3, the sibling of 2, is not ours: two cores, not one and a half."""
    assert here(adjacent(), allowed={0, 1, 2}).cores_of(3, smt=True) == 2


def test_interleave_deals_cores_out_across_the_numa_nodes_of_a_socket(here, tmp_path) -> None:
    """As with four of them (NPS4, sub-NUMA clustering), each with memory of its own."""
    for node in range(4):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{4 * node}-{4 * node + 3}\n")
    found = here(no_smt(16))
    assert found.cpus_for(5, smt=False, placement="interleave") == (0, 4, 8, 12, 1)
    assert found.cpus_for(5, smt=False, placement="sequential") == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("vendor", ["Intel", "Arm"])
def test_performance_cores_are_filled_first_and_both_kinds_are_named(
    here, tmp_path, vendor: str
) -> None:
    """Wherever their numbers lie: here 0 and 1 are the slow ones."""
    if vendor == "Intel":
        (tmp_path / "sys/devices/cpu_atom").mkdir(parents=True)
        (tmp_path / "sys/devices/cpu_atom/cpus").write_text("0-1\n")
    for cpu, capacity in enumerate((400, 400, 1024, 1000) if vendor == "Arm" else ()):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
    found = here(no_smt(4))
    assert found.cpus_for(4, smt=False, placement="sequential") == (2, 3, 0, 1)
    assert "4 cores (2 performance, 2 efficiency)" in str(found)


def test_isolated_cpus_are_named_with_how_to_measure_on_them(here, tmp_path) -> None:
    """No process gets them by itself."""
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/isolated").write_text("2-3\n")
    assert "isolated CPUs are left out: 'taskset -c 2,3'" in str(here(no_smt(4), allowed={0, 1}))


def test_isolated_cpus_that_are_ours_are_as_any(here, tmp_path) -> None:
    """taskset has given them to us."""
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/isolated").write_text("2-3\n")
    assert "isolated" not in str(here(no_smt(4), allowed={2, 3}))


def test_a_container_with_3_of_16_cpus_by_affinity(here) -> None:
    """Only what the process may use counts, whichever it is."""
    found = here(no_smt(16), allowed={3, 7, 12})
    assert found.max_threads(smt=False) == 3
    assert found.cpus_for(2, smt=False, placement="sequential") == (3, 7)
    with pytest.raises(RequestError, match="4 is more than the 3 CPUs"):
        found.cpus_for(4, smt=False, placement="sequential")


def test_affinity_that_cuts_off_siblings_leaves_no_smt(here) -> None:
    """Half of each core is a core without SMT."""
    found = here(far_apart(), allowed={16, 1, 18})
    assert not found.has_smt
    assert found.cpus_for(3, smt=False, placement="sequential") == (16, 1, 18)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_with_3_of_16_cpus_by_quota(here, tmp_path: Path, version: int) -> None:
    """Threads beyond the quota would only be throttled."""
    cgroup_files(tmp_path, version, quota="300000")
    found = here(no_smt(16))
    assert found.quota == 3
    assert found.max_threads(smt=False) == 3
    assert found.thread_counts("auto") == (1, 2, 3)


def test_half_a_cpu_is_still_one_thread(here, tmp_path: Path) -> None:
    """There is nothing less to measure with."""
    cgroup_files(tmp_path, 2, quota="50000")
    assert here(no_smt(4)).max_threads(smt=False) == 1


def test_no_quota_and_a_memory_limit(here, tmp_path: Path) -> None:
    """The tighter of the machine's memory and the container's counts."""
    cgroup_files(tmp_path, 2, quota="max", memory="1073741824")
    found = here(no_smt(4))
    assert found.quota is None
    assert found.memory_bytes == 2**30


def cgroup_files(root: Path, version: int, quota: str, memory: str = "max") -> None:
    """Control-group files of a container in group /box."""
    (root / "proc/self").mkdir(parents=True)
    if version == 2:
        folder = root / "sys/fs/cgroup/box"
        folder.mkdir(parents=True)
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
        (folder / "memory.max").write_text(f"{memory}\n")
        lines = "0::/box\n"
    else:
        folder = root / "sys/fs/cgroup/cpu,cpuacct/box"
        folder.mkdir(parents=True)
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
        (root / "sys/fs/cgroup/cpu").symlink_to(folder.parent)
        lines = "3:cpu,cpuacct:/box\n"
    (root / "proc/self/cgroup").write_text(lines)


def test_thread_counts(here) -> None:
    """Every count where a curve needs its steps; beyond that fewer, and always all."""
    found = here(adjacent())
    assert found.thread_counts("auto", smt=False) == tuple(range(1, 17))
    assert found.thread_counts("auto", smt=True) == (*range(1, 17), 24, 32)
    assert found.thread_counts("all", smt=True) == tuple(range(1, 33))
    assert found.thread_counts((4, 2)) == (2, 4)


def test_all_cpus_are_measured_whatever_their_number(here) -> None:
    """48 is no power of two, 40 neither."""
    assert here(no_smt(40)).thread_counts("auto")[-3:] == (24, 32, 40)


def test_no_smt_says_so(here) -> None:
    """Turning on what is not there is refused, naming the machine."""
    found = here(no_smt(4))
    assert found.smt_values("auto") == (False,)
    with pytest.raises(RequestError, match=r"needs hyper-threading.*4 cores.*use 'off'"):
        found.smt_values("on")


def test_without_affinity_it_is_not_pinnable(tmp_path: Path, monkeypatch) -> None:
    """As on macOS: no topology files, no affinity; measured all the same, and said."""
    monkeypatch.setattr(machine_module, "_affinity", lambda: None)
    found = Machine.here(tmp_path)
    assert not found.pinnable
    assert found.max_threads(smt=False) >= 1
    assert "unpinned" in str(found)


def test_two_machines_are_told_apart(here) -> None:
    """By what decides speed."""
    found = here(no_smt(4))
    assert found.differs_from(found) is None
    assert found.differs_from(found.model_copy(update={"cpu_model": "other"})) == "cpu model"
    more = found.model_copy(update={"memory_bytes": 2 * found.memory_bytes})
    assert found.differs_from(more) == "memory"


def test_settings_of_the_system_are_told_apart_where_they_are_known(here) -> None:
    """They are no other machine: a sweep that runs is not ended for them."""
    unknown = here(no_smt(4)).model_copy(update={"governor": None, "huge_pages": None})
    known = unknown.model_copy(update={"governor": "performance", "huge_pages": "madvise"})
    other = known.model_copy(update={"huge_pages": "always"})
    assert (unknown.other_setting(known), known.other_setting(known)) == (None, None)
    assert known.other_setting(other) == "transparent huge pages madvise against always"
    assert known.differs_from(other) is None


def test_its_name_can_be_shared(here) -> None:
    """The model and the size, never the host's name."""
    assert here(far_apart()).name == "intel-xeon-6130-16c32t"


def identity_files(root: Path, machine_id: str, boot_id: str) -> Path:
    """A tree under `root` whose files name a machine, and its start."""
    for name, text in (("etc/machine-id", machine_id), ("proc/sys/kernel/random/boot_id", boot_id)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_a_machine_is_told_from_others_without_being_named(tmp_path: Path) -> None:
    """Equal digests mean the same machine since the same start; nothing can be read off them."""
    names = {
        "one": ("a1", "b1"),
        "again": ("a1", "b1"),
        "other": ("a2", "b1"),
        "later": ("a1", "b2"),
    }
    found = {
        name: Machine.here(identity_files(tmp_path / name, *ids)).identity
        for name, ids in names.items()
    }
    assert found["one"] == found["again"]
    assert len(set(found.values())) == 3
    assert all(re.fullmatch("[0-9a-f]{12}", identity) for identity in found.values())
    assert Machine.here(tmp_path / "nowhere").identity is None


def test_another_identity_alone_is_no_other_machine(here) -> None:
    """It may have been started anew: that is said, never refused."""
    found = here(no_smt(4))
    assert found.differs_from(found.model_copy(update={"identity": "0" * 12})) is None


def test_another_identity_of_one_kind_is_perhaps_another_host(here) -> None:
    """Said of two sweeps, and of one that goes on; of another kind there is more to say."""
    one = here(no_smt(4)).model_copy(update={"identity": "a" * 12})
    other = one.model_copy(update={"identity": "b" * 12})
    assert "or this one since a restart" in another_host_warning([one, one], [other])
    assert "perhaps another host" in another_host_warning([one], [one, other])
    assert another_host_warning([one, other], [other, one, one]) is None
    assert another_host_warning([one], [other.model_copy(update={"quota": 2.0})]) is None


def test_without_identities_nothing_is_said_of_hosts(here) -> None:
    """Nor of a folder that is still empty."""
    unknown = here(no_smt(4))
    known = unknown.model_copy(update={"identity": "a" * 12})
    assert another_host_warning([unknown], [known]) is None
    assert another_host_warning([known], [unknown]) is None
    assert another_host_warning([], [known]) is None


def test_a_governor_is_new_only_where_it_changed(tmp_path: Path) -> None:
    """A system that tells none has none that changed."""
    before = Machine.here(tmp_path)
    path = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    path.parent.mkdir(parents=True)
    path.write_text("powersave\n")
    assert before.new_governor(tmp_path) is None
    saving = Machine.here(tmp_path)
    assert saving.new_governor(tmp_path) is None
    path.write_text("performance\n")
    assert saving.new_governor(tmp_path) == "performance"


def test_the_setting_of_huge_pages_is_known(tmp_path: Path) -> None:
    """The one that the kernel marks."""
    path = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    path.parent.mkdir(parents=True)
    path.write_text("always [madvise] never\n")
    assert Machine.here(tmp_path).huge_pages == "madvise"
    path.write_text("nonsense")
    assert Machine.here(tmp_path).huge_pages is None


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_limit_leaves_is_what_is_available(tmp_path: Path, version: int) -> None:
    """Files that the kernel can forget count as free."""
    folder, names = tmp_path / "sys/fs/cgroup/box", ("memory.max", "memory.current")
    line = "0::/box"
    if version == 1:
        folder = tmp_path / "sys/fs/cgroup/memory/box"
        names, line = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "4:memory:/box"
    folder.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{line}\n")
    for name, value in zip(names, ("10000", "7000"), strict=True):
        (folder / name).write_text(f"{value}\n")
    assert available_bytes(tmp_path) == 3000
    (folder / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert available_bytes(tmp_path) == 3500
    (folder / names[1]).write_text("20000\n")
    assert available_bytes(tmp_path) == 0


def test_without_a_limit_the_system_tells_what_is_available(tmp_path: Path) -> None:
    """More than nothing, on a machine that runs tests."""
    assert available_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("0::/box", "box"),
        ("3:cpu,cpuacct:/box", "cpu/box"),
        ("0::/box/inner", "box"),
        ("3:cpu,cpuacct:/box/inner", "cpu/box"),
    ],
)
def test_periods_in_which_a_quota_stops_us_are_counted(tmp_path: Path, line, folder) -> None:
    """Where the control group tells."""
    assert throttled_periods(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{line}\n")
    (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True)
    stat = tmp_path / "sys/fs/cgroup" / folder / "cpu.stat"
    stat.write_text("nr_periods 90\nnr_throttled 7\nthrottled_usec 5\n")
    (stat.parent / "inner").mkdir()
    (stat.parent / "inner" / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\n")
    assert throttled_periods(tmp_path) == 7


def test_time_stolen_from_some_cpus_is_told_in_ns(tmp_path: Path) -> None:
    """In ticks by the kernel, CPU by CPU; None where it does not tell of each."""
    assert stolen_ns((0,), tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(
        "cpu  900 0 90 9000 5 0 3 80 0 0\n"
        "cpu0 300 0 30 3000 2 0 1 10 0 0\n"
        "cpu1 300 0 30 3000 2 0 1 30 0 0\n"
        "cpu11 300 0 30 3000 1 0 1 40 0 0\n"
        "intr 123 0 0 7\n"
    )
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    assert stolen_ns((1,), tmp_path) == 30 * tick
    assert stolen_ns((0, 11), tmp_path) == 50 * tick
    assert stolen_ns((0, 2), tmp_path) is None
    assert stolen_ns((), tmp_path) is None
