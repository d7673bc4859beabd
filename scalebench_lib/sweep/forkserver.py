"""The fork server: a process that has only imported what a measurement needs, and forks kernels.

Importing costs seconds; a fork costs milliseconds. That is sound only as long as the fork server
has a single thread and has never computed anything: then a fork of it is a fresh process that has
done its imports. Runs as ``python -m scalebench_lib.sweep.forkserver SOCKET``.

It answers one JSON request a connection: ``{"start": argv, "env": {}, "cwd": ""}`` with
``{"pid": n}``, and ``{"poll": pid}`` with ``{"code": n or null}``. It ends, and its kernels with
it, when its standard input does: that is when the sweep is gone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from scalebench_lib.processes import die_with_parent

IMPORTS = (
    "IPython.core.completerlib",
    "IPython.extensions.storemagic",
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "scalebench_lib.analysis.figures",
    "scalebench_lib.analysis.figures",
    "scalebench_lib.measure.trial",
    "scalebench_lib.notebook",
    "scalebench_lib.results",
    "sqlite3",
    "tornado.platform.asyncio",
)
"""What ``measure.ipynb`` and its kernel import; named, since the sweep does not know torch."""

KERNEL_OPTIONS = ("--HistoryManager.enabled=False",)
"""Nobody looks back into the history of a notebook that ran once."""


class ForkServer:
    """Serves requests on the listening `server` until standard input ends."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.codes: dict[int, int | None] = {}

    def serve(self) -> None:
        """Answer requests, one after another."""
        try:
            while sys.stdin not in select.select([self.server, sys.stdin], [], [])[0]:
                connection, _ = self.server.accept()
                with connection, suppress(OSError, ValueError, KeyError):  # it went away again
                    self._serve_one(connection)
        finally:
            for pid in self.codes:
                if self._poll(pid) is None:
                    os.kill(pid, signal.SIGKILL)

    def _serve_one(self, connection: socket.socket) -> None:
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(self._answer(json.loads(stream.readline()))) + "\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, int | None]:
        if "start" in request:
            return {"pid": self._fork(request)}
        return {"code": self._poll(request["poll"])}

    def _fork(self, request: dict[str, Any]) -> int:
        require_single_thread()
        pid = os.fork()
        if pid == 0:
            self._become_kernel(request)
        self.codes[pid] = None
        return pid

    def _poll(self, pid: int) -> int | None:
        if self.codes[pid] is None:
            ended, status = os.waitpid(pid, os.WNOHANG)
            self.codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
        return self.codes[pid]

    def _become_kernel(self, request: dict[str, Any]) -> NoReturn:
        """In the child: a session of its own, new random numbers, then ipykernel as it comes."""
        code = 1
        try:
            die_with_parent()
            os.setsid()
            self.server.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            reseed()
            from ipykernel.kernelapp import IPKernelApp

            IPKernelApp.launch_instance(argv=[*request["start"], *KERNEL_OPTIONS])
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def reseed() -> None:
    """Forks share the state of random generators; a kernel needs its own."""
    import numpy as np
    import torch

    seed = int.from_bytes(os.urandom(4), "little")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global state is what was copied
    torch.manual_seed(seed)


def require_single_thread() -> None:
    """Raise RuntimeError where a library has started a thread: a fork would lose it."""
    count = len(list(Path("/proc/self/task").iterdir()))
    if count != 1:
        raise RuntimeError(f"{count} threads: something was computed, or a library starts its own")


def main() -> None:
    """Import, check, say so, serve."""
    for name in IMPORTS:
        importlib.import_module(name)
    require_single_thread()
    gc.collect()
    gc.freeze()  # what was imported is never collected again, here or in a kernel
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(sys.argv[1])
            server.listen()
            print("ready", flush=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads what kernels print there
            ForkServer(server).serve()
    finally:
        shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True)  # a killed sweep cannot


if __name__ == "__main__":
    main()
