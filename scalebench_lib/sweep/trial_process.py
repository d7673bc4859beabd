"""A trial in its kernel, as the runner sees it: it is set up, takes turns, stands still, ends."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from scalebench_lib.config import StrictModel, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.files import DamagedError
from scalebench_lib.notebook import NOTEBOOKS
from scalebench_lib.processes import go_on, peak_bytes, prefer_to_kill, stand_still
from scalebench_lib.protocol import (
    RUNNER,
    Answer,
    ConnectionEndedError,
    End,
    EndedBy,
    Ready,
    Request,
    parse,
)
from scalebench_lib.record import RUNNERS, Record
from scalebench_lib.sweep.kernels import (
    Kernels,
    KilledError,
    NotebookRun,
    NotStartedError,
    too_slow,
)
from scalebench_lib.sweep.locks import socket_folder
from scalebench_lib.sweep.provisioner import ForkServerError

SETUP_LIMIT_S = 900.0
"""Compilers and downloads take minutes; what takes longer hangs."""

END_LIMIT_S = 300.0
TURN_LIMIT_S = 60.0
SLOWER_THAN_FIRST = 20
"""A turn hangs when it takes so many times its first pass, on one thread, and `TURN_LIMIT_S`."""

LEAST_WAIT_S = 5.0
"""What is left of a trial that has failed gets so long to write down why."""

_LOOK_S = 0.1

Told = TypeVar("Told", bound=StrictModel)


class StoppedError(Exception):
    """Somebody wants the sweep to end while a trial is being set up."""


class TrialProcess:
    """The process of `trial`, which writes its record into folder `out`.

    `limit_s` bounds its set-up, a turn and its end, each; None: what is sure to hang. Between its
    turns it stands still.
    """

    def __init__(self, trial: Trial, out: Path, kernels: Kernels, limit_s: float | None) -> None:
        self.trial, self.out, self._limit_s = trial, out, limit_s
        self._kernels = kernels
        self._folder = socket_folder()
        self._server = socket.socket(socket.AF_UNIX)
        self._connection: socket.socket | None = None
        self._buffer = b""
        self._run: NotebookRun | None = None
        self.first_pass_s = self.setup_s = 0.0

    @classmethod
    def start(
        cls,
        trial: Trial,
        out: Path,
        kernels: Kernels,
        environment: Mapping[str, str],
        limit_s: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> TrialProcess:
        """Set `trial` up; then it stands still. Others should stand still meanwhile.

        `environment` are the variables that decide, as the sweep has them. Raises
        `MeasurementError` where it fails, `StoppedError` as soon as `stopping`, and OSError where
        the disk is full.
        """
        process = cls(trial, out, kernels, limit_s)
        try:
            process._set_up(environment, stopping)
        except (ForkServerError, NotStartedError) as error:
            process.kill()
            if not kernels.fall_back(error):
                raise MeasurementError(f"the kernel did not start: {error}") from None
            return cls.start(trial, out, kernels, environment, limit_s, stopping)
        except BaseException:
            process.kill()
            raise
        return process

    @property
    def pid(self) -> int:
        """The leader of its process group; 0 before there is one."""
        return (self._run and self._run.pid) or 0

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has held so far."""
        return peak_bytes(self.pid) if self.pid else 0

    def turn(self, cycle: int, threads: int, seconds: float) -> Answer:
        """Let it take a turn; `MeasurementError` where it fails, dies or hangs."""
        slowest = self.first_pass_s * max(self.trial.threads) / threads
        limit_s = self._limit_s or TURN_LIMIT_S + seconds + SLOWER_THAN_FIRST * slowest
        self._wake()
        self._send(Request(cycle=cycle, threads=threads, seconds=seconds))
        answer = self._receive(Answer, time.monotonic(), limit_s)
        self._rest()
        return answer

    def end(self, reason: EndedBy) -> Record:
        """Let it recheck, write its record and draw; `MeasurementError` where that fails."""
        self._wake()
        self._send(End(end=reason))
        return self._ended(self._limit_s or END_LIMIT_S)

    def kill(self) -> None:
        """End it, whatever it is doing; what it has not written is lost."""
        if self._run is not None:
            self._run.kill()
        self._close()

    def _set_up(self, environment: Mapping[str, str], stopping: Callable[[], bool]) -> None:
        start = time.monotonic()
        path = self._folder / "runner"
        self._server.bind(str(path))
        self._server.listen(1)
        self._run = self._kernels.start(
            NOTEBOOKS / "measure.ipynb",
            self.out / "notebooks" / f"{self.trial.name}.ipynb",
            {**self.trial.parameters(), "out": os.path.relpath(self.out)},
            {RUNNER: str(path), RUNNERS: json.dumps(dict(environment))},
        )
        limit_s = self._limit_s or SETUP_LIMIT_S
        self._wait_for(self._server, start, limit_s, stopping)
        self._connection, _ = self._server.accept()
        self._stop_listening()  # now: a sweep that is killed could not
        ready = self._receive(Ready, start, limit_s, stopping)
        self.first_pass_s = ready.first_pass_s
        self._rest()
        self.setup_s = time.monotonic() - start

    def _wake(self) -> None:
        assert self._run is not None  # noqa: S101 - it has been set up
        self._run.mark()
        prefer_to_kill(self.pid, preferred=True)
        go_on(self.pid)

    def _rest(self) -> None:
        stand_still(self.pid)
        prefer_to_kill(self.pid, preferred=False)

    def _send(self, message: StrictModel) -> None:
        assert self._connection is not None  # noqa: S101 - it has been set up
        with suppress(OSError):  # it has died: reading tells
            self._connection.sendall(message.model_dump_json().encode() + b"\n")

    def _receive(
        self,
        kind: type[Told],
        start: float,
        limit_s: float,
        stopping: Callable[[], bool] | None = None,
    ) -> Told:
        """What it says next, `limit_s` after `start` at the latest; while it is timed, nothing
        here looks or listens."""
        assert self._connection is not None  # noqa: S101 - it has been set up
        while b"\n" not in self._buffer:
            left = start + limit_s - time.monotonic()
            if stopping is not None:
                self._wait_for(self._connection, start, limit_s, stopping)
            elif left <= 0 or not select.select([self._connection], [], [], left)[0]:
                self._too_slow(limit_s)
            received = b""
            with suppress(ConnectionError):  # it has died, and left something unread
                received = self._connection.recv(65536)
            if not received:
                self._fail()
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return parse(line, kind)
        except ConnectionEndedError as error:
            raise MeasurementError(str(error)) from None

    def _wait_for(
        self, sign: socket.socket, start: float, limit_s: float, stopping: Callable[[], bool]
    ) -> None:
        """Wait until `sign` can be read, while the kernel is being set up."""
        assert self._run is not None  # noqa: S101 - it has been started
        preferred = False
        while not select.select([sign], [], [], _LOOK_S)[0]:
            if self.pid and not preferred:
                prefer_to_kill(self.pid, preferred=True)
                preferred = True
            if stopping():
                raise StoppedError
            if time.monotonic() > start + limit_s:
                self._too_slow(limit_s)
            if self._run.future.done():
                self._fail()

    def _too_slow(self, limit_s: float) -> None:
        self.kill()
        raise MeasurementError(too_slow(limit_s))

    def _fail(self) -> None:
        """It has ended before its time: raise why, as its record says, or its death."""
        record = self._ended(LEAST_WAIT_S)
        raise MeasurementError(record.reason or "it ended before its turns did")

    def _ended(self, limit_s: float) -> Record:
        """The record of a notebook that is just ending."""
        assert self._run is not None  # noqa: S101 - it has been started
        path = self.out / "records" / f"{self.trial.name}.json"
        try:
            self._run.result(limit_s)
        except KilledError:
            if self._kernels.lost_fork_server(self.trial.config.allocator):
                raise MeasurementError("the process that kernels are forked from died") from None
            raise
        except MeasurementError:
            if not path.exists():  # what it measured counts, whatever came after
                raise
        finally:
            self._close()
        if not path.exists():
            raise MeasurementError("the notebook wrote no record")
        try:
            return Record.load(path)
        except DamagedError as error:
            raise MeasurementError(str(error)) from None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._server.close()
        with suppress(OSError):
            (self._folder / "runner").unlink(missing_ok=True)
            self._folder.rmdir()
