"""Where kernels begin: ``python -m`` this module is a kernel, or a fork server of warm ones.

Imports take seconds, a fork milliseconds. A fork is as good as a fresh process only if the fork
server has a single thread and has never computed. It answers requests on a pipe:
``{"start": argv, "env": {}, "cwd": path}`` with a process id, and ``{"poll": pid}`` with an exit
code or None. When the pipe closes, as at the end of the sweep, it ends with its kernels.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import shutil
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from ipykernel.kernelapp import IPKernelApp

from scalebench_lib.processes import die_with_parent

IMPORTS = (
    "IPython.core.completerlib",
    "IPython.extensions.storemagic",
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "scalebench_lib.analysis.draw",
    "scalebench_lib.analysis.figures",
    "scalebench_lib.measure.trial",
    "scalebench_lib.notebook",
    "scalebench_lib.results",
    "sqlite3",
    "tornado.platform.asyncio",
)
"""Modules that ``measure.ipynb`` and its kernel import; by name, since a sweep imports no torch."""

_OPTIONS = ["--HistoryManager.enabled=False", "--IPKernelApp.ignore_cwd=True"]
"""No history of a notebook that runs once; a ``statistics.py`` in the working directory is not
imported."""


class BareKernelApp(IPKernelApp):
    """A kernel without configuration and start-up files: the user's, and those of the system."""

    def load_config_file(self, *_: Any, **__: Any) -> None:
        """Load none."""

    def _run_startup_files(self) -> None:
        """Run none, and no PYTHONSTARTUP."""


def run_kernel(arguments: list[str]) -> None:
    """Run a kernel until the runner ends it."""
    BareKernelApp.launch_instance(argv=[*arguments, *_OPTIONS])


def serve(pipe: Connection, folder: str) -> None:
    """Import, check, report readiness, fork kernels; in the end remove the folder of sockets."""
    for name in IMPORTS:
        importlib.import_module(name)
    require_single_thread()
    gc.collect()
    gc.freeze()  # what was imported is never collected again, here or in a kernel
    pipe.send("ready")
    with suppress(EOFError, OSError):
        _answer_requests(pipe)
    shutil.rmtree(folder, ignore_errors=True)  # a killed sweep cannot


def _answer_requests(pipe: Connection) -> NoReturn:
    codes: dict[int, int | None] = {}
    while True:
        request = pipe.recv()
        if pid := request.get("poll"):
            if codes.get(pid) is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
            answer = codes[pid]
        else:
            require_single_thread()
            if (answer := os.fork()) == 0:
                pipe.close()
                _become_kernel(request)
        pipe.send(answer)


def _become_kernel(request: dict[str, Any]) -> NoReturn:
    """Start a session with new random numbers, and run a kernel."""
    try:
        die_with_parent()
        os.setsid()
        os.environ.clear()
        os.environ.update(request["env"], SCALEBENCH_KERNEL="warm")
        os.chdir(request["cwd"])
        reseed()
        run_kernel(request["start"])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def reseed() -> None:
    """Seed a kernel's generators: forks share their state."""
    import numpy as np
    import torch

    seed = int.from_bytes(os.urandom(4), "little")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global state is what was copied
    torch.manual_seed(seed)


def require_single_thread() -> None:
    """Raise RuntimeError where the process has several threads: a fork would lose them."""
    count = len(list(Path("/proc/self/task").iterdir()))
    if count != 1:
        raise RuntimeError(f"{count} threads: something was computed, or a library starts its own")


def main() -> None:
    """Run a kernel by its connection file, or a fork server on a pipe, for sockets in a folder."""
    if "-f" in sys.argv:
        die_with_parent()
        run_kernel(sys.argv[1:])
    else:
        serve(Connection(int(sys.argv[-2])), sys.argv[-1])


if __name__ == "__main__":
    main()
