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
from typing import Any, Self

import nbformat
import papermill
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from scalebench_lib.errors import MeasurementError
from scalebench_lib.record import write_atomically
from scalebench_lib.sweep.warm import PROVISIONER, NoZygoteError, ZygoteProcess

_START_SECONDS = 60.0
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


class _PromptClient(AsyncKernelClient):
    """Is ready when the kernel answers; jupyter_client's listens 0.2 s more for what it may say."""

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (timeout or _START_SECONDS)
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                await self.kernel_info(reply=True, timeout=1.0)
                return
            if not await self.is_alive():
                raise DeadKernelError("the kernel died while it started")
        raise DeadKernelError("the kernel did not start in time")


class Kernels:
    """Runs notebooks, each in a process of its own: started afresh, or forked from a zygote.

    A context manager. `warm` is a wish: where no zygote can be had, kernels are fresh, and
    `trouble` says why.
    """

    def __init__(self, warm: bool = True) -> None:
        self.trouble: str | None = None
        self._zygote = self._started() if warm else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zygote:
            self._zygote.close()

    def run(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        """Execute notebook `source` with `parameters` in its own kernel, and save as `target`.

        Raises `MeasurementError` with the last line of an exception in the notebook, or of the
        kernel's death. An interrupt (Ctrl-C, SIGTERM) kills the kernel and passes on.
        """
        try:
            _run(self._manager(), source, target, parameters)
        except NoZygoteError as error:
            self.trouble, self._zygote = str(error), None
            _run(self._manager(), source, target, parameters)

    def _started(self) -> ZygoteProcess | None:
        try:
            return ZygoteProcess({})
        except (NoZygoteError, OSError) as error:
            self.trouble = str(error)
            return None

    def _manager(self) -> AsyncKernelManager:
        metadata: dict[str, Any] = {}
        if self._zygote:
            config = {"zygote": self._zygote.socket}
            metadata = {"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config}}
        specs = _ThisPython(metadata)
        return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, transport="ipc")


def _run(
    kernel: AsyncKernelManager, source: Path, target: Path, parameters: Mapping[str, Any]
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}")
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(_execute, kernel, source, draft, dict(parameters))
            try:
                _wait(future)
            except BaseException:
                _kill(kernel)
                raise
    except PapermillExecutionError as error:
        raise MeasurementError(f"{error.ename}: {error.evalue}".splitlines()[0]) from None
    finally:
        _publish(draft, target)


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
    except DeadKernelError:
        raise MeasurementError(_cause_of_death(kernel)) from None
    finally:
        _kill(kernel)
        asyncio.run(_clean_up(kernel))


def _wait(future: Future[None]) -> None:
    while not future.done():
        with suppress(StillRunning):
            future.result(timeout=1.0)  # a wait without end would not see signals
    future.result()


def _kill(kernel: AsyncKernelManager) -> None:
    process = getattr(kernel.provisioner, "process", None)
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
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
    """Save the executed notebook without the paths that papermill notes down."""
    if not draft.exists():
        return
    notebook = nbformat.read(draft, as_version=4)
    for path in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(path, None)
    write_atomically(target, nbformat.writes(notebook) + "\n")
    draft.unlink()
