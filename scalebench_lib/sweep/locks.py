"""One sweep at a time: in a folder, and on a machine, where two would disturb each other.

The locks are the operating system's: they go with their process, however that ends.
"""

from __future__ import annotations

import logging
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from scalebench_lib.errors import RequestError

IF_BUSY = ("refuse", "wait", "beside")
"""What a sweep does where another one is measuring on this machine."""

PLACE = "SCALEBENCH_RUNTIME_DIR"
"""The environment variable that names another folder for the machine's lock and the sockets."""

_POLL_SECONDS = 1.0
"""Who waits must not disturb what it waits for."""

_LOOK_SECONDS = 0.2
"""Who finds a lock taken looks again: another may only have looked whether it is free."""

_SOCKET_SPACE = 100
"""Bytes that a socket's path may have on every system."""

_FOLDER_BUSY = "another sweep is running in {holder}: wait for it"

_log = logging.getLogger("scalebench")


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """One sweep at a time in folder `out`; `RequestError` names the process that is there."""
    with _held(out / ".lock", _FOLDER_BUSY, str(out)):
        yield


def require_free(out: Path) -> None:
    """Raise `RequestError`, naming its process, where a sweep is running in folder `out` now."""
    if (path := out / ".lock").exists():
        _acquired(path, _FOLDER_BUSY).release()


@contextmanager
def lock_machine(doing: str, if_busy: str = "refuse") -> Iterator[None]:
    """One measurement of this user at a time on this machine; `doing` tells others which.

    `if_busy` is one of `IF_BUSY`.

    Raises `RequestError` where there is another, unless it is to ``wait`` or go on ``beside`` it.
    """
    if if_busy == "beside":
        yield
        return
    path = _own_folder() / f"measuring-on-{platform.node() or 'here'}.lock"
    busy = (
        "this machine is measuring {holder}, and two would disturb each other: "
        "'--if-busy wait' waits for it"
    )
    with _held(path, busy, doing, wait=if_busy == "wait"):
        yield


def socket_folder() -> Path:
    """A new folder that nobody else can enter or guess, with a path short enough for sockets."""
    told = os.environ.get(PLACE) or os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(told) if told and _is_ours(Path(told)) else Path(tempfile.gettempdir())
    longest = parent / "scalebench-12345678" / "tmp12345678/kernel-ipc-5"
    fits = len(os.fsencode(longest)) <= _SOCKET_SPACE
    return Path(tempfile.mkdtemp(prefix="scalebench-", dir=parent if fits else "/tmp"))  # noqa: S108


@contextmanager
def _held(path: Path, busy: str, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock at `path`; a note beside it tells others who does."""
    lock, note = _acquired(path, busy, wait), _note(path)
    try:
        note.write_text(f"{doing} (process {os.getpid()})", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()


def _acquired(path: Path, busy: str, wait: bool = False) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path, poll_interval=_POLL_SECONDS)
    try:
        lock.acquire(timeout=_LOOK_SECONDS, poll_interval=_LOOK_SECONDS / 4)
    except filelock.Timeout:
        told = busy.format(holder=_told(path))
        if not wait:
            raise RequestError(told) from None
        _log.warning("waiting: %s", told.partition(":")[0])
        lock.acquire(timeout=-1)
    return lock


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}-holder")


def _told(path: Path) -> str:
    try:
        return _note(path).read_text(encoding="utf-8")
    except OSError:
        return "something else"


def _own_folder() -> Path:
    """This user's, the same in every session; `RequestError` where there is no such place."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get(PLACE) or f"{cache}/scalebench").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RequestError(
            f"no place for the machine's lock ({error.strerror}: {folder}): set {PLACE} to a "
            "folder of your own, or measure with '--if-busy beside'"
        ) from None
    if not _is_ours(folder):
        raise RequestError(f"{folder} is not yours: set {PLACE} to a folder of your own")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
