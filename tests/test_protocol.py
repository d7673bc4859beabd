"""What runner and trial say to each other, and when a group is done."""

import io

import pytest

from scalebench_lib.protocol import (
    ConnectionEndedError,
    End,
    PointProgress,
    Ready,
    TurnRequest,
    TurnResult,
    end_reason,
    parse,
    receive,
    send,
)
from scalebench_lib.stats import MIN_TURNS

REQUEST = TurnRequest(cycle=7, threads=2, seconds=0.3)


@pytest.mark.parametrize(
    "message",
    [
        Ready(first_pass_s=0.05),
        REQUEST,
        TurnResult(median_ns=4e7, half_width=0.01, spent_s=0.34),
        TurnResult(median_ns=4e7, half_width=None, spent_s=0.34),
        End(end="target_ci"),
    ],
)
def test_each_message_is_a_line_that_comes_back_as_it_was(message) -> None:
    """JSON, to be read by people too."""
    stream = io.StringIO()
    send(stream, message)
    assert stream.getvalue().count("\n") == 1
    assert parse(stream.getvalue(), type(message)) == message


def test_a_trial_hears_turns_and_then_the_end() -> None:
    """In the order in which they were said."""
    stream = io.StringIO()
    for message in (REQUEST, End(end="max_seconds")):
        send(stream, message)
    stream.seek(0)
    assert receive(stream) == REQUEST
    assert receive(stream) == End(end="max_seconds")


def test_where_the_other_side_is_gone_it_is_told() -> None:
    """An end of file is not a message."""
    with pytest.raises(ConnectionEndedError, match="the other side is gone"):
        receive(io.StringIO())


@pytest.mark.parametrize(
    "line",
    [
        "noise\n",
        "{}\n",
        "[]\n",
        '{"end": "because"}\n',
        '{"cycle": 1}\n',
        '{"cycle": 1, "threads": 1, "seconds": 0.3, "more": 1}\n',
        '{"cycle": 1, "threads": 1, "secon',
        "\n",
        '{"cycle": 1, "threads": 1, "seconds": 0.3}' * 1000,
    ],
)
def test_what_nobody_understands_ends_the_connection_in_one_short_line(line: str) -> None:
    """Half a line is such, as after a death."""
    with pytest.raises(ConnectionEndedError, match="the other side said") as caught:
        receive(io.StringIO(line))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def point(turns: int, half_width: float | None, spent_s: float) -> PointProgress:
    """A point that has come so far."""
    return PointProgress(turns, half_width, spent_s)


KNOWN, NOISY = point(MIN_TURNS, 0.01, 1.0), point(MIN_TURNS, 0.5, 1.0)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([KNOWN, KNOWN], "target_ci"),
        ([KNOWN, NOISY], None),
        ([KNOWN, point(MIN_TURNS - 1, None, 1.0)], None),
        ([point(1, None, 19.0), point(1, None, 1.0)], "max_seconds"),
        ([point(1, None, 10.0), point(1, None, 1.0)], None),
        ([point(9, 0.01, 99.0)], "target_ci"),
    ],
)
def test_a_group_is_done_when_all_is_known_or_its_time_is_up(points, reason) -> None:
    """Its points share their seconds: 10 s each."""
    assert end_reason(points, 0.02, 10.0) == reason


def test_progress_adds_up_turns() -> None:
    """The last half-width counts."""
    progress = PointProgress()
    for half_width in (None, 0.3, 0.2):
        progress.add(TurnResult(median_ns=1, half_width=half_width, spent_s=0.5))
    assert progress == PointProgress(3, 0.2, 1.5, 1.0)
