"""Warm kernels: real forks of a real fork server, kills included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalebench_lib.sweep import kernels as kernels_module
from scalebench_lib.sweep.kernels import ForkServer, ForkServerError, Kernels
from tests.notebooks import run_cells

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
        raise ForkServerError("just because")

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
