"""Running a notebook in a kernel of its own, and getting rid of it again."""

from __future__ import annotations

import asyncio
import keyword
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import Empty
from types import MappingProxyType
from typing import Any, Literal, Self

import nbformat
import numpy as np
import papermill
import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from scalebench_lib.allocators import preload
from scalebench_lib.config import Allocator
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.notebook import scrub, write
from scalebench_lib.processes import disk_error, error_reason, exit_reason, oom_kills
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.locks import socket_folder
from scalebench_lib.sweep.provisioner import (
    PROVISIONER,
    START_SECONDS,
    ForkServerError,
    ForkServerProcess,
)

_FRESH = (
    "from scalebench_lib.processes import die_with_parent\n"
    "from ipykernel.kernelapp import launch_new_instance\n"
    "die_with_parent()\n"
    "launch_new_instance()"
)
_LAUNCH = ["-P", "-c", _FRESH, "-f", "{connection_file}"]
"""A kernel that a dead sweep left behind, stopped between turns, would stay for ever."""


class _OnePython(KernelSpecManager):
    """Knows one kernel, of the given Python, whatever else is installed."""

    def __init__(self, argv: list[str], metadata: dict[str, Any], env: dict[str, str]) -> None:
        super().__init__()
        self._argv, self._metadata, self._env = argv, metadata, env

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        name = "Python 3 (ipykernel)"
        return KernelSpec(
            argv=self._argv,
            display_name=name,
            language="python",
            env=self._env,
            metadata=self._metadata,
        )


class NotStartedError(DeadKernelError):
    """The kernel never answered."""


class _PromptClient(AsyncKernelClient):
    """Is ready when the kernel answers and its output arrives; jupyter_client's waits 0.2 s."""

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (timeout or START_SECONDS)
        while time.monotonic() < deadline:
            with suppress(TimeoutError, Empty):
                await self.kernel_info(reply=True, timeout=1.0)
                await self.get_iopub_msg(timeout=0.2)
                return
            if not await self.is_alive():
                raise NotStartedError("it died while it started")
        raise NotStartedError("it did not answer in time")

    def start_channels(self, *args: Any, **kwargs: Any) -> None:
        """All but the heartbeat, which would ping the kernel every second."""
        super().start_channels(*args, **{**kwargs, "hb": False})


class _Manager(AsyncKernelManager):
    """Keeps its client to close it: nbclient leaves that to whoever brings the kernel."""

    talking: AsyncKernelClient | None = None
    folder: Path
    """Holds the kernel's sockets, and nothing else."""

    def client(self, **kwargs: Any) -> Any:
        self.talking = super().client(**kwargs)
        return self.talking


class _QuietClient(PapermillNotebookClient):  # type: ignore[misc]
    """Sees a kernel's death at once, and does not ask every second whether it lives: a thread
    that wakes up would disturb what is being timed."""

    async def _async_poll_kernel_alive(self) -> None:
        if hasattr(os, "pidfd_open"):
            with suppress(ProcessLookupError):
                await _ended(self.km.provisioner.process.pid)
        await super()._async_poll_kernel_alive()


async def _ended(pid: int) -> None:
    """Wait for the end of a process, whoever's child it is."""
    loop, descriptor = asyncio.get_running_loop(), os.pidfd_open(pid)
    over = loop.create_future()
    loop.add_reader(descriptor, over.cancel)
    try:
        await asyncio.wait([over])
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


class _Engine(NBClientEngine):  # type: ignore[misc]
    """Papermill's own, with a client that is quiet."""

    name = "scalebench"

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, km: Any = None, **_: Any
    ) -> NotebookNode:
        executed: NotebookNode = _QuietClient(nb_man, km=km, kernel_name=kernel_name).execute()
        return executed


papermill_engines.register(_Engine.name, _Engine)


