"""Files that are written whole or not at all, and damage that is noticed."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from scalebench_lib.errors import ScalebenchError

_SEAL = re.compile(rb'(?s)(.*),\n "sha256": "([0-9a-f]{64})"\n}\n')

_UNFINISHED = (".*.json", ".*.json.*", ".*.ipynb", ".*.ipynb.*", ".*.yaml.*")

_log = logging.getLogger("scalebench")


class DamagedError(ScalebenchError):
    """A file is not what was written."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: a reader, or a crash, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # that of a full disk has none
        raise


def sealed(text: str) -> str:
    """Return the JSON object `text` (indented by 1) with a last line: the digest of the others."""
    body = text.rstrip().removesuffix("\n}")
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def unsealed(data: bytes) -> bytes:
    """Return what was sealed, or never was; `DamagedError` where it has changed."""
    found = _SEAL.fullmatch(data)
    if not found and b'"sha256"' not in data:
        return data
    if not found or hashlib.sha256(found[1]).hexdigest().encode() != found[2]:
        raise DamagedError("its checksum is not that of its content")
    return found[1] + b"\n}\n"


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file to ``*.invalid``, which nobody reads; log `why`."""
    with suppress(OSError):  # where nothing can be written it is left out all the same
        path.rename(path.with_name(f"{path.name}.{token_hex(4)}.invalid"))
    _log.warning("%s: set aside as *.invalid", why)


def leftovers(out: Path) -> Iterator[Path]:
    """Yield what a sweep that was killed has left half written in its folder."""
    for folder in (out, out / "records", out / "notebooks"):
        for pattern in _UNFINISHED:
            yield from folder.glob(pattern)
