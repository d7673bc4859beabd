"""Memory allocators: found, preloaded when a process starts, and checked from inside it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Mapping
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

_SERVED = ("malloc", "free", "realloc", "posix_memalign")
"""The functions with which torch and the engines take their memory."""


def require_installed(allocators: Iterable[Allocator]) -> None:
    """Raise `RequestError`, naming the package to install, unless each can be preloaded."""
    for allocator in allocators:
        library(allocator)


def library(allocator: Allocator) -> str | None:
    """Return what to preload: a path, or a name that the loader finds; None for the default.

    Raises `RequestError` if it is not installed.
    """
    if allocator == "default":
        return None
    _require_linux(allocator)
    prefixes = dict.fromkeys((sys.prefix, os.environ.get("CONDA_PREFIX", sys.prefix)))
    for name in LIBRARIES[allocator]:
        for prefix in prefixes:
            if (path := Path(prefix) / "lib" / name).exists():
                return str(path)
        if found := find_library(name.removeprefix("lib").partition(".so")[0]):
            return found
    raise RequestError(f"allocator {allocator!r} is not installed: {_INSTALL[allocator]}")


def preload(allocator: Allocator, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variable with which a process starts with `allocator`, in `environment`.

    Other libraries that are preloaded there stay. Raises `RequestError` as `library`.
    """
    others = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    allocators = tuple(f"lib{name}" for name in LIBRARIES)
    kept = [path for path in others if not Path(path).name.startswith(allocators)]
    return {"LD_PRELOAD": ":".join([*filter(None, [library(allocator)]), *kept])}


def require_loaded(allocator: Allocator) -> None:
    """Raise `RequestError`, saying how to start, unless `allocator` serves this process."""
    if allocator != "default":
        _require_linux(allocator)
    elif not sys.platform.startswith("linux"):
        return
    c_library = library_of("getpid")  # a function that no allocator replaces
    for symbol in _SERVED:
        found = library_of(symbol)
        if allocator == "default" and found != c_library:
            advice = "to measure the system's own, start without LD_PRELOAD"
        elif allocator != "default" and not found.startswith(f"lib{allocator}"):
            name = LIBRARIES[allocator][0]
            advice = f"start with LD_PRELOAD={name} papermill …, or use 'scalebench sweep'"
        else:
            continue
        raise RequestError(f"allocator: {symbol} is {found}'s here; {advice}")


def _require_linux(allocator: Allocator) -> None:
    if not sys.platform.startswith("linux"):
        raise RequestError(f"allocator {allocator!r} needs LD_PRELOAD, which only Linux has")


def library_of(symbol: str) -> str:
    """Return the file name of the library to which `symbol` resolves in this process.

    ``unknown`` where the system does not list what a process has mapped.
    """
    address = ctypes.cast(getattr(ctypes.CDLL(None), symbol), ctypes.c_void_p).value or 0
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return Path(line.split(maxsplit=5)[-1]).name
    return "unknown"
