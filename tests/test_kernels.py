"""Notebooks in kernels of their own: real kernels, failures and kills included."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from scalebench_lib.errors import MeasurementError
from scalebench_lib.sweep.kernels import Kernels

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


def test_an_exception_is_told_in_one_line_and_the_notebook_kept(tmp_path: Path) -> None:
    """To be looked at."""
    source = notebook(tmp_path / "in.ipynb", "raise ValueError('no luck\\nat all')")
    with pytest.raises(MeasurementError, match=r"^ValueError: no luck$"):
        run_notebook(source, tmp_path / "out.ipynb", {})
    assert "no luck" in (tmp_path / "out.ipynb").read_text()
    assert not kernels()


def test_a_kernel_that_is_killed_is_noticed(tmp_path: Path) -> None:
    """papermill saves its notebook with every cell marked completed."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(MeasurementError, match="the kernel was killed by SIGKILL"):
        run_notebook(notebook(tmp_path / "in.ipynb", kill), tmp_path / "out.ipynb", {})


def test_an_interrupt_takes_the_kernel_along(tmp_path: Path) -> None:
    """Ctrl-C reaches us, not the kernel: it has a process group of its own."""
    source = notebook(tmp_path / "in.ipynb", "open(word, 'w')", "import time; time.sleep(600)")
    begun = tmp_path / "begun"

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_notebook(source, tmp_path / "out.ipynb", {"word": str(begun)})
    assert not kernels()
