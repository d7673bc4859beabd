"""Memory allocators: found, preloaded when a process starts, and asked for from inside it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from ctypes.util import find_library
from pathlib import Path

from scalebench_lib.config import Allocator
from scalebench_lib.errors import RequestError

LIBRARIES = {
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"),
    "jemalloc": ("libjemalloc.so.2",),
}
"""By preference: of tcmalloc, the library without its profilers."""

_INSTALL = {
    "tcmalloc": "'apt install libtcmalloc-minimal4' or 'conda install gperftools'",
    "jemalloc": "'apt install libjemalloc2' or 'conda install jemalloc'",
}


def require_installed(allocators: Iterable[Allocator]) -> None:
    """Raise `RequestError`, naming the package to install, unless each can be preloaded."""
    for allocator in allocators:
        library(allocator)


def preload(allocator: Allocator, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variable that makes a new process use `allocator`, whatever `environment` preloads.

    Without an `environment` it is that of this process. Raises `RequestError` where the library
    is not installed.
    """
    environment = os.environ if environment is None else environment
    others = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    kept = [path for path in others if not _is_allocator(path)]
    return {"LD_PRELOAD": ":".join([*filter(None, [library(allocator)]), *kept])}


def library(allocator: Allocator) -> str | None:
    """What to preload for `allocator`: a path, or a name that the loader finds; none by default."""
    if allocator == "default":
        return None
    if not sys.platform.startswith("linux"):
        raise RequestError(f"allocator {allocator!r} needs LD_PRELOAD, which only Linux has")
    found = next(_candidates(allocator), None)
    if found is None:
        raise RequestError(f"allocator {allocator!r} is not installed: {_INSTALL[allocator]}")
    return found


def _candidates(allocator: Allocator) -> Iterator[str]:
    for name in LIBRARIES[allocator]:
        for prefix in dict.fromkeys((sys.prefix, os.environ.get("CONDA_PREFIX", sys.prefix))):
            if (path := Path(prefix) / "lib" / name).exists():
                yield str(path)
        stem = name.removeprefix("lib").partition(".so")[0]
        if system := find_library(stem):
            yield system


def _is_allocator(path: str) -> bool:
    return Path(path).name.startswith(tuple(f"lib{name}" for name in LIBRARIES))


_SERVED = ("malloc", "free", "realloc", "posix_memalign")
"""What torch and the engines take their memory with."""


class _Found(ctypes.Structure):
    """``Dl_info`` of ``dladdr``."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def library_of(symbol: str) -> str:
    """The file name of the library that `symbol` resolves to in this process."""
    process, found = ctypes.CDLL(None), _Found()
    address = ctypes.cast(getattr(process, symbol), ctypes.c_void_p)
    process.dladdr(address, ctypes.byref(found))
    return Path((found.file or b"unknown").decode()).name


def require_loaded(allocator: Allocator) -> None:
    """Raise `RequestError`, saying how to start, unless `allocator` serves this process."""
    if not sys.platform.startswith("linux"):
        if allocator != "default":
            raise RequestError(f"allocator {allocator!r} needs LD_PRELOAD, which only Linux has")
        return
    own = library_of("getpid")  # the C library's, which nobody replaces
    for symbol in _SERVED:
        found = library_of(symbol)
        fits = found == own if allocator == "default" else found.startswith(f"lib{allocator}")
        if not fits:
            raise RequestError(f"allocator: {symbol} is {found}'s here; {_advice(allocator)}")


def _advice(allocator: Allocator) -> str:
    if allocator == "default":
        return "to measure the system's own, start without LD_PRELOAD"
    return f"start with LD_PRELOAD={LIBRARIES[allocator][0]} papermill …, or use 'scalebench sweep'"
