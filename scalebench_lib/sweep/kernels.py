"""Running a notebook in a kernel of its own, with this very Python, and getting rid of it again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from scalebench_lib.errors import MeasurementError
from scalebench_lib.record import write_atomically

_LAUNCH = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class _ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the sweep, whatever else is installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(argv=_LAUNCH, display_name="Python 3 (ipykernel)", language="python")


def run_notebook(source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
    """Execute notebook `source` with `parameters` in a fresh kernel, and save it as `target`.

    Raises `MeasurementError` with the last line of an exception in the notebook, or of the
    kernel's death. An interrupt (Ctrl-C, SIGTERM) kills the kernel and passes on.
    """
    kernel = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=_ThisPython(), transport="ipc"
    )
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
    except DeadKernelError:
        raise MeasurementError(_cause_of_death(kernel)) from None
    finally:
        _kill(kernel)
        asyncio.run(_clean_up(kernel))
        _publish(draft, target)


def _execute(
    kernel: AsyncKernelManager, source: Path, draft: Path, parameters: dict[str, Any]
) -> None:
    """Runs in a thread of its own: nbclient takes over the signal handlers of the main one."""
    papermill.execute_notebook(
        nbformat.read(source, as_version=4),
        str(draft).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
        parameters=parameters,
        progress_bar=False,
        autosave_cell_every=0,  # nothing else works while a point is timed
        km=kernel,
    )


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
