"""Warm kernels: real forks of a real fork_server, kills included."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from scalebench_lib.errors import MeasurementError
from scalebench_lib.sweep import kernels as kernels_module
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.provisioner import ForkServerError, ForkServerProcess
from tests.sweep.test_kernels import notebook
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")


def told(warm: Kernels, folder: Path, *cells: str) -> dict:
    """What the last of `cells` prints as JSON, run in a kernel."""
    source = notebook(folder / "in.ipynb", *cells)
    warm.run(source, folder / "out.ipynb", {})
    printed = nbformat.read(folder / "out.ipynb", as_version=4).cells[-1].outputs[0].text
    return json.loads(printed)


def test_a_kernel_is_a_process_of_its_own_with_everything_imported(warm, tmp_path) -> None:
    """And says that it is warm."""
    facts = (
        "import os, sys, json; print(json.dumps({'pid': os.getpid(), 'group': os.getpgid(0), "
        "'torch': 'torch' in sys.modules, 'kind': os.environ['SCALEBENCH_KERNEL']}))"
    )
    one, two = told(warm, tmp_path, facts), told(warm, tmp_path, facts)
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
    one, two = told(warm, tmp_path, draw), told(warm, tmp_path, draw)
    assert all(a != b for a, b in zip(one, two, strict=True))


def test_a_kernel_that_is_killed_is_noticed_and_the_next_one_starts(warm, tmp_path) -> None:
    """By its signal."""
    with pytest.raises(MeasurementError, match=r"^killed by signal 9 \(SIGKILL\)"):
        told(warm, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert told(warm, tmp_path, "print(7)") == 7


def test_a_zygote_that_has_computed_refuses_to_serve(tmp_path) -> None:
    """Its OpenMP pool would be lost in a fork."""
    code = (
        "import torch; torch.set_num_threads(2); torch.ones(1 << 22).mul_(2.0); "
        "from scalebench_lib.sweep.forkserver import require_single_thread; require_single_thread()"
    )
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 CPUs")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "threads: something was computed" in run.stderr


def test_without_a_zygote_kernels_are_fresh_and_it_is_said(tmp_path, monkeypatch) -> None:
    """Any trouble falls back."""

    def broken(*_: object) -> ForkServerProcess:
        raise ForkServerError("no warm kernels: just because")

    monkeypatch.setattr(kernels_module, "ForkServerProcess", broken)
    with Kernels(warm=True) as kernels:
        assert kernels.trouble == "no warm kernels: just because"
        kind = "import os, json; print(json.dumps(os.environ.get('SCALEBENCH_KERNEL')))"
        assert told(kernels, tmp_path, kind) is None


def test_a_zygote_that_dies_is_replaced_by_fresh_kernels(light_fork_server, tmp_path) -> None:
    """In the middle of a sweep."""
    with Kernels(warm=True) as kernels:
        (fork_server,) = kernels._fork_servers.values()
        fork_server.process.kill()
        fork_server.process.wait()
        assert told(kernels, tmp_path, "print(7)") == 7
        assert "does not answer" in kernels.trouble


def test_a_zygote_that_dies_under_a_running_kernel_takes_it_along(
    light_fork_server, tmp_path
) -> None:
    """That is known; the next kernel is a fresh one."""
    kill = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)"
    with Kernels(warm=True) as kernels:
        assert not kernels.lost_fork_server("default")
        with pytest.raises(MeasurementError, match=r"^killed by signal 9 \(SIGKILL\)"):
            told(kernels, tmp_path, kill)
        assert kernels.lost_fork_server("default")
        assert told(kernels, tmp_path, "print(7)") == 7
        assert kernels.kind == "fresh"


def test_no_orphan_is_left_when_the_sweep_is_killed(light_fork_server, tmp_path) -> None:
    """ForkServer and kernel go with it."""
    source = notebook(tmp_path / "in.ipynb", "open('begun', 'w')", "import time; time.sleep(600)")
    code = (
        "from pathlib import Path; from scalebench_lib.sweep import provisioner\n"
        f"provisioner._FORK_SERVER = {light_fork_server}\n"
        "from scalebench_lib.sweep.kernels import Kernels\n"
        f"with Kernels() as k: k.run(Path({str(source)!r}), Path('out.ipynb'), {{}})"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_until((tmp_path / "begun").exists)
    family = psutil.Process(sweep.pid).children(recursive=True)
    assert len(family) >= 2
    fork_server = Path(
        next(c.cmdline()[-1] for c in family if "fork_server" in " ".join(c.cmdline()))
    ).parent
    assert fork_server.stat().st_mode & 0o777 & ~0o1000 == 0o700, (
        "nobody else can reach its sockets"
    )
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert not fork_server.exists(), "its folder goes too"