class NotebookRun:
    """A notebook that is being executed in its own kernel, by papermill, in a thread.

    While the kernel computes, nothing works here.
    """

    def __init__(
        self, kernel: _Manager, source: Path, target: Path, parameters: dict[str, Any]
    ) -> None:
        self._kernel = kernel
        self._oom_kills = oom_kills()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self.future = self._thread.submit(self._execute, source, target, parameters)
        self._thread.shutdown(wait=False)

    @property
    def pid(self) -> int | None:
        """The kernel's process, which leads a group of its own; None before it has started."""
        process = getattr(self._kernel.provisioner, "process", None)
        return None if process is None else int(process.pid)

    def mark(self) -> None:
        """From now on a kill for lack of memory is this kernel's."""
        self._oom_kills = oom_kills()

    def kill(self) -> None:
        """End the kernel, also one that is just starting, and wait until all of it has ended."""
        while not self.future.done():
            _kill(self._kernel)
            time.sleep(0.02)

    def result(self, limit_s: float = float("inf")) -> None:
        """Wait for the end; raises as `Kernels.run`. An interrupt kills the kernel."""
        deadline = time.monotonic() + limit_s
        try:
            while not self.future.done():
                if time.monotonic() > deadline:
                    raise MeasurementError(too_slow(limit_s))
                wait([self.future], timeout=1.0)  # without end it would not see signals
        except BaseException:
            self.kill()
            raise
        try:
            self.future.result()
        except PapermillExecutionError as error:
            if trouble := disk_error(error.ename, error.evalue):
                raise trouble from None
            raise MeasurementError(error_reason(error.ename, error.evalue)) from None

    def _execute(self, source: Path, target: Path, parameters: dict[str, Any]) -> None:
        draft = target.with_name(f".{target.name}")
        try:
            papermill.execute_notebook(
                nbformat.read(source, as_version=4),
                str(draft).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
                parameters=parameters,
                progress_bar=False,
                autosave_cell_every=0,
                engine_name=_Engine.name,
                km=self._kernel,
            )
        except NotStartedError:
            raise
        except DeadKernelError:
            code = _exit_code(self._kernel)
            raise KilledError(exit_reason(code, self._oom_kills)) from None
        finally:
            _kill(self._kernel)
            loop = ensure_event_loop()  # nbclient's, which it leaves open
            loop.run_until_complete(_clean_up(self._kernel))
            loop.close()
            shutil.rmtree(self._kernel.folder, ignore_errors=True)
            _publish(draft, target)


def too_slow(limit_s: float) -> str:
    """The reason of what was ended at its time limit."""
    return (
        f"not done after {limit_s:.0f} s, its time limit: '--trial-timeout' gives a slow model more"
    )


