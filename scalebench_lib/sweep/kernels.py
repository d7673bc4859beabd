"""Running a notebook in a kernel of its own, with this very Python, and getting rid of it again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any, Literal, Self

import nbformat
import papermill
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from scalebench_lib.errors import MeasurementError
from scalebench_lib.record import write_atomically
from scalebench_lib.rendered import scrub
from scalebench_lib.sweep.warm import PROVISIONER, START_SECONDS, NoZygoteError, ZygoteProcess

_LAUNCH = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the sweep, whatever else is installed."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        super().__init__()
        self._metadata = metadata

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        name = "Python 3 (ipykernel)"
        return KernelSpec(
            argv=_LAUNCH, display_name=name, language="python", metadata=self._metadata
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


class Kernels:
    """Runs notebooks, each in a process of its own: started afresh, or forked from a zygote.

    A context manager. `warm` is a wish: where no zygote can be had, or it fails later, kernels
    are fresh, and `trouble` says why.
    """

    def __init__(self, warm: bool = True) -> None:
        self.trouble: str | None = None
        self._zygote = self._started() if warm else None

    @property
    def kind(self) -> Literal["warm", "fresh"]:
        """How the next kernel will be started."""
        return "warm" if self._zygote else "fresh"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote, and with it what it has forked."""
        if self._zygote:
            self._zygote.close()
        self._zygote = None

    def run(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        """Execute notebook `source` with `parameters` in its own kernel, and save as `target`.

        Raises `MeasurementError` with the last line of an exception in the notebook, or of the
        kernel's death. An interrupt (Ctrl-C, SIGTERM) kills the kernel and passes on.
        """
        try:
            self._run(source, target, parameters)
        except (NoZygoteError, _NotStartedError) as error:
            if not self._zygote:
                raise MeasurementError(f"the kernel did not start: {error}") from None
            self.trouble = f"no more warm kernels: {error}"
            self.close()
            self.run(source, target, parameters)

    def _started(self) -> ZygoteProcess | None:
        try:
            return ZygoteProcess({})
        except (NoZygoteError, OSError) as error:
            self.trouble = str(error)
            return None

    def _run(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        kernel = self._manager()
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}")
        try:
            with ThreadPoolExecutor(max_workers=1) as pool:
                _wait(pool.submit(_execute, kernel, source, draft, dict(parameters)), kernel)
        except PapermillExecutionError as error:
            raise MeasurementError(f"{error.ename}: {error.evalue}".splitlines()[0]) from None
        finally:
            _publish(draft, target)

    def _manager(self) -> AsyncKernelManager:
        metadata: dict[str, Any] = {}
        if self._zygote:
            config = {"zygote": self._zygote.socket}
            metadata = {"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config}}
        return AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=_ThisPython(metadata),
            client_factory=_PromptClient,
            transport="ipc",
        )


def _execute(
    kernel: AsyncKernelManager, source: Path, draft: Path, parameters: dict[str, Any]
) -> None:
    """Runs in a thread of its own: nbclient takes over the signal handlers of the main one."""
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
        raise MeasurementError(_cause_of_death(kernel)) from None
    finally:
        _kill(kernel)
        asyncio.run(_clean_up(kernel))


def _wait(future: Future[None], kernel: AsyncKernelManager) -> None:
    """Wait for the notebook's end; whatever ends the wait ends the kernel, also a starting one."""
    try:
        while not future.done():
            with suppress(StillRunning):
                future.result(timeout=1.0)  # a wait without end would not see signals
    except BaseException:
        while not future.done():
            _kill(kernel)
            time.sleep(0.05)
        raise
    future.result()


def _kill(kernel: AsyncKernelManager) -> None:
    process = getattr(kernel.provisioner, "process", None)
    if process is not None and process.poll() is None:
        for kill in (os.killpg, os.kill):  # it may not lead its group yet
            with suppress(ProcessLookupError):
                kill(process.pid, signal.SIGKILL)
        process.wait()


async def _clean_up(kernel: AsyncKernelManager) -> None:
    await kernel.cleanup_resources()


def _cause_of_death(kernel: AsyncKernelManager) -> str:
    process = getattr(kernel.provisioner, "process", None)
    code = process.poll() if process else None
    if code is not None and code < 0:
        return f"the kernel was killed by {signal.Signals(-code).name}"
    return "the kernel died" + (f" with exit code {code}" if code is not None else "")


def _publish(draft: Path, target: Path) -> None:
    """Save the executed notebook without the paths of this machine."""
    if not draft.exists():
        return
    folders = (target.parent, target.parent.parent, target.parent.parent.parent)
    notebook = scrub(nbformat.read(draft, as_version=4), *(f for f in folders if f.name))
    write_atomically(target, nbformat.writes(notebook) + "\n")
    draft.unlink()
