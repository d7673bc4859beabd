"""A trial in its kernel: the runner sets it up, has it take turns or stand still, and ends it."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import nbformat
import papermill
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from scalebench_lib import protocol
from scalebench_lib.config import StrictModel, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.files import DamagedError
from scalebench_lib.notebook import NOTEBOOKS, scrub, write
from scalebench_lib.processes import (
    exception_reason,
    oom_kills,
    parse_disk_error,
    peak_bytes,
    prefer_to_kill,
    signal_group,
)
from scalebench_lib.protocol import EndedBy, Message, TurnResult
from scalebench_lib.record import Record
from scalebench_lib.sweep.kernels import SOCKET, Kernel, Kernels

SETUP_LIMIT_S = 900.0
"""Compilers and downloads take minutes; a set-up that takes longer hangs."""

END_LIMIT_S = 300.0
TURN_LIMIT_S = 60.0
SLOWER_THAN_FIRST = 20
"""A turn hangs if it takes `TURN_LIMIT_S` and that many first passes at its threads."""

FAILURE_LIMIT_S = 5.0
"""Time limit of a failed trial to write its record."""

_POLL_S = 0.1


class _QuietClient(PapermillNotebookClient):  # type: ignore[misc]
    """Wait for a kernel's death instead of polling, which would disturb what is being timed."""

    async def _async_poll_kernel_alive(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        with ExitStack() as opened, suppress(ProcessLookupError):
            if hasattr(os, "pidfd_open"):
                descriptor = os.pidfd_open(self.km.process.pid)
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
        self, kernel: Kernel, source: Path, target: Path, parameters: Mapping[str, Any]
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._kernel, self._open = kernel, ExitStack()
        self.server = self._open.enter_context(socket.socket(socket.AF_UNIX))
        self.server.bind(str(kernel.folder / SOCKET))
        self.server.listen(1)
        self.oom_kills_before = oom_kills()
        thread = futures.ThreadPoolExecutor(max_workers=1)
        self.future = thread.submit(self._execute, source, target, parameters)
        thread.shutdown(wait=False)

    @property
    def pid(self) -> int:
        """The kernel's process, the leader of its group."""
        return self._kernel.process.pid

    def kill(self) -> None:
        """End the kernel, and wait for the notebook's end."""
        self._kernel.end()
        futures.wait([self.future])
        self._open.close()

    def wait(self, limit_s: float) -> None:
        """Wait for the end, at most `limit_s`.

        Raises `MeasurementError` with the last line of an exception in the notebook, or the cause
        of the kernel's death, and OSError for a full disk.
        """
        try:
            self.future.result(limit_s)
        except TimeoutError:
            raise self.kill_at_limit(limit_s) from None
        except PapermillExecutionError as error:
            if full_disk := parse_disk_error(error.ename, error.evalue):
                raise full_disk from None
            raise MeasurementError(exception_reason(error.ename, error.evalue)) from None
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
            raise MeasurementError(self._kernel.exit_reason(self.oom_kills_before)) from None
        except RuntimeError as error:  # of jupyter_client
            raise MeasurementError(f"the kernel did not start: {error}") from None
        finally:
            ensure_event_loop().close()  # nbclient leaves it open
            _publish(draft, target)
            shutil.rmtree(self._kernel.folder, ignore_errors=True)


def _publish(draft: Path, target: Path) -> None:
    """Save the executed notebook without the paths of this machine."""
    folders = [folder for folder in list(target.parents)[:3] if folder.name]
    with suppress(FileNotFoundError, NotJSONError):  # papermill's own error tells why
        write(scrub(nbformat.read(draft, as_version=4), *folders), target)


class StoppedError(Exception):
    """The sweep is to end while a trial is being set up."""


class TrialProcess(NotebookRun):
    """The process of `trial`, which writes its record into folder `out`.

    `limit_s` limits its set-up, each turn and its end; None: the limits above. It is stopped
    between its turns.
    """

    _connection: socket.socket
    _lines: IO[str]

    def __init__(self, trial: Trial, out: Path, kernels: Kernels, limit_s: float | None) -> None:
        self.trial, self.out, self._limit_s = trial, out, limit_s
        self.first_pass_s = self.setup_s = 0.0
        super().__init__(
            kernels.start(trial.config.allocator),
            NOTEBOOKS / "measure.ipynb",
            out / "notebooks" / f"{trial.name}.ipynb",
            {**trial.parameters(), "out": os.path.relpath(out)},
        )

    @classmethod
    def start(
        cls,
        trial: Trial,
        out: Path,
        kernels: Kernels,
        limit_s: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> TrialProcess:
        """Set `trial` up, and stop it. All others should be stopped meanwhile.

        Raises `MeasurementError` where it fails, `StoppedError` as soon as `stopping`, and OSError
        where the disk is full.
        """
        process = cls(trial, out, kernels, limit_s)
        try:
            process._set_up(stopping)
        except BaseException:
            process.kill()
            raise
        return process

    @property
    def peak_bytes(self) -> int:
        return peak_bytes(self.pid)

    def turn(self, cycle: int, threads: int, seconds: float) -> TurnResult:
        slowest = self.first_pass_s * max(self.trial.threads) / threads
        limit_s = self._limit_s or TURN_LIMIT_S + seconds + SLOWER_THAN_FIRST * slowest
        self._wake(protocol.TurnRequest(cycle=cycle, threads=threads, seconds=seconds))
        answer = self._receive(TurnResult, limit_s)
        self._rest()
        return answer

    def end(self, reason: EndedBy) -> Record:
        self._wake(protocol.End(end=reason))
        return self._ended(self._limit_s or END_LIMIT_S)

    def _set_up(self, stopping: Callable[[], bool]) -> None:
        start = time.monotonic()
        self._wait_for(self.server, start, stopping)
        self._connection = self._open.enter_context(self.server.accept()[0])
        self._lines = self._open.enter_context(self._connection.makefile(errors="replace"))
        self._wait_for(self._connection, start, stopping)
        self.first_pass_s = self._receive(protocol.Ready, FAILURE_LIMIT_S).first_pass_s
        self._rest()
        self.setup_s = time.monotonic() - start

    def _wait_for(self, sign: socket.socket, start: float, stopping: Callable[[], bool]) -> None:
        """Wait until the kernel, which is being set up, sends something to `sign`."""
        limit_s = self._limit_s or SETUP_LIMIT_S
        while not select.select([sign], [], [], _POLL_S)[0]:
            prefer_to_kill(self.pid, preferred=True)
            if stopping():
                raise StoppedError
            if time.monotonic() > start + limit_s:
                raise self.kill_at_limit(limit_s)
            if self.future.done():
                self._fail()

    def _wake(self, message: StrictModel) -> None:
        self.oom_kills_before = oom_kills()
        prefer_to_kill(self.pid, preferred=True)
        signal_group(self.pid, signal.SIGCONT)
        with suppress(OSError):  # it has died: reading tells
            self._connection.sendall(message.model_dump_json().encode() + b"\n")

    def _rest(self) -> None:
        signal_group(self.pid, signal.SIGSTOP)
        prefer_to_kill(self.pid, preferred=False)

    def _receive(self, kind: type[Message], limit_s: float) -> Message:
        """Return its next message; this process is idle meanwhile."""
        self._connection.settimeout(limit_s)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise self.kill_at_limit(limit_s) from None
        except ConnectionError:  # it has died, and left something unread
            line = ""
        if not line:
            self._fail()
        try:
            return protocol.parse(line, kind)
        except protocol.ConnectionEndedError as error:
            raise MeasurementError(str(error)) from None

    def _fail(self) -> NoReturn:
        """Raise why it has ended early: the reason in its record, or the cause of its death."""
        record = self._ended(FAILURE_LIMIT_S)
        raise MeasurementError(record.reason or "it ended before its turns did")

    def _ended(self, limit_s: float) -> Record:
        """Return the record of a notebook that is ending; it counts even if the kernel fails."""
        path = self.out / "records" / f"{self.trial.name}.json"
        try:
            self.wait(limit_s)
        except MeasurementError:
            if not path.exists():
                raise
        if not path.exists():
            raise MeasurementError("the notebook wrote no record")
        try:
            return Record.load(path)
        except DamagedError as error:
            raise MeasurementError(str(error)) from None