class Kernels:
    """Runs notebooks, each in a process of its own: started afresh, or forked from a fork server.

    A context manager. `warm` is a wish: where no fork server can be had, or it fails later, kernels
    are fresh, and `trouble` says why. The parameter ``allocator`` decides a kernel's environment;
    since libraries are preloaded when a process starts, each allocator has a fork server of its
    own. `python` runs the kernels: without one, the Python of this process.
    """

    def __init__(self, warm: bool = True, python: Interpreter | None = None) -> None:
        self.trouble: str | None = None
        self._warm, self._python = warm, python or Interpreter.here()
        self._fork_servers: dict[str, ForkServerProcess] = {}
        if warm:
            self._fork_server_for(self._preload("default"))

    @property
    def kind(self) -> Literal["warm", "fresh"]:
        """How the next kernel will be started."""
        return "warm" if self._warm else "fresh"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the fork servers, and with them what they have forked; later kernels are fresh."""
        self._warm = False
        while self._fork_servers:
            self._fork_servers.popitem()[1].close()

    def run(
        self,
        source: Path,
        target: Path,
        parameters: Mapping[str, Any],
        limit_s: float = float("inf"),
    ) -> None:
        """Execute notebook `source` with `parameters` in its own kernel, and save as `target`.

        Raises `MeasurementError` with the last line of an exception in the notebook, or with the
        cause of the kernel's death; after `limit_s` seconds it is killed. OSError means that the
        disk is full. An interrupt (Ctrl-C, SIGTERM) kills the kernel and passes on.
        """
        try:
            self.start(source, target, parameters).result(limit_s)
        except (ForkServerError, NotStartedError) as error:
            if not self.fall_back(error):
                raise MeasurementError(f"the kernel did not start: {error}") from None
            self.run(source, target, parameters, limit_s)

    def start(
        self,
        source: Path,
        target: Path,
        parameters: Mapping[str, Any],
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> NotebookRun:
        """Begin to execute notebook `source` as `run` does; `environment` is added to the kernel's.

        What the run raises, and where `fall_back` helps, comes with its `result`.
        """
        parameters = _plain(parameters)
        target.parent.mkdir(parents=True, exist_ok=True)
        env = self._preload(parameters.get("allocator", "default"))
        kernel = self._manager(env, {**env, **environment})
        return NotebookRun(kernel, source, target, parameters)

    def fall_back(self, error: Exception) -> bool:
        """Start kernels afresh from now on, because of `error`; False where they are already."""
        if not self._warm:
            return False
        self.trouble = f"no more warm kernels: {error}"
        self._warm = False  # those that were forked before go on
        return True

    def lost_fork_server(self, allocator: Allocator) -> bool:
        """Whether the process that kernels of `allocator` are forked from has died."""
        fork_server = self._fork_servers.get(self._preload(allocator)["LD_PRELOAD"])
        return fork_server is not None and fork_server.process.poll() is not None

    def _preload(self, allocator: Allocator) -> dict[str, str]:
        return preload(allocator, self._python.environment())

    def _fork_server_for(self, env: dict[str, str]) -> ForkServerProcess | None:
        key = env["LD_PRELOAD"]
        if not self._warm:
            return None
        try:
            if key not in self._fork_servers:
                self._fork_servers[key] = ForkServerProcess(env, self._python)
        except (ForkServerError, OSError) as error:
            self.trouble = str(error)
            self._warm = False
        return self._fork_servers.get(key)

    def _manager(self, preloads: dict[str, str], env: dict[str, str]) -> _Manager:
        """A kernel to be started, with its sockets in a folder of its own."""
        metadata: dict[str, Any] = {}
        if fork_server := self._fork_server_for(preloads):
            config = {"fork_server": fork_server.socket, "python": self._python}
            metadata = {"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config}}
            folder = Path(tempfile.mkdtemp(dir=fork_server.folder))
        else:
            folder, env = socket_folder(), {**self._python.changes, **env}
        kernel = _Manager(
            kernel_name="python3",
            kernel_spec_manager=_OnePython([*self._python.command, *_LAUNCH], metadata, env),
            client_factory=_PromptClient,
            transport="ipc",
            connection_file=str(folder / "kernel.json"),
        )
        kernel.folder = folder
        return kernel


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as papermill takes them; it would inject any name as code, numpy's as text."""
    for name in parameters:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise RequestError(f"{name!r} is no name of a parameter")
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in parameters.items()}


class KilledError(MeasurementError):
    """The kernel died; the message says why."""


def _kill(kernel: AsyncKernelManager) -> None:
    """End the kernel, its process group, and what it has started elsewhere."""
    process = getattr(kernel.provisioner, "process", None)
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


def _exit_code(kernel: AsyncKernelManager) -> int | None:
    """The exit code of a kernel that has died: it may take a moment to be known."""
    process = getattr(kernel.provisioner, "process", None)
    return None if process is None else process.poll()


async def _clean_up(kernel: _Manager) -> None:
    if kernel.talking:
        kernel.talking.stop_channels()
    await kernel.cleanup_resources()


def _publish(draft: Path, target: Path) -> None:
    """Save the executed notebook without the paths of this machine."""
    if not draft.exists():
        return
    folders = (target.parent, target.parent.parent, target.parent.parent.parent)
    with suppress(NotJSONError):  # a full disk has cut it: papermill's own error says so
        write(scrub(nbformat.read(draft, as_version=4), *(f for f in folders if f.name)), target)
    draft.unlink()
