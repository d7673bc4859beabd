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
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from scalebench_lib.allocators import variables
from scalebench_lib.config import Allocator
from scalebench_lib.errors import ScalebenchError
from scalebench_lib.processes import exit_reason
from scalebench_lib.protocol import RUNNER_SOCKET
from scalebench_lib.record import RUNNER_ENVIRONMENT
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.locks import socket_folder

COMMAND = ["-m", "scalebench_lib.sweep.forkserver"]
"""What starts a kernel with a connection file, and a fork server with a pipe."""

SOCKET = "runner"
"""The name of a kernel's socket to the runner, in its folder."""

START_S = 60.0

ANSWER_S = 30.0
"""A fork server that takes longer to answer is given up."""


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
            raise NotStartedError(lines[-1] if lines else "it did not start in time") from None

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the answer to `request`; `NotStartedError` where the server is gone."""
        try:
            with self._lock:
                self._pipe.send(request)
                return self._answer(ANSWER_S)
        except (OSError, EOFError) as error:
            self.is_gone = True
            self.process.kill()  # a late answer would be taken for the next one
            raise NotStartedError(f"the fork server does not answer: {error}") from None

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
    """Start a kernel, or have `fork_server` fork it; end it with its children."""

    process: Any
    fork_server: ForkServer | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start `cmd`, or fork with its arguments; raise `NotStartedError` where that fails."""
        env = dict(self.kernel_spec.env)  # jupyter_client would add this process's
        if self.fork_server is None:
            return await super().launch_kernel(cmd, **{**kwargs, "env": env})
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


class _Client(AsyncKernelClient):
    def start_channels(self, *args: Any, **kwargs: Any) -> None:
        """Start all but the heartbeat, which would ping the kernel every second."""
        super().start_channels(*args, **{**kwargs, "hb": False})


class KernelManager(AsyncKernelManager):
    """Start and end a kernel; `folder` holds its sockets, and that of `RUNNER_SOCKET`."""

    folder: Path
    provisioner: KernelProvisioner
    kernel_spec = KernelSpec()  # not searched for among installed ones


class Kernels(ExitStack):
    """Make kernels, until it is closed: started afresh, or, if `warm`, forked from a fork server.

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

    def new(self, allocator: Allocator = "default") -> KernelManager:
        """Return the manager of a kernel to be started, with the environment of the sweep."""
        allocating = variables(allocator, self._python.environment)
        server = self._fork_server(allocating)
        folder = Path(tempfile.mkdtemp(dir=server.folder)) if server else socket_folder()
        kernel = KernelManager(
            kernel_name="python3",
            client_factory=_Client,
            transport="ipc",
            connection_file=str(folder / "kernel.json"),
        )
        kernel.folder = folder
        kernel.kernel_spec = KernelSpec(
            argv=[self._python.executable, "-P", *COMMAND, "-f", "{connection_file}"],
            env={
                **self._python.environment,
                **allocating,
                RUNNER_SOCKET: str(folder / SOCKET),
                RUNNER_ENVIRONMENT: json.dumps(self._python.software.environment),
                "IPYTHONDIR": str(folder / "ipython"),  # there may be no home
            },
        )
        kernel.provisioner = KernelProvisioner(kernel_spec=kernel.kernel_spec, parent=kernel)
        kernel.provisioner.fork_server = server
        return kernel

    def fall_back(self, error: Exception) -> None:
        """Start kernels afresh from now on, because of `error`; those that were forked go on."""
        self.warning, self.kind = f"no warm kernels: {error}", "fresh"

    def _fork_server(self, allocating: dict[str, str]) -> ForkServer | None:
        if self.kind == "fresh":
            return None
        try:
            if (key := str(allocating)) not in self._fork_servers:
                server = ForkServer(allocating, self._python)
                self._fork_servers[key] = self.enter_context(closing(server))
        except (NotStartedError, OSError) as error:
            self.fall_back(error)
        return self._fork_servers.get(key)
