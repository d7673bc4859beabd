"""Allow one sweep at a time in a folder, and on a machine, where two would disturb each other.

The operating system releases a lock when its process ends, however it does. Who holds it is written
in the locked file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import platformdirs

from scalebench_lib.errors import RequestError

RUNTIME_DIR = "SCALEBENCH_RUNTIME_DIR"
"""The environment variable that names another folder for the machine's lock and the sockets."""

_SOCKET_SPACE = 100
"""Bytes that a socket's path may have on every system."""

_STATUS = ".running.json"
"""The status line of a running sweep; `files.leftovers` finds it after a kill."""

_FOLDER_BUSY = "another sweep is running in {holder}: wait for it"
_MACHINE_BUSY = (
    "this machine is measuring {holder}, and two would disturb each other: "
    "'--if-busy wait' waits for it"
)

_log = logging.getLogger("scalebench")


def lock_folder(out: Path) -> AbstractContextManager[None]:
    """Keep other sweeps out of folder `out`; raise `RequestError` where one is running there."""
    return _lock(out / ".lock", _FOLDER_BUSY, str(out))


def require_folder_free(out: Path) -> None:
    """Raise `RequestError`, naming its process, where a sweep is running in folder `out`.

    Writes nothing.
    """
    with suppress(FileNotFoundError, NotADirectoryError), (out / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(_FOLDER_BUSY.format(holder=file.read())) from None


def write_status(out: Path, doing: str | None) -> None:
    """Set the status line of the sweep in folder `out`; None removes it."""
    with suppress(OSError):
        if doing is None:
            (out / _STATUS).unlink()
        else:
            (out / _STATUS).write_text(doing, encoding="utf-8")


def read_status(out: Path) -> str | None:
    """Return the status line of the sweep in folder `out`; None where none is running."""
    try:
        require_folder_free(out)
    except RequestError:
        with suppress(OSError, ValueError):
            return (out / _STATUS).read_text(encoding="utf-8")
    return None


@contextmanager
def lock_machine(doing: str, if_busy: str = "refuse") -> Iterator[None]:
    """Allow this user one measurement at a time on this machine; others are shown `doing`.

    While another is running, ``refuse`` raises `RequestError`, ``wait`` waits for its end, and
    ``ignore`` measures all the same.
    """
    if if_busy == "ignore":
        yield
        return
    path = _own_folder() / f"measuring-on-{platform.node() or 'here'}.lock"
    with _lock(path, _MACHINE_BUSY, doing, wait=if_busy == "wait"):
        yield


@contextmanager
def _lock(path: Path, busy: str, holder: str, wait: bool = False) -> Iterator[None]:
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            message = busy.format(holder=file.read())
            if not wait:
                raise RequestError(message) from None
            _log.warning("waiting: %s", message.partition(":")[0])
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{holder} (process {os.getpid()})")
        file.flush()
        yield


def _own_folder() -> Path:
    """Return this user's folder, the same in every session; `RequestError` where it has none."""
    folder = Path(os.environ.get(RUNTIME_DIR) or platformdirs.user_cache_dir("scalebench"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RequestError(
            f"no place for the machine's lock ({error.strerror}: {folder}): set {RUNTIME_DIR} to a "
            "folder of your own, or measure with '--if-busy ignore'"
        ) from None
    if folder.stat().st_uid != os.geteuid():
        raise RequestError(f"{folder} is not yours: set {RUNTIME_DIR} to a folder of your own")
    return folder


def make_socket_folder() -> Path:
    """Make a folder that only this user can enter, with a path short enough for sockets."""
    parent = Path(os.environ.get(RUNTIME_DIR) or tempfile.gettempdir())
    longest = parent / "scalebench-12345678" / "tmp12345678/kernel-ipc-5"
    fits = parent.is_dir() and len(os.fsencode(longest)) <= _SOCKET_SPACE
    return Path(tempfile.mkdtemp(prefix="scalebench-", dir=parent if fits else "/tmp"))  # noqa: S108
