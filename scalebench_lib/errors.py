"""Errors that a user meets: one line each, saying what happened, why, and what to do."""

from __future__ import annotations

import re
import reprlib
import textwrap
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError


class ScalebenchError(Exception):
    """Something that scalebench can name; the message is one line for the user."""

    def _render_traceback_(self) -> list[str]:
        """Return the text that a notebook shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class RequestError(ScalebenchError):
    """The request was wrong: nothing was started and nothing was written."""


class MeasurementError(ScalebenchError):
    """A measurement was made, or begun, and cannot be trusted: its config fails."""


_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
# Of Unicode's, those that end a line or turn the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# How lines of OpenVINO begin that only say where it was.
_PLACE = re.compile(r"Exception from \S+:|Check '.*' failed( at .*)?:?$|FrontEnd API failed with ")
# In messages with such words, the line that says why.
_WHY = {
    "## Exception summary": re.compile(r"<class '(?:\w+\.)*(\w+)'>(: .+)"),  # torch.onnx
    "Traceback": re.compile(r"((?:\w+\.)*\w*(?:Error|Exception))(: .+)"),  # TorchScript
    "compile error": re.compile(r".*?((?:fatal )?error)(: .+)"),  # Inductor's compiler
}
_MOST_CHARACTERS = 300


def plain(text: str) -> str:
    """Return `text` without colours and other control characters, but for ends of lines."""
    return _CONTROL.sub("", _ESCAPE.sub("", text.replace("\r", "\n")))


def reason_in(message: str) -> str:
    """Return in one line why something failed, from the `message` of a library's exception.

    Engines begin with where they were, and some end with advice.

    >>> reason_in("Exception from core.cpp:84:\\nCould not open the file")
    'Could not open the file'
    """
    lines = [stripped for line in plain(message).splitlines() if (stripped := line.strip())]
    for mark, pattern in _WHY.items():
        found = [match for line in lines if (match := pattern.match(line))]
        if mark in message and found:
            return "".join(found[-1 if mark == "Traceback" else 0].groups())
    said = [line for line in lines if not _PLACE.match(line)] or lines
    if len(said) == len(lines):
        said = said[: 1 + said[0].endswith(":")] if said else []
    return textwrap.shorten(" ".join(said), _MOST_CHARACTERS, placeholder=" …")


def reason_of(error: BaseException) -> str:
    """Return in one line why, or the name of the error if it does not say."""
    return reason_in(str(error)) or type(error).__name__


def unknown_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Return that `name` is no known `kind`, with the known name that is most like it.

    >>> unknown_message("optimization", "scirpt", ["none", "script"])
    "unknown optimization 'scirpt': did you mean 'script'?"
    """
    return f"unknown {kind} {name!r}: {did_you_mean(name, known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint: the known name that is most like `name`, else all of them."""
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def validation_message(error: ValidationError, known_keys: Iterable[str] = ()) -> str:
    """Return pydantic's first complaint about a request as one line."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return unknown_message("parameter", field, known_keys)
    message = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    message = message[:1].lower() + message[1:]
    given = "" if first["type"] == "value_error" else f", not {reprlib.repr(first['input'])}"
    return f"{field}: {message}{given}" if field else message
