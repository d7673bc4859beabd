"""Running a notebook in a kernel of its own, with this very Python, and getting rid of it again."""

from __future__ import annotations

import keyword
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
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
from nbformat.reader import NotJSONError
from papermill.exceptions import PapermillExecutionError

from scalebench_lib.allocators import preload
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.rendered import scrub, write
from scalebench_lib.sweep.fate import cause_of_death, disk_trouble, oom_kills, told_by
from scalebench_lib.sweep.locks import socket_folder
from scalebench_lib.sweep.warm import PROVISIONER, START_SECONDS, NoZygoteError, ZygoteProcess

_LAUNCH = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the sweep, whatever else is installed."""

    def __init__(self, metadata: dict[str, Any], env: dict[str, str]) -> None:
        super().__init__()
        self._metadata, self._env = metadata, env

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        name = "Python 3 (ipykernel)"
        return KernelSpec(
            argv=_LAUNCH,
            display_name=name,
            language="python",
            env=self._env,
            metadata=self._metadata,
        )


class _NotStartedError(DeadKernelError):
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
                raise _NotStartedError("it died while it started")
        raise _NotStartedError("it did not answer in time")


class _Manager(AsyncKernelManager):
    """Keeps its client to close it: nbclient leaves that to whoever brings the kernel."""

    talking: AsyncKernelClient | None = None

    def client(self, **kwargs: Any) -> Any:
        self.talking = super().client(**kwargs)
        return self.talking


class Kernels:
    """Runs notebooks, each in a process of its own: started afresh, or forked from a zygote.

    A context manager. `warm` is a wish: where no zygote can be had, or it fails later, kernels
    are fresh, and `trouble` says why. The parameter ``allocator`` decides a kernel's environment;
    since libraries are preloaded when a process starts, each allocator has a zygote of its own.
    """

    def __init__(self, warm: bool = True) -> None:
        self.trouble: str | None = None
        self._warm = warm
        self._zygotes: dict[str, ZygoteProcess] = {}
        if warm:
            self._zygote_for(preload("default"))

    @property
    def kind(self) -> Literal["warm", "fresh"]:
        """How the next kernel will be started."""
        return "warm" if self._warm else "fresh"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygotes, and with them what they have forked; later kernels are fresh."""
        self._warm = False
        while self._zygotes:
            self._zygotes.popitem()[1].close()

    def run(
        self,
        source: Path,
        target: Path,
        parameters: Mapping[str, Any],
        limit_s: float = float("inf"),
        started: Callable[[int], None] = lambda process: None,
    ) -> None:
        """Execute notebook `source` with `parameters` in its own kernel, and save as `target`.

        `started` is told the id of the kernel's process. Raises `MeasurementError` with the last
        line of an exception in the notebook, or with the cause of the kernel's death; after
        `limit_s` seconds it is killed. OSError means that the disk is full. An interrupt (Ctrl-C,
        SIGTERM) kills the kernel and passes on.
        """
        parameters = _plain(parameters)
        try:
            self._run(source, target, parameters, limit_s, started)
        except (NoZygoteError, _NotStartedError) as error:
            if not self._warm:
                raise MeasurementError(f"the kernel did not start: {error}") from None
            self.trouble = f"no more warm kernels: {error}"
            self.close()
            self.run(source, target, parameters, limit_s, started)

    def _zygote_for(self, env: dict[str, str]) -> ZygoteProcess | None:
        key = env["LD_PRELOAD"]
        try:
            if self._warm and key not in self._zygotes:
                self._zygotes[key] = ZygoteProcess(env)
        except (NoZygoteError, OSError) as error:
            self.trouble = str(error)
            self.close()
        return self._zygotes.get(key)

    def _run(
        self,
        source: Path,
        target: Path,
        parameters: dict[str, Any],
        limit_s: float,
        started: Callable[[int], None],
    ) -> None:
        env = preload(parameters.get("allocator", "default"))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}")
        try:
            with self._manager(env) as kernel, ThreadPoolExecutor(max_workers=1) as pool:
                future = pool.submit(_execute, kernel, source, draft, parameters)
                with _kernel_ended_too(future, kernel):
                    _tell(future, kernel, started)
                    _wait(future, limit_s)
        except PapermillExecutionError as error:
            if trouble := disk_trouble(error.ename, error.evalue):
                raise trouble from None
            raise MeasurementError(told_by(error.ename, error.evalue)) from None
        except _KilledError as error:
            if self._has_died(env):
                raise NoZygoteError("the process that they are forked from died") from None
            raise MeasurementError(str(error)) from None
        finally:
            _publish(draft, target)

    def _has_died(self, env: dict[str, str]) -> bool:
        zygote = self._zygotes.get(env["LD_PRELOAD"])
        return zygote is not None and zygote.process.poll() is not None

    @contextmanager
    def _manager(self, env: dict[str, str]) -> Iterator[_Manager]:
        """A kernel to be started, with its sockets in a folder of its own."""
        metadata: dict[str, Any] = {}
        if zygote := self._zygote_for(env):
            config = {"zygote": zygote.socket}
            metadata = {"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config}}
            folder = Path(tempfile.mkdtemp(dir=zygote.folder))
        else:
            folder = socket_folder()
        try:
            yield _Manager(
                kernel_name="python3",
                kernel_spec_manager=_ThisPython(metadata, env),
                client_factory=_PromptClient,
                transport="ipc",
                connection_file=str(folder / "kernel.json"),
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as papermill takes them; it would inject any name as code, numpy's as text."""
    for name in parameters:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise RequestError(f"{name!r} is no name of a parameter")
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in parameters.items()}


class _KilledError(MeasurementError):
    """The kernel died; the message says why."""


def _execute(kernel: _Manager, source: Path, draft: Path, parameters: dict[str, Any]) -> None:
    """Runs in a thread of its own: nbclient takes over the signal handlers of the main one."""
    killed_before = oom_kills()
    try:
        papermill.execute_notebook(
            nbformat.read(source, as_version=4),
            str(draft).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
            parameters=parameters,
            progress_bar=False,
            autosave_cell_every=0,  # nothing else works while a point is timed
            km=kernel,
        )
    except _NotStartedError:
        raise
    except DeadKernelError:
        raise _KilledError(cause_of_death(_exit_code(kernel), killed_before)) from None
    finally:
        _kill(kernel)
        loop = ensure_event_loop()  # nbclient's, which it leaves open
        loop.run_until_complete(_clean_up(kernel))
        loop.close()


@contextmanager
def _kernel_ended_too(future: Future[None], kernel: AsyncKernelManager) -> Iterator[None]:
    """Whatever ends the wait for `future` ends the kernel, also one that is just starting."""
    try:
        yield
    except BaseException:
        while not future.done():
            _kill(kernel)
            time.sleep(0.05)
        raise


def _tell(future: Future[None], kernel: AsyncKernelManager, started: Callable[[int], None]) -> None:
    """Tell `started` the kernel's process as soon as there is one."""
    while not future.done():
        process = getattr(kernel.provisioner, "process", None)
        if process is not None:
            return started(process.pid)
        time.sleep(0.01)
    return None


def _wait(future: Future[None], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not future.done():
        if time.monotonic() > deadline:
            raise MeasurementError(
                f"not done after {limit_s:.0f} s, its time limit: "
                "'--visit-timeout' gives a slow model more"
            )
        with suppress(StillRunning):
            future.result(timeout=1.0)  # a wait without end would not see signals
    future.result()


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
