"""Warm kernels: forks of a process that has only imported what a trial needs.

Imports take seconds, a fork milliseconds. A fork is as good as a fresh process only if the fork
server has a single thread and has never computed.

It answers JSON requests on a pipe: ``{"start": argv, "env": {}, "cwd": path}`` with a process id,
and ``{"poll": pid}`` with an exit code or null. When the pipe closes, as at the end of the sweep,
it ends with its kernels.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.processes import die_with_parent, exit_reason
from scalebench_lib.sweep.interpreter import IMPORTS, Interpreter
from scalebench_lib.sweep.locks import socket_folder

START_S = 60.0

ANSWER_S = 30.0
"""A fork server that takes longer to answer is given up."""

_COMMAND = ["-m", "scalebench_lib.sweep.forkserver"]


class NotStartedError(ScalebenchError):
    """A kernel or the fork server does not start, or does not answer."""


class ForkServer:
    """A running fork server of `python`, with `env` added to its environment."""

    def __init__(self, env: dict[str, str], python: Interpreter) -> None:
        self.folder, self.is_gone = socket_folder(), False
        self._lock = threading.Lock()
        self._pipe, theirs = Pipe()
        with theirs, (self.folder / "errors").open("w") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [python.executable, "-P", *_COMMAND, str(theirs.fileno()), str(self.folder)],
                env={**python.environment, "OPENBLAS_NUM_THREADS": "1", **env},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        try:
            self._answer(START_S)
        except (OSError, EOFError):
            lines = (self.folder / "errors").read_text().splitlines()
            self.close()
            raise NotStartedError(lines[-1] if lines else "it did not start in time") from None

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the answer to `request`; `NotStartedError` where the server is gone."""
        try:
            with self._lock:
                self._pipe.send_bytes(json.dumps(request).encode())
                return self._answer(ANSWER_S)
        except (OSError, EOFError) as error:
            self.is_gone = True
            self.process.kill()  # a late answer would be taken for the next one
            raise NotStartedError(f"the fork server does not answer: {error}") from None

    def _answer(self, limit_s: float) -> Any:
        if not self._pipe.poll(limit_s):
            raise TimeoutError("it takes too long")
        return json.loads(self._pipe.recv_bytes())

    def close(self) -> None:
        """End the fork server and its kernels."""
        self._pipe.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class _ForkedKernel:
    """A kernel that `server` has forked, with the interface of a Popen."""

    stdin = stdout = stderr = None

    def __init__(self, server: ForkServer, request: dict[str, Any]) -> None:
        self._server = server
        self.pid: int = server.ask(request)

    def poll(self) -> int | None:
        try:
            code: int | None = self._server.ask({"poll": self.pid})
        except NotStartedError:  # its kernels ended with it
            return -signal.SIGKILL
        return code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


class KernelProvisioner(LocalProvisioner):
    """Start a kernel of `python`, or have `fork_server` fork it; end it with its children."""

    process: Any
    python: Interpreter
    fork_server: ForkServer | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start `cmd`, or fork with its arguments; raise `NotStartedError` where that fails."""
        env = {**self.python.environment, **self.kernel_spec.env}
        if self.fork_server is None:
            return await super().launch_kernel(cmd, **{**kwargs, "env": env})
        env["SCALEBENCH_KERNEL"] = "warm"
        request = {"start": cmd[cmd.index("-f") :], "env": env, "cwd": str(Path.cwd())}
        self.process = _ForkedKernel(self.fork_server, request)
        self.pid = self.pgid = self.process.pid
        return self.connection_info

    async def send_signal(self, signum: int) -> None:
        """Send nothing: jupyter_client interrupts before it kills, and children would print."""

    async def kill(self, restart: bool = False) -> None:
        """End the kernel and wait: jupyter_client would poll every 0.1 s until it has ended."""
        self.end()

    def end(self) -> None:
        """Kill the kernel, its process group, and all its descendants."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        for kill in (os.killpg, os.kill):  # it may not lead its group yet
            with suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
        process.wait()

    def exit_reason(self, oom_kills_before: int) -> str:
        code = self.process and self.process.poll()
        if self.fork_server is not None and self.fork_server.is_gone:
            return "the process that kernels are forked from died"
        return exit_reason(code, oom_kills_before)


def main() -> None:
    """Import, check, report readiness, serve."""
    pipe, folder = Connection(int(sys.argv[-2])), sys.argv[-1]
    for name in IMPORTS:
        importlib.import_module(name)
    require_single_thread()
    gc.collect()
    gc.freeze()  # what was imported is never collected again, here or in a kernel
    pipe.send_bytes(b'"ready"')
    with suppress(EOFError, OSError):
        _serve(pipe)
    shutil.rmtree(folder, ignore_errors=True)  # a killed sweep cannot


def _serve(pipe: Connection) -> NoReturn:
    codes: dict[int, int | None] = {}
    while True:
        request = json.loads(pipe.recv_bytes())
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
        pipe.send_bytes(json.dumps(answer).encode())


def _become_kernel(request: dict[str, Any]) -> NoReturn:
    """Start a session with new random numbers, and run a kernel."""
    try:
        die_with_parent()
        os.setsid()
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        reseed()
        from scalebench_lib.sweep.kernel_app import launch

        launch(request["start"])
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


if __name__ == "__main__":
    main()
