"""Warm kernels: real forks of a real fork server, kills included."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scalebench_lib.errors import MeasurementError
from scalebench_lib.sweep import kernels as kernels_module
from scalebench_lib.sweep.kernels import ForkServer, Kernels, NotStartedError
from tests.notebooks import notebook, run_cells
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")


def test_a_kernel_is_a_process_of_its_own_with_everything_imported(warm, tmp_path) -> None:
    """And says that it is warm."""
    facts = (
        "import os, sys, json; print(json.dumps({'pid': os.getpid(), 'group': os.getpgid(0), "
        "'torch': 'torch' in sys.modules, 'kind': os.environ['SCALEBENCH_KERNEL']}))"
    )
    one, two = run_cells(warm, tmp_path, facts), run_cells(warm, tmp_path, facts)
    assert one["pid"] != two["pid"]
    assert one["pid"] == one["group"] != os.getpgid(0)
    assert one["torch"]
    assert one["kind"] == "warm"


def test_kernels_do_not_share_random_numbers(warm, tmp_path) -> None:
    """Forks would otherwise all draw the same."""
    draw = (
        "import random, json, numpy, torch; print(json.dumps([random.random(), "
        "numpy.random.rand(), torch.rand(1).item()]))"
    )
    one, two = run_cells(warm, tmp_path, draw), run_cells(warm, tmp_path, draw)
    assert all(a != b for a, b in zip(one, two, strict=True))


def test_a_kernel_that_is_killed_is_noticed_and_the_next_one_starts(warm, tmp_path) -> None:
    """By its signal."""
    with pytest.raises(MeasurementError, match=r"^killed by signal 9 \(SIGKILL\)"):
        run_cells(warm, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run_cells(warm, tmp_path, "print(7)") == 7


@pytest.mark.slow
def test_a_fork_server_that_has_computed_refuses_to_serve(tmp_path) -> None:
    """Its OpenMP pool would be lost in a fork."""
    code = (
        "import torch; torch.set_num_threads(2); torch.ones(1 << 22).mul_(2.0); "
        "from scalebench_lib.sweep.forkserver import require_single_thread; require_single_thread()"
    )
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 CPUs")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "threads: something was computed" in run.stderr


def test_without_a_fork_server_kernels_are_fresh_and_it_is_said(tmp_path, monkeypatch) -> None:
    """Any trouble falls back."""

    def broken(*_: object) -> ForkServer:
        raise NotStartedError("just because")

    monkeypatch.setattr(kernels_module, "ForkServer", broken)
    with Kernels(warm=True) as kernels:
        kind = "import os, json; print(json.dumps(os.environ.get('SCALEBENCH_KERNEL')))"
        assert run_cells(kernels, tmp_path, kind) is None
        assert kernels.warning == "no warm kernels: just because"


@pytest.mark.slow
def test_a_fork_server_that_cannot_import_says_why(tmp_path, monkeypatch) -> None:
    """By the last line of its error."""
    code = "from scalebench_lib.sweep import forkserver as f; f.IMPORTS = ('nowhere',); f.main()"
    monkeypatch.setattr("scalebench_lib.sweep.kernels.COMMAND", ["-c", code])
    with Kernels(warm=True) as kernels:
        assert run_cells(kernels, tmp_path, "print(7)") == 7
        assert kernels.warning == "no warm kernels: ModuleNotFoundError: No module named 'nowhere'"


def test_what_a_kernel_prints_to_its_own_stdout_is_no_answer(light_fork_server, tmp_path) -> None:
    """Nor does it read requests."""
    code = "import os; os.write(1, b'noise'); print(len(os.read(0, 10)))"
    with Kernels(warm=True) as kernels:
        assert [run_cells(kernels, tmp_path, code) for _ in range(2)] == [0, 0]
        assert kernels.warning is None


@pytest.mark.slow
def test_a_fork_server_that_dies_under_a_running_kernel_takes_it_along(
    light_fork_server, tmp_path
) -> None:
    """That is known; no more can be forked."""
    kill = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)"
    with Kernels(warm=True) as kernels:
        with pytest.raises(MeasurementError, match=r"^the process that kernels are forked from"):
            run_cells(kernels, tmp_path, kill)
        with pytest.raises(NotStartedError, match="the fork server does not answer"):
            run_cells(kernels, tmp_path, "print(7)")


@pytest.mark.slow
def test_no_orphan_is_left_when_the_sweep_is_killed(light_fork_server, tmp_path) -> None:
    """Fork server and kernel go with it."""
    source = notebook(tmp_path / "in.ipynb", "open('begun', 'w')", "import time; time.sleep(600)")
    code = (
        "from pathlib import Path; from scalebench_lib.sweep import kernels\n"
        f"kernels.COMMAND = {light_fork_server}\n"
        "from scalebench_lib.sweep.trial_process import NotebookRun\n"
        "kernel, out = kernels.Kernels().new(), Path('out.ipynb')\n"
        f"NotebookRun(kernel, Path({str(source)!r}), out, {{}}).wait(600)"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_until((tmp_path / "begun").exists)
    family = psutil.Process(sweep.pid).children(recursive=True)
    assert len(family) >= 2
    command = next(c.cmdline() for c in family if "forkserver" in " ".join(c.cmdline()))
    folder = Path(command[-1])
    assert folder.stat().st_mode & 0o777 & ~0o1000 == 0o700, "nobody else can reach its sockets"
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert not folder.exists(), "its folder goes too"
