"""Notebooks in kernels of their own: real kernels, failures and kills included."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest

from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.sweep import kernels as kernels_module
from scalebench_lib.sweep.kernels import Kernels
from tests.waiting import wait_until

run_notebook = Kernels(warm=False).run


def notebook(path: Path, *cells: str) -> Path:
    """A notebook with an empty parameters cell and then `cells`."""
    first = nbformat.v4.new_code_cell("word = ''", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    book.metadata["kernelspec"] = {"name": "nowhere", "language": "python", "display_name": "x"}
    nbformat.write(book, path)
    return path


def kernels() -> set[int]:
    """The kernels that this process has started and that still live."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "ipykernel" in " ".join(child.cmdline())}


def test_a_notebook_runs_with_this_python_and_its_parameters(tmp_path: Path) -> None:
    """Whatever kernel the notebook names, and whatever the folder is called."""
    asked = "print(word, sys.executable.encode().hex())"  # a path would be scrubbed
    source = notebook(tmp_path / "in.ipynb", "import sys", asked)
    target = tmp_path / "odd {name} 'here'" / "out.ipynb"
    run_notebook(source, target, {"word": "hello"})
    printed = nbformat.read(target, as_version=4).cells[-1].outputs[0].text
    assert printed == f"hello {sys.executable.encode().hex()}\n"
    assert not kernels()


def test_no_path_of_this_machine_is_left_in_the_notebook(tmp_path: Path) -> None:
    """papermill notes down where it read and wrote."""
    run_notebook(notebook(tmp_path / "in.ipynb", "1 + 1"), tmp_path / "out.ipynb", {})
    assert str(tmp_path) not in (tmp_path / "out.ipynb").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.ipynb", "out.ipynb"]


def test_no_socket_and_no_thread_stays_behind(tmp_path: Path) -> None:
    """A sweep may run thousands of them."""
    source = notebook(tmp_path / "in.ipynb", "1 + 1")
    here, found = psutil.Process(), set()
    for number in range(4):
        run_notebook(source, tmp_path / f"{number}.ipynb", {})
        found.add((here.num_fds(), here.num_threads()) if number else None)
    assert len(found - {None}) == 1, found


def test_an_exception_is_told_in_one_line_and_the_notebook_kept(tmp_path: Path) -> None:
    """To be looked at."""
    source = notebook(tmp_path / "in.ipynb", "raise ValueError('no luck\\nat all')")
    with pytest.raises(MeasurementError, match=r"^ValueError: no luck$"):
        run_notebook(source, tmp_path / "out.ipynb", {})
    assert "no luck" in (tmp_path / "out.ipynb").read_text()
    assert not kernels()


def test_a_kernel_that_is_killed_is_noticed(tmp_path: Path) -> None:
    """Within 5 s; papermill saves its notebook with every cell marked completed."""
    kill = "import os, signal; open(word, 'w'); os.kill(os.getpid(), signal.SIGKILL)"
    source, last_words = notebook(tmp_path / "in.ipynb", kill), tmp_path / "last words"
    with pytest.raises(MeasurementError, match=r"^killed by signal 9 \(SIGKILL\)"):
        run_notebook(source, tmp_path / "out.ipynb", {"word": str(last_words)})
    assert time.time() - last_words.stat().st_mtime < 5


@pytest.mark.usefixtures("heeding_interrupts")
def test_an_interrupt_takes_the_kernel_along(tmp_path: Path) -> None:
    """Ctrl-C reaches us, not the kernel: it has a process group of its own."""
    source = notebook(tmp_path / "in.ipynb", "open(word, 'w')", "import time; time.sleep(600)")
    begun = tmp_path / "begun"

    def interrupt() -> None:
        wait_until(begun.exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_notebook(source, tmp_path / "out.ipynb", {"word": str(begun)})
    assert not kernels()


def test_a_kernel_that_hangs_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    """At its time limit, or a few seconds later."""
    hang = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '600'], "
        "start_new_session=True); open(word, 'w').write(str(child.pid)); time.sleep(600)"
    )
    source, begun, start = notebook(tmp_path / "in.ipynb", hang), tmp_path / "b", time.monotonic()
    with pytest.raises(MeasurementError, match="not done after 4 s, its time limit"):
        run_notebook(source, tmp_path / "out.ipynb", {"word": str(begun)}, limit_s=4)
    assert time.monotonic() - start < 4 + 10
    assert not kernels()
    wait_until(lambda: not psutil.pid_exists(int(begun.read_text())) or zombie(begun))


def zombie(begun: Path) -> bool:
    """Whether the process in file `begun` is dead and only waits for its parent."""
    return psutil.Process(int(begun.read_text())).status() == psutil.STATUS_ZOMBIE


def test_a_kernel_that_dies_at_its_start_is_told(tmp_path: Path, monkeypatch) -> None:
    """Not waited for."""
    monkeypatch.setattr(kernels_module, "_LAUNCH", ["-c", "raise SystemExit(3)"])
    with pytest.raises(MeasurementError, match="the kernel did not start: it died"):
        run_notebook(notebook(tmp_path / "in.ipynb", "1"), tmp_path / "out.ipynb", {})


@pytest.mark.parametrize("name", ["x; import os", "x = 1\ny", "", "class", "1x"])
def test_a_parameter_whose_name_is_code_starts_nothing(tmp_path: Path, name: str) -> None:
    """papermill would inject it as it comes."""
    with pytest.raises(RequestError, match="is no name of a parameter"):
        run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {name: 1})
    assert list(tmp_path.iterdir()) == []


def test_odd_values_arrive_as_they_are_through_sockets_of_our_own(tmp_path: Path) -> None:
    """Quotes, newlines, numpy's numbers; nobody else can enter the sockets' folder."""
    odd = "it's \"odd\" \\ {x}\n' + 1"
    facts = (
        "import sys, os, json; folder = os.path.dirname(sys.argv[sys.argv.index('-f') + 1]); "
        "print(json.dumps([word, number, oct(os.stat(folder).st_mode & 0o777), "
        "[name for name in os.listdir() if 'ipc' in name]]))"
    )
    source = notebook(tmp_path / "in.ipynb", facts)
    run_notebook(source, tmp_path / "out.ipynb", {"word": odd, "number": np.int64(8)})
    printed = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text
    assert json.loads(printed) == [odd, 8, "0o700", []]
