"""Start kernels, afresh or as forks, and end them with all that they have started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, closing, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Literal

import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from scalebench_lib.allocators import variables
from scalebench_lib.config import Allocator
from scalebench_lib.errors import ScalebenchError
from scalebench_lib.processes import kernel_exit_reason
from scalebench_lib.protocol import RUNNER_SOCKET
from scalebench_lib.record import RUNNER_ENVIRONMENT
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.locks import make_socket_folder

COMMAND = ["-m", "scalebench_lib.sweep.forkserver"]
"""What starts a kernel with a connection file, and a fork server with a pipe."""

SOCKET = "runner"
"""The name of a kernel's socket to the runner, in its folder."""

START_S = 60.0

ANSWER_S = 30.0
"""A fork server that takes longer to answer is given up."""


class ForkServerError(ScalebenchError):
    """The fork server does not start, or does not answer."""


class ForkServer:
    """A running fork server of `python`, with `env` added to its environment."""

    def __init__(self, env: dict[str, str], python: Interpreter) -> None:
        self.folder, self.is_gone = make_socket_folder(), False
        self._lock = threading.Lock()
        self._pipe, theirs = Pipe()
        with theirs, (self.folder / "errors").open("w") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [python.executable, "-P", *COMMAND, str(theirs.fileno()), str(self.folder)],
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
            raise ForkServerError(lines[-1] if lines else "it did not start in time") from None

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the answer to `request`; `ForkServerError` where the server is gone."""
        try:
            with self._lock:
                self._pipe.send(request)
                return self._answer(ANSWER_S)
        except (OSError, EOFError) as error:
            self.is_gone = True
            self.process.kill()  # a late answer would be taken for the next one
            raise ForkServerError(f"the fork server does not answer: {error}") from None

    def _answer(self, limit_s: float) -> Any:
        if not self._pipe.poll(limit_s):
            raise TimeoutError("it takes too long")
        return self._pipe.recv()

    def close(self) -> None:
        """End the fork server and its kernels."""
        self._pipe.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class _ForkedKernel:
    """A process that `server` has forked, with the interface of a Popen."""

    def __init__(self, server: ForkServer, arguments: list[str], env: dict[str, str]) -> None:
        self.server = server
        self.pid: int = server.ask({"start": arguments, "env": env, "cwd": str(Path.cwd())})

    def poll(self) -> int | None:
        try:
            code: int | None = self.server.ask({"poll": self.pid})
        except ForkServerError:  # its kernels ended with it
            return -signal.SIGKILL
        return code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


class _Client(AsyncKernelClient):
    def start_channels(self, *args: Any, **kwargs: Any) -> None:
        """Start all but the heartbeat, which would ping the kernel every second."""
        super().start_channels(*args, **{**kwargs, "hb": False})


class Kernel(AsyncKernelManager):
    """The kernel in `process`; `folder` holds its sockets, and that of `RUNNER_SOCKET`."""

    process: subprocess.Popen[bytes] | _ForkedKernel
    has_kernel = True

    def __init__(self, folder: Path) -> None:
        file = str(folder / "kernel.json")
        super().__init__(client_factory=_Client, transport="ipc", connection_file=file)
        self.folder = folder
        self.write_connection_file()

    async def _async_is_alive(self) -> bool:
        return self.process.poll() is None

    async def _async_shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        self.end()

    is_alive, shutdown_kernel = _async_is_alive, _async_shutdown_kernel

    def end(self) -> None:
        """Kill the kernel, its process group, and all its descendants; wait for its end."""
        if self.process.poll() is not None:
            return
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        for kill in (os.killpg, os.kill):  # it may not lead its group yet
            with suppress(ProcessLookupError):
                kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def exit_reason(self, oom_kills_before: int) -> str:
        code = self.process.poll()
        if isinstance(self.process, _ForkedKernel) and self.process.server.is_gone:
            return "the process that kernels are forked from died"
        return kernel_exit_reason(code, oom_kills_before)


class Kernels(ExitStack):
    """Start kernels, until it is closed: afresh, or, if `warm`, forked from a fork server.

    Where a fork server does not start, or fails later, kernels are fresh, and `warning` says why.
    Each allocator has a fork server of its own, since malloc reads its variables once. `python`
    runs the kernels, by default this process's.
    """

    def __init__(self, warm: bool = True, python: Interpreter | None = None) -> None:
        super().__init__()
        self.warning: str | None = None
        self.kind: Literal["warm", "fresh"] = "warm" if warm else "fresh"
        self._python = python or Interpreter.here()
        self._fork_servers: dict[str, ForkServer] = {}

    def start(self, allocator: Allocator = "default") -> Kernel:
        """Start a kernel with the environment of the sweep."""
        allocating = variables(allocator, self._python.environment)
        if self.kind == "warm":
            try:
                return self._fork(allocating)
            except (ForkServerError, OSError) as error:
                self.warning, self.kind = f"no warm kernels: {error}", "fresh"
        kernel = Kernel(make_socket_folder())
        kernel.process = subprocess.Popen(  # noqa: S603 - our own module
            [self._python.executable, "-P", *COMMAND, "-f", kernel.connection_file],
            env={**self._environment(kernel, allocating), "JPY_PARENT_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return kernel

    def _fork(self, allocating: dict[str, str]) -> Kernel:
        if (key := str(allocating)) not in self._fork_servers:
            server = ForkServer(allocating, self._python)
            self._fork_servers[key] = self.enter_context(closing(server))
        server = self._fork_servers[key]
        kernel = Kernel(Path(tempfile.mkdtemp(dir=server.folder)))
        environment = self._environment(kernel, allocating)
        kernel.process = _ForkedKernel(server, ["-f", kernel.connection_file], environment)
        return kernel

    def _environment(self, kernel: Kernel, allocating: dict[str, str]) -> dict[str, str]:
        return {
            **self._python.environment,
            **allocating,
            RUNNER_SOCKET: str(kernel.folder / SOCKET),
            RUNNER_ENVIRONMENT: json.dumps(self._python.software.environment),
            "IPYTHONDIR": str(kernel.folder / "ipython"),  # there may be no home
        }
