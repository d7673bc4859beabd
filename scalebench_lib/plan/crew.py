"""The processes of a plan, seen from outside: started, told when to begin, and ended for sure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from scalebench_lib.allocators import preload
from scalebench_lib.errors import MeasurementError
from scalebench_lib.plan.instance import Role
from scalebench_lib.processes import cause_of_death, end

_COMMAND = (sys.executable, "-m", "scalebench_lib.plan.instance")

_HEAD_START_NS = 1_500_000
_HEAD_START_EACH_NS = 50_000
"""How far ahead a start is set: every instance must have read of it by then."""

_FAREWELL_S = 5.0
"""A process whose pipe has closed is given so long to say why."""


class Crew:
    """Processes that compute at one common start; a context manager that leaves none behind."""

    def __init__(self, roles: Sequence[Role]) -> None:
        self._members: dict[Connection, _Member] = {}
        try:
            for role in roles:
                member = _Member(role)
                self._members[member.pipe] = member
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the crew, whatever it is doing."""
        for member in self._members.values():
            member.close()
        self._members.clear()

    def ready(self, limit_s: float) -> None:
        """Wait until all are ready; `MeasurementError` where one dies or takes too long."""
        self._answers(limit_s)

    def run(self, limit_s: float) -> int:
        """All compute once, from a common start to the end of the last one: ns.

        Raises `MeasurementError` where one dies, or does not end within `limit_s`.
        """
        ahead = _HEAD_START_NS + _HEAD_START_EACH_NS * len(self._members)
        start = time.perf_counter_ns() + ahead
        for member in self._members.values():
            member.send({"start_ns": start})
        answers = self._answers(limit_s)
        return int(max(answer["ended_ns"] for answer in answers)) - start

    def _answers(self, limit_s: float) -> list[dict[str, Any]]:
        """One message from each member."""
        deadline, left, answers = time.monotonic() + limit_s, dict(self._members), []
        while left:
            heard = wait(list(left), timeout=max(0.0, deadline - time.monotonic()))
            if not heard:
                raise MeasurementError(
                    f"{len(left)} of {len(self._members)} instances did not answer "
                    f"within {limit_s:.3g} s"
                )
            answers += [left.pop(pipe).receive() for pipe in heard]  # type: ignore[call-overload]
        return answers


class _Member:
    """A process, the pipe to it, and what it writes to standard error."""

    def __init__(self, role: Role) -> None:
        env = {**os.environ, **preload(role.config.allocator)}
        self.pipe, theirs = Pipe()
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [*_COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                start_new_session=True,
                env=env,
            )
        self.send(role.model_dump(mode="json"))

    def send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # that it is gone shows when it is listened to
            self.pipe.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_S)
            end(self._process)
            self._words.seek(0)
            how = cause_of_death(self._process, self._words.read())
            raise MeasurementError(f"an instance {how}") from None
        return answer

    def close(self) -> None:
        end(self._process)
        self.pipe.close()
        self._words.close()
