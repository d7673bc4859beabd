"""Files that are there whole or not at all, and damage that is noticed."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scalebench_lib.errors import ScalebenchError

_SEAL = re.compile(rb'(?s)(.*),\n "sha256": "([0-9a-f]{64})"\n}\n')

_UNFINISHED = (".*.json", ".*.json.*", ".*.ipynb", ".*.ipynb.*", ".*.yaml.*")

_log = logging.getLogger("scalebench")


class DamagedError(ScalebenchError):
    """A file is not what was written."""


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sealed(text: str) -> str:
    """The JSON object `text` (indented by 1) with a last line: the digest of all before it."""
    body = text.rstrip().removesuffix("\n}")
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def unsealed(data: bytes, required: bool = False) -> bytes:
    """What was sealed; `DamagedError` where it has changed. The first records had no seal.

    Where it is `required`, `DamagedError` too without one.
    """
    found = _SEAL.fullmatch(data)
    if not found and required:
        raise DamagedError("it has no checksum at its end")
    if not found:
        return data
    if hashlib.sha256(found[1]).hexdigest().encode() != found[2]:
        raise DamagedError("its checksum is not that of its content")
    return found[1] + b"\n}\n"


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file to ``*.invalid``, where nobody takes it for a good one; say `why`."""
    aside, number = path.with_name(f"{path.name}.invalid"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{number}.invalid")
    with suppress(OSError):  # where nothing can be written it is left out all the same
        path.rename(aside)
    _log.warning("%s: set aside as *.invalid", why)


def unfinished(out: Path) -> Iterator[Path]:
    """What a sweep that was killed has left half written in its folder."""
    for folder in (out, out / "records", out / "notebooks"):
        for pattern in _UNFINISHED:
            yield from folder.glob(pattern)
