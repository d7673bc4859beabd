"""Threads on CPUs, for real."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure import pinning
from scalebench_lib.measure.pinned_executor import PinnedExecutor
from scalebench_lib.measure.pinning import (
    SPIN_NS,
    ThreadTeam,
    pin_computing_threads,
    pin_torch,
    set_affinity,
    thread_times,
)

ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(not ALLOWED, reason="this system has no affinity")


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    set_affinity(ALLOWED)


def work() -> None:
    """Enough to share out."""
    torch.ones(1 << 20).mul_(2.0)


def test_one_thread_stays_on_its_cpu() -> None:
    """The caller computes alone."""
    team = pin_torch(ALLOWED[:1], pinnable=True)
    assert team.tids == (threading.get_native_id(),)
    assert os.sched_getaffinity(0) == {ALLOWED[0]}
    team.run_and_check(work)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_each_thread_has_a_cpu_to_itself_however_often_they_change() -> None:
    """From two to one and back: the runtime may have made new threads."""
    for count in (2, 1, 2):
        team = pin_torch(ALLOWED[:count], pinnable=True)
        team.run_and_check(work)
        assert [os.sched_getaffinity(tid) for tid in team.tids] == [
            {cpu} for cpu in ALLOWED[:count]
        ]


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_more_threads_than_asked_for_are_noticed() -> None:
    """An engine with a pool of its own, say."""
    team = pin_torch(ALLOWED[:1], pinnable=True)
    set_affinity(ALLOWED)
    stop = threading.Event()
    other = threading.Thread(target=lambda: [work() for _ in iter(stop.is_set, True)])
    other.start()
    try:
        with pytest.raises(MeasurementError, match="more threads compute than the 1 asked for"):
            team.run_and_check(work)
    finally:
        stop.set()
        other.join()


def test_a_thread_that_was_moved_is_noticed() -> None:
    """Some runtimes set affinities of their own."""
    team = pin_torch(ALLOWED[:1], pinnable=True)
    set_affinity(ALLOWED)
    if len(ALLOWED) > 1:
        with pytest.raises(MeasurementError, match="did not stay on CPU"):
            team.run_and_check(work)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_threads_that_somebody_moves_are_noticed_at_the_next_turn() -> None:
    """Rather than quietly put back: what they did meanwhile was elsewhere."""
    executor = PinnedExecutor((1,), lambda _: (ALLOWED[0],), pinnable=True)
    executor.set_num_threads(1)
    executor.set_num_threads(1)
    set_affinity(ALLOWED)
    with pytest.raises(MeasurementError, match="did not stay on CPU"):
        executor.set_num_threads(1)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_threads_are_looked_for_once_as_long_as_they_live(monkeypatch) -> None:
    """A search takes many ms, too much for every turn; each turn still counts its threads."""
    searched: list[int] = []

    def pin(cpus: tuple[int, ...], pinnable: bool) -> ThreadTeam:
        searched.append(len(cpus))
        return pin_torch(cpus, pinnable)

    monkeypatch.setattr("scalebench_lib.measure.pinned_executor.pin_torch", pin)
    executor = PinnedExecutor((1, 2), lambda count: tuple(ALLOWED[:count]), pinnable=True)
    for count in (2, 1, 2, 1, 2):
        executor.set_num_threads(count)
        assert torch.get_num_threads() == count
        assert os.sched_getaffinity(executor.team.tids[-1]) == {ALLOWED[count - 1]}
    assert searched == [2, 1]
    monkeypatch.setattr(ThreadTeam, "alive", False)
    executor.set_num_threads(1)
    assert searched == [2, 1, 1], "threads that have ended are looked for anew"


def test_others_that_compute_between_two_looks_are_extra_threads() -> None:
    """Not those that only spin for a moment behind their work, nor who is idle."""
    team = pin_torch(ALLOWED[:1], pinnable=True)
    (own,) = team.tids
    before = {own: (0, 0), own + 1: (0, 0)}
    team.require_alone(before, {own: (100_000_000, 0), own + 1: (SPIN_NS, 0)})
    team.require_alone(before, {own: (9_000_000_000, 0), own + 1: (1_000_000_000, 0)})
    team.require_alone({}, {})
    with pytest.raises(MeasurementError, match=r"^1 more threads computed than the 1 asked for"):
        team.require_alone(before, {own: (100_000_000, 0), own + 1: (2 * SPIN_NS, 0)})
    with pytest.raises(MeasurementError, match="more threads computed"):
        team.require_alone(before, {own: (100_000_000, 0), own + 2: (2 * SPIN_NS, 0)})


def test_each_thread_has_its_cpu_time_and_how_long_it_waited() -> None:
    """Both only grow."""
    before = thread_times()
    _much(work)
    after, own = thread_times(), threading.get_native_id()
    assert after[own][0] - before[own][0] > 10_000_000
    assert after[own][1] >= before[own][1] >= 0


def test_a_changed_thread_count_is_noticed() -> None:
    """``assert torch.get_num_threads, n`` is always true."""
    team = pin_torch(ALLOWED[:1], pinnable=True)
    torch.set_num_threads(3)
    with pytest.raises(MeasurementError, match="asked for 1 thread, torch now uses 3"):
        team.run_and_check(work)


def test_without_affinity_threads_are_counted_and_not_pinned() -> None:
    """As on macOS."""
    team = pin_torch(ALLOWED[:1], pinnable=False)
    assert not team.is_pinned
    team.run_and_check(work)
    assert os.sched_getaffinity(0) == set(ALLOWED)


def test_a_kernel_that_hides_cpu_times_is_named(monkeypatch, tmp_path) -> None:
    """Rather than measured unpinned and called pinned."""
    (tmp_path / str(threading.get_native_id())).mkdir()
    monkeypatch.setattr(pinning, "_TASKS", tmp_path)
    with pytest.raises(MeasurementError, match="does not tell threads' CPU time"):
        pin_torch(ALLOWED[:1], pinnable=True)


def test_a_runtime_held_to_fewer_threads_is_noticed() -> None:
    """OMP_THREAD_LIMIT silently gives one thread where two were asked for."""
    if len(ALLOWED) < 2:
        pytest.skip("needs 2 CPUs")
    code = f"from scalebench_lib.measure.pinning import pin_torch; pin_torch({ALLOWED[:2]}, True)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "asked for 2 threads, but 1 of them compute: start without OMP_THREAD_LIMIT=1"
    assert told in run.stderr


@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs 2 CPUs")
def test_an_engine_s_own_threads_are_found_and_pinned() -> None:
    """Whatever they are: here a Python thread that computes while the caller does."""
    stop = threading.Event()
    worker = threading.Thread(target=lambda: [work() for _ in iter(stop.is_set, True)])
    torch.set_num_threads(1)
    worker.start()
    try:
        team = pin_computing_threads(ALLOWED[:2], True, work)
        assert team.tids == (threading.get_native_id(), worker.native_id)
        assert os.sched_getaffinity(worker.native_id) == {ALLOWED[1]}
        with pytest.raises(MeasurementError, match=r"asked for 1 thread, but \d of them compute"):
            pin_computing_threads(ALLOWED[:1], True, work)
    finally:
        stop.set()
        worker.join()


def test_an_engine_that_does_not_bind_its_threads_where_it_should_is_noticed() -> None:
    """One that binds them itself is looked at while it computes."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, ALLOWED[:1])
    pinning.SelfPinnedTeam((), tuple(ALLOWED[:1])).run_and_check(work)
    with pytest.raises(MeasurementError, match="asked for one thread on each of the CPUs"):
        pinning.SelfPinnedTeam((), (ALLOWED[-1] + 1, ALLOWED[-1] + 2)).run_and_check(
            lambda: _much(work)
        )


def _much(work) -> None:
    end = time.process_time() + 0.03
    while time.process_time() < end:
        work()


def test_openmp_binds_nobody_when_it_is_imported() -> None:
    """By GOMP_CPU_AFFINITY it would leave the process one CPU, and kernels that it forks too."""
    code = (
        "import os; before = os.sched_getaffinity(0); import scalebench_lib.measure; "
        "print(os.sched_getaffinity(0) == before)"
    )
    first = str(min(os.sched_getaffinity(0)))
    for bound in ({"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}, {"GOMP_CPU_AFFINITY": first}):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **bound},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout == "True\n"
