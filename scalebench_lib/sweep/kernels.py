"""Run a notebook in a kernel of its own, and end the kernel with all that it has started."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal, Self

import nbformat
import papermill
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from scalebench_lib.allocators import variables
from scalebench_lib.config import Allocator
from scalebench_lib.errors import MeasurementError
from scalebench_lib.notebook import scrub, write
from scalebench_lib.processes import disk_error, error_reason, oom_kills
from scalebench_lib.protocol import RUNNER_SOCKET
from scalebench_lib.record import RUNNER_ENVIRONMENT
from scalebench_lib.sweep.forkserver import ForkServer, KernelProvisioner, NotStartedError
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.locks import socket_folder

_LAUNCH = ["-P", "-m", "scalebench_lib.sweep.kernel_app", "-f", "{connection_file}"]

_SOCKET = "runner"


class _Client(AsyncKernelClient):
    def start_channels(self, *args: Any, **kwargs: Any) -> None:
        """Start all but the heartbeat, which would ping the kernel every second."""
        super().start_channels(*args, **{**kwargs, "hb": False})


class KernelManager(AsyncKernelManager):
    """Start and end a kernel; `folder` holds its sockets, and that of `RUNNER_SOCKET`."""

    folder: Path
    provisioner: KernelProvisioner
    kernel_spec = KernelSpec()  # not searched for among installed ones


class _QuietClient(PapermillNotebookClient):  # type: ignore[misc]
    """Wait for a kernel's death instead of polling, which would disturb what is being timed."""

    async def _async_poll_kernel_alive(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        with ExitStack() as opened, suppress(ProcessLookupError):
            if hasattr(os, "pidfd_open"):
                descriptor = os.pidfd_open(self.km.provisioner.pid)
                opened.callback(os.close, descriptor)
                loop.add_reader(descriptor, ended.set)
                opened.callback(loop.remove_reader, descriptor)
                await ended.wait()
        await super()._async_poll_kernel_alive()


class _Engine(NBClientEngine):  # type: ignore[misc]
    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, km: Any = None, **_: Any
    ) -> NotebookNode:
        """Execute as papermill does, with a client that logs nothing and ends its kernel."""
        client = _QuietClient(nb_man, km=km, kernel_name=kernel_name, shutdown_kernel="immediate")
        executed: NotebookNode = client.execute(cleanup_kc=True)
        return executed


papermill_engines.register("scalebench", _Engine)


class NotebookRun:
    """A notebook that papermill executes in `kernel`, in a thread, and saves as `target`.

    The kernel connects to `server`. This process is idle while it computes. `oom_kills_before`
    tells whether the system has killed it for lack of memory.
    """

    def __init__(
        self, kernel: KernelManager, source: Path, target: Path, parameters: Mapping[str, Any]
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._kernel, self._open = kernel, ExitStack()
        self.server = self._open.enter_context(socket.socket(socket.AF_UNIX))
        self.server.bind(str(kernel.folder / _SOCKET))
        self.server.listen(1)
        self.oom_kills_before = oom_kills()
        thread = ThreadPoolExecutor(max_workers=1)
        self.future = thread.submit(self._execute, source, target, parameters)
        thread.shutdown(wait=False)

    @property
    def pid(self) -> int:
        """The kernel's process, the leader of its group; 0 before it has started."""
        return self._kernel.provisioner.pid or 0

    def kill(self) -> None:
        """End the kernel, even while it starts, and wait for the notebook's end."""
        while not self.future.done():
            self._kernel.provisioner.end()
            time.sleep(0.02)
        self._open.close()

    def wait(self, limit_s: float) -> None:
        """Wait for the end, at most `limit_s`.

        Raises `MeasurementError` with the last line of an exception in the notebook, or the cause
        of the kernel's death; `NotStartedError` where it never answered; OSError for a full disk.
        """
        try:
            self.future.result(limit_s)
        except TimeoutError:
            raise self.kill_at_limit(limit_s) from None
        except PapermillExecutionError as error:
            if full_disk := disk_error(error.ename, error.evalue):
                raise full_disk from None
            raise MeasurementError(error_reason(error.ename, error.evalue)) from None
        finally:
            self._open.close()

    def kill_at_limit(self, limit_s: float) -> MeasurementError:
        """Kill the kernel at its time limit; return the error to raise."""
        self.kill()
        return MeasurementError(
            f"not done after {limit_s:.0f} s, its time limit: "
            "'--trial-timeout' gives a slow model more"
        )

    def _execute(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        draft = self._kernel.folder / "draft.ipynb"
        try:
            papermill.execute_notebook(
                nbformat.read(source, as_version=4),
                str(draft),
                parameters=parameters,
                progress_bar=False,
                autosave_cell_every=0,
                engine_name="scalebench",
                km=self._kernel,
            )
        except DeadKernelError:
            reason = self._kernel.provisioner.exit_reason(self.oom_kills_before)
            raise MeasurementError(reason) from None
        except RuntimeError as error:  # of jupyter_client
            raise NotStartedError(str(error)) from None
        finally:
            ensure_event_loop().close()  # nbclient leaves it open
            _publish(draft, target)
            shutil.rmtree(self._kernel.folder, ignore_errors=True)


def _publish(draft: Path, target: Path) -> None:
    """Save the executed notebook without the paths of this machine."""
    folders = [folder for folder in list(target.parents)[:3] if folder.name]
    with suppress(FileNotFoundError, NotJSONError):  # papermill's own error tells why
        write(scrub(nbformat.read(draft, as_version=4), *folders), target)


class Kernels:
    """Make kernels: started afresh, or, if `warm`, forked from a fork server.

    A context manager. Where a fork server does not start, or fails later, kernels are fresh, and
    `warning` says why. Each allocator has a fork server of its own, since malloc reads its
    variables once. `python` runs the kernels, by default this process's.
    """

    def __init__(self, warm: bool = True, python: Interpreter | None = None) -> None:
        self.warning: str | None = None
        self.kind: Literal["warm", "fresh"] = "warm" if warm else "fresh"
        self._python = python or Interpreter.here()
        self._fork_servers: dict[str, ForkServer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the fork servers with their kernels; later kernels are fresh."""
        self.kind = "fresh"
        while self._fork_servers:
            self._fork_servers.popitem()[1].close()

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
            argv=[self._python.executable, *_LAUNCH],
            display_name="Python 3 (ipykernel)",
            language="python",
            env={
                **allocating,
                RUNNER_SOCKET: str(folder / _SOCKET),
                RUNNER_ENVIRONMENT: json.dumps(self._python.software.environment),
                "IPYTHONDIR": str(folder / "ipython"),  # there may be no home
            },
        )
        kernel.provisioner = KernelProvisioner(kernel_spec=kernel.kernel_spec, parent=kernel)
        kernel.provisioner.python, kernel.provisioner.fork_server = self._python, server
        return kernel

    def fall_back(self, error: Exception) -> None:
        """Start kernels afresh from now on, because of `error`; those that were forked go on."""
        self.warning, self.kind = f"no warm kernels: {error}", "fresh"

    def _fork_server(self, allocating: dict[str, str]) -> ForkServer | None:
        if self.kind == "fresh":
            return None
        try:
            if (key := str(allocating)) not in self._fork_servers:
                self._fork_servers[key] = ForkServer(allocating, self._python)
        except (NotStartedError, OSError) as error:
            self.fall_back(error)
        return self._fork_servers.get(key)
