"""Warm kernels: a kernel provisioner that forks them from a fork server, imports done."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Instance, Unicode

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.locks import socket_folder

PROVISIONER = "scalebench-warm"
"""The entry point's name; see ``pyproject.toml``."""

_FORK_SERVER = ["-m", "scalebench_lib.sweep.forkserver"]

START_SECONDS = 60.0

ANSWER_SECONDS = 30.0
"""A fork server that takes longer to answer is as good as gone."""


class ForkServerError(ScalebenchError):
    """Kernels cannot be forked here: use fresh ones."""


class ForkServerProcess:
    """A running fork_server of `python` for one environment: `env` is added to what `python` has.

    Close it, or its kernels stay until we end.
    """

    def __init__(self, env: dict[str, str], python: Interpreter) -> None:
        self.folder = socket_folder()
        self.socket = str(self.folder / "fork_server")
        self._errors = self.folder / "errors"
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [python.executable, *_FORK_SERVER, self.socket],
            env={**python.environment(), "OPENBLAS_NUM_THREADS": "1", **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors.open("w"),
            text=True,
            start_new_session=True,
        )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - asked for above
        answers, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        if not answers or self.process.stdout.readline() != "ready\n":
            told = self._errors.read_text().splitlines() or ["it did not start in time"]
            self.close()
            raise ForkServerError(f"no warm kernels: {told[-1]}")

    def close(self) -> None:
        """End the fork server and its kernels."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class ForkedKernel:
    """A kernel that a fork server has forked, as jupyter_client wants to see it: like a Popen."""

    stdin = stdout = stderr = None

    def __init__(self, fork_server: str, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self.fork_server = fork_server
        self.pid = int(self._ask({"start": argv, "env": env, "cwd": cwd})["pid"])

    def poll(self) -> int | None:
        """The exit code, or None while it runs; a fork server that is gone took it along."""
        try:
            code = self._ask({"poll": self.pid})["code"]
        except (OSError, ValueError):
            return -signal.SIGKILL
        return None if code is None else int(code)

    def wait(self) -> int:
        """Wait for the end."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel alone."""
        os.kill(self.pid, signum)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(self.fork_server)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline())
                return answer


class ForkProvisioner(LocalProvisioner):
    """Starts kernels by asking the fork server of `python` that listens at `fork_server`."""

    process: Any
    fork_server = Unicode(help="the fork server's socket").tag(config=True)
    python = Instance(Interpreter, help="what has forked it").tag(config=True)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Fork instead of starting `cmd`, with its arguments."""
        argv = cmd[cmd.index("-f") :]
        added = {k: v for k, v in kwargs["env"].items() if os.environ.get(k) != v}
        env = {**self.python.environment(), **added, "SCALEBENCH_KERNEL": "warm"}
        try:
            kernel = ForkedKernel(self.fork_server, argv, env, kwargs.get("cwd") or str(Path.cwd()))
        except (OSError, ValueError) as error:
            raise ForkServerError(f"the fork server does not answer: {error}") from None
        self.process = kernel
        self.pid = self.pgid = kernel.pid
        return self.connection_info
