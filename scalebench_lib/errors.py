"""Errors that a user meets: one line each, saying what happened, why, and what to do."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError


class ScalebenchError(Exception):
    """Something that scalebench can name; the message is one line for the user."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class RequestError(ScalebenchError):
    """The request was wrong: nothing was started and nothing was written."""


class MeasurementError(ScalebenchError):
    """A measurement was made, or begun, and cannot be trusted: its config fails."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name most like `name`, as a hint to put behind a message; else all of them.

    >>> nearest("scirpt", ["none", "script"])
    "did you mean 'script'?"
    """
    names = list(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def one_line(error: ValidationError, known_keys: Iterable[str] = ()) -> str:
    """What is wrong with a request, from pydantic's first complaint."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return f"unknown parameter {field!r}: {nearest(field, known_keys)}"
    message = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    message = message[:1].lower() + message[1:]
    given = "" if first["type"] == "value_error" else f", not {reprlib.repr(first['input'])}"
    return f"{field}: {message}{given}" if field else message
