"""Notebooks in kernels of their own: real kernels, failures and kills included."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scalebench_lib.errors import MeasurementError
from scalebench_lib.sweep import kernels as kernels_module
from scalebench_lib.sweep.kernels import Kernels
from tests.notebooks import notebook, run_cells, run_notebook
from tests.waiting import wait_until

FRESH = Kernels(warm=False)


def kernels() -> set[int]:
    """The fresh kernels that this process has started and that still live."""
    children = psutil.Process().children(recursive=True)
    return {
        child.pid for child in children if {*kernels_module.COMMAND, "-f"} <= {*child.cmdline()}
    }


def test_a_notebook_runs_with_this_python_and_its_parameters(tmp_path: Path) -> None:
    """Whatever kernel the notebook names, and whatever the folder is called."""
    asked = "print(word, sys.executable.encode().hex())"  # a path would be scrubbed
    source = notebook(tmp_path / "in.ipynb", "import sys", asked)
    odd = "it's \"odd\" \\ {x}\\n' + 1"
    printed = run_notebook(FRESH, source, tmp_path / "odd {name} 'here'" / "out.ipynb", word=odd)
    assert printed == f"{odd} {sys.executable.encode().hex()}\n"
    assert not kernels()


def test_no_path_of_this_machine_is_left_in_the_notebook(tmp_path: Path) -> None:
    """papermill notes down where it read and wrote."""
    run_notebook(FRESH, notebook(tmp_path / "in.ipynb", "1 + 1"), tmp_path / "out.ipynb")
    assert str(tmp_path) not in (tmp_path / "out.ipynb").read_text()
    assert "papermill" in (tmp_path / "out.ipynb").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.ipynb", "out.ipynb"]


def test_no_socket_and_no_thread_stays_behind(tmp_path: Path) -> None:
    """A sweep may run thousands of them."""
    source = notebook(tmp_path / "in.ipynb", "1 + 1")
    here = psutil.Process()
    run_notebook(FRESH, source, tmp_path / "0.ipynb")
    time.sleep(0.5)
    descriptors, threads = here.num_fds(), here.num_threads()
    for number in range(1, 4):
        run_notebook(FRESH, source, tmp_path / f"{number}.ipynb")
        assert here.num_fds() == descriptors
        wait_until(lambda: here.num_threads() == threads, seconds=5)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.usefixtures("light_fork_server")
def test_neither_the_user_s_profile_nor_the_folder_at_hand_has_a_part(
    warm, tmp_path, monkeypatch
) -> None:
    """Variables of start-up files would be parameters; a ``statistics.py`` here is no library."""
    startup = tmp_path / ".ipython/profile_default/startup/first.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("x = 3")
    (tmp_path / "statistics.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(startup))
    with Kernels(warm=warm) as made:
        cell = "import json, statistics; print(json.dumps('x' in globals()))"
        assert run_cells(made, tmp_path, cell) is False
        assert made.warning is None


def test_an_exception_is_told_in_one_line_and_the_notebook_kept(tmp_path: Path) -> None:
    """To be looked at."""
    source = notebook(tmp_path / "in.ipynb", "raise ValueError('no luck\\nat all')")
    with pytest.raises(MeasurementError, match=r"^ValueError: no luck$"):
        run_notebook(FRESH, source, tmp_path / "out.ipynb")
    assert "no luck" in (tmp_path / "out.ipynb").read_text()
    assert not kernels()


def test_a_kernel_that_is_killed_is_noticed(tmp_path: Path) -> None:
    """Within 5 s; papermill saves its notebook with every cell marked completed."""
    kill = "import os, signal; open(word, 'w'); os.kill(os.getpid(), signal.SIGKILL)"
    source, last_words = notebook(tmp_path / "in.ipynb", kill), tmp_path / "last words"
    with pytest.raises(MeasurementError, match=r"^killed by signal 9 \(SIGKILL\)"):
        run_notebook(FRESH, source, tmp_path / "out.ipynb", word=str(last_words))
    assert time.time() - last_words.stat().st_mtime < 5


@pytest.mark.slow
def test_a_kernel_that_hangs_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    """At its time limit, or a few seconds later."""
    hang = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '600'], "
        "start_new_session=True); open(word, 'w').write(str(child.pid)); time.sleep(600)"
    )
    source, begun, start = notebook(tmp_path / "in.ipynb", hang), tmp_path / "b", time.monotonic()
    with pytest.raises(MeasurementError, match="not done after 8 s, its time limit"):
        run_notebook(FRESH, source, tmp_path / "out.ipynb", limit_s=8, word=str(begun))
    assert time.monotonic() - start < 8 + 10
    assert not kernels()
    wait_until(lambda: not psutil.pid_exists(int(begun.read_text())) or zombie(begun))


def zombie(begun: Path) -> bool:
    """Whether the process in file `begun` is dead and only waits for its parent."""
    return psutil.Process(int(begun.read_text())).status() == psutil.STATUS_ZOMBIE


def test_a_kernel_that_dies_at_its_start_is_told(tmp_path: Path, monkeypatch) -> None:
    """Not waited for."""
    monkeypatch.setattr(kernels_module, "COMMAND", ["-c", "raise SystemExit(3)"])
    with pytest.raises(MeasurementError, match="did not start: Kernel died before"):
        run_notebook(FRESH, notebook(tmp_path / "in.ipynb", "1"), tmp_path / "out.ipynb")


def test_nobody_else_can_enter_the_folder_of_the_sockets(tmp_path: Path) -> None:
    """The kernel's own, and the one to the runner."""
    facts = (
        "import sys, os, json; folder = os.path.dirname(sys.argv[sys.argv.index('-f') + 1]); "
        "print(json.dumps([oct(os.stat(folder).st_mode & 0o777), "
        "os.path.dirname(os.environ['SCALEBENCH_RUNNER']) == folder, "
        "[name for name in os.listdir() if 'ipc' in name]]))"
    )
    source = notebook(tmp_path / "in.ipynb", facts)
    found = json.loads(run_notebook(FRESH, source, tmp_path / "out.ipynb"))
    assert found == ["0o700", True, []]


@pytest.mark.stress
def test_a_sweep_does_not_wake_up_while_a_kernel_computes(tmp_path: Path) -> None:
    """What polls would disturb what is timed."""
    code = (
        "import sys, time; from pathlib import Path; import psutil\n"
        "from scalebench_lib.sweep.kernels import Kernels\n"
        "from scalebench_lib.sweep.trial_process import NotebookRun\n"
        "kernel = Kernels(warm=False).start()\n"
        "run = NotebookRun(kernel, Path(sys.argv[1]), Path('out.ipynb'), {})\n"
        "while not Path('begun').exists(): time.sleep(0.1)\n"
        "time.sleep(1)\n"
        "switches = lambda: sum(psutil.Process().num_ctx_switches())\n"
        "before = switches(); time.sleep(3); print(switches() - before)\n"
        "run.kill()"
    )
    sleep = "import time; open('begun', 'w'); time.sleep(600)"
    source = notebook(tmp_path / "in.ipynb", sleep)
    told = subprocess.run(
        [sys.executable, "-c", code, source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) <= 4
