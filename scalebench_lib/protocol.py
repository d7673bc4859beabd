"""The messages between a sweep's runner and a trial in its kernel, and when a group is done.

The trial connects to the Unix socket named by the variable `RUNNER_SOCKET`. One JSON object a line:

    trial    {"first_pass_s": 0.05}                          it is set up, and stands still
    runner   {"cycle": 7, "threads": 2, "seconds": 0.3}      a turn
    trial    {"median_ns": 4e7, "half_width": 0.01, "spent_s": 0.34}
    runner   {"end": "max_seconds"}                          recheck, write the record

A trial that fails closes its socket; where the runner is gone, the trial ends and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Literal, TypeVar

from pydantic import ValidationError

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import ScalebenchError

RUNNER_SOCKET = "SCALEBENCH_RUNNER"
"""The environment variable that names the runner's socket; without it a trial is alone."""

TURN_S = 0.3
"""Long against a switch of processes, short against a machine's states, which last seconds."""

EndedBy = Literal["target_ci", "max_seconds", "interrupted"]
"""Why turns ended: the interval is narrow enough, the time is up, or the sweep was stopped."""


class Ready(StrictModel):
    """The trial is set up, and its first pass took `first_pass_s`."""

    first_pass_s: float


class TurnRequest(StrictModel):
    """Take a turn: `seconds` of passes at `threads` threads, at least one pass."""

    cycle: int
    threads: int
    seconds: float


class TurnResult(StrictModel):
    """A point after its turn: the median of its samples, the half-width of its 95 % interval
    over the median (None: too few turns), and the seconds that the turn took."""

    median_ns: float
    half_width: float | None
    spent_s: float


class End(StrictModel):
    """Take no more turns, and write why."""

    end: EndedBy


Message = TypeVar("Message", bound=StrictModel)


class ConnectionEndedError(ScalebenchError):
    """The other side is gone, or says what nobody understands."""


def send(stream: IO[str], message: StrictModel) -> None:
    """Write `message` as a line."""
    stream.write(message.model_dump_json() + "\n")
    stream.flush()


def receive(stream: IO[str]) -> TurnRequest | End:
    """Return the runner's next message; `ConnectionEndedError` where it is gone."""
    line = stream.readline()
    return parse(line, End) if '"end"' in line else parse(line, TurnRequest)


def parse(line: str, kind: type[Message]) -> Message:
    """Return `line` as a message of this `kind`; `ConnectionEndedError` where it is none."""
    if not line:
        raise ConnectionEndedError("the other side is gone")
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        raise ConnectionEndedError(f"the other side said {line[:80]!r}") from None


@dataclass
class PointProgress:
    """A point in its block so far; the median and the half-width are those of its last answer."""

    turns: int = 0
    half_width: float | None = None
    spent_s: float = 0.0
    median_ns: float = 0.0

    def add(self, answer: TurnResult) -> None:
        """Count a turn."""
        self.turns += 1
        self.half_width = answer.half_width
        self.spent_s += answer.spent_s
        self.median_ns = answer.median_ns


def end_reason(
    points: Iterable[PointProgress], target_ci: float, max_seconds: float
) -> EndedBy | None:
    """Return why a group of `points` needs no further cycle, or None.

    `max_seconds` is the computing time of a point in this block; the group shares its sum.
    """
    points = list(points)
    if all(point.half_width is not None and point.half_width <= target_ci for point in points):
        return "target_ci"
    spent = sum(point.spent_s for point in points)
    return "max_seconds" if spent >= max_seconds * len(points) else None
