"""Memory allocators: found, set up when a process starts, and checked from inside it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Mapping
from ctypes.util import find_library
from pathlib import Path

from scalebench_lib.config import Allocator
from scalebench_lib.errors import RequestError
from scalebench_lib.machine import search_file

LIBRARIES = {
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"),
    "jemalloc": ("libjemalloc.so.2",),
}
"""By preference: of tcmalloc, the library without its profilers."""

_INSTALL = {
    "tcmalloc": "'apt install libtcmalloc-minimal4' or 'conda install gperftools'",
    "jemalloc": "'apt install libjemalloc2' or 'conda install jemalloc'",
}

# All is taken from the heap, and kept; of MALLOC_MMAP_THRESHOLD_ old glibc refuse 32 MiB.
_KEEP = {
    "MALLOC_TRIM_THRESHOLD_": str(2**46),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": "67108864",
}

SETTINGS: dict[str, dict[str, str]] = {
    "glibc-keep": _KEEP,
    "thp": {**_KEEP, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    # As launchers do, but for background_thread: a process that forks kernels must have no thread.
    "jemalloc": {
        "MALLOC_CONF": "oversize_threshold:1,metadata_thp:auto,"
        "dirty_decay_ms:9000000000,muzzy_decay_ms:9000000000"
    },
}
"""The variables that an allocator is told by."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# With these torch and the engines take their memory.
_SERVED = ("malloc", "free", "realloc", "posix_memalign")


def require_installed(allocators: Iterable[Allocator]) -> None:
    """Raise `RequestError`, naming the package to install, unless each can be preloaded."""
    for allocator in allocators:
        library(allocator)


def library(allocator: Allocator) -> str | None:
    """Return what to preload: a path, or a name that the loader finds; None for glibc's own.

    Raises `RequestError` if it is not installed, or the system has no huge pages to give.
    """
    if allocator == "default":
        return None
    _require_linux(allocator)
    if allocator == "thp":
        _require_huge_pages()
    if allocator not in LIBRARIES:
        return None
    prefixes = (sys.prefix, os.environ.get("CONDA_PREFIX", sys.prefix))
    for name in LIBRARIES[allocator]:
        paths = [Path(prefix) / "lib" / name for prefix in prefixes]
        systems = find_library(name.removeprefix("lib").partition(".so")[0])
        if found := next((str(path) for path in paths if path.exists()), systems):
            return found
    raise RequestError(f"allocator {allocator!r} is not installed: {_INSTALL[allocator]}")


def variables(allocator: Allocator, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables with which a process starts with `allocator`, in `environment`.

    Other libraries and tunables that are named there stay. Raises `RequestError` as `library`.
    """
    kept = other_preloads(environment.get("LD_PRELOAD", ""))
    preloaded = ":".join([*filter(None, [library(allocator)]), *kept])
    settings = dict(SETTINGS.get(allocator, {}))
    if (tunables := "GLIBC_TUNABLES") in settings and environment.get(tunables):
        settings[tunables] = f"{environment[tunables]}:{settings[tunables]}"
    return {"LD_PRELOAD": preloaded, **settings}


def portable_variables(allocator: str) -> dict[str, str]:
    """Return the variables for a command to be run anywhere: libraries by their names alone."""
    preloaded = {"LD_PRELOAD": LIBRARIES[allocator][0]} if allocator in LIBRARIES else {}
    return {**preloaded, **SETTINGS.get(allocator, {})}


def other_preloads(preloaded: str) -> list[str]:
    """Return the libraries in the value of ``LD_PRELOAD`` that are no allocators."""
    names = tuple(f"lib{name}" for name in LIBRARIES)
    libraries = preloaded.replace(":", " ").split()
    return [path for path in libraries if not Path(path).name.startswith(names)]


def require_loaded(allocator: Allocator) -> None:
    """Raise `RequestError`, saying how to start, unless `allocator` serves this process."""
    if allocator != "default":
        _require_linux(allocator)
    elif not sys.platform.startswith("linux"):
        return
    c_library = library_of_symbol("getpid")  # a function that no allocator replaces
    settings = " ".join(f"{name}={it}" for name, it in portable_variables(allocator).items())
    advice = f"start with {settings} papermill …, or use 'scalebench sweep'"
    for symbol in _SERVED:
        found = library_of_symbol(symbol)
        if allocator not in LIBRARIES and found != c_library:
            advice = "to measure the system's own, start without LD_PRELOAD"
        elif allocator not in LIBRARIES or found.startswith(f"lib{allocator}"):
            continue
        raise RequestError(f"allocator: {symbol} is {found}'s here; {advice}")
    if not _is_set_up(allocator):
        raise RequestError(f"allocator: {allocator!r} is not what malloc was told here; {advice}")


def _is_set_up(allocator: Allocator) -> bool:
    """Return whether malloc has heard the settings of `allocator`, by what it does."""
    process = ctypes.CDLL(None)
    if allocator == "jemalloc":
        decay_ms, size = ctypes.c_ssize_t(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_ssize_t))
        process.mallctl(b"opt.dirty_decay_ms", *map(ctypes.byref, (decay_ms, size)), None, 0)
        return f"dirty_decay_ms:{decay_ms.value}," in SETTINGS[allocator]["MALLOC_CONF"]
    if allocator not in SETTINGS:
        return True
    process.malloc.restype = ctypes.c_void_p
    # Left alone, it takes what is above 32 MiB from the system, and gives it back.
    address = process.malloc(ctypes.c_size_t(48 * 2**20))
    process.free(ctypes.c_void_p(address))
    mapping = _mapping_of(address)  # after it was given back
    return "[heap]" in mapping and ("hg" in mapping.split() or allocator != "thp")


def _require_huge_pages() -> None:
    mode = search_file(_HUGE_PAGES, r"\[(\w+)\]")
    if mode == "always":
        raise RequestError("allocator 'thp': the system gives huge pages to all: use 'glibc-keep'")
    if mode != "madvise":
        raise RequestError(f"allocator 'thp': huge pages are off: 'echo madvise > {_HUGE_PAGES}'")


def _require_linux(allocator: Allocator) -> None:
    if not sys.platform.startswith("linux"):
        raise RequestError(f"allocator {allocator!r} needs LD_PRELOAD, which only Linux has")


def library_of_symbol(symbol: str) -> str:
    """Return the file name of the library to which `symbol` resolves in this process.

    ``unknown`` where the system does not list what a process has mapped.
    """
    address = ctypes.cast(getattr(ctypes.CDLL(None), symbol), ctypes.c_void_p).value or 0
    first, *_ = _mapping_of(address).splitlines() or ["unknown"]
    return Path(first.split(maxsplit=5)[-1]).name


def _mapping_of(address: int) -> str:
    """Return what the system lists of the memory at `address` of this process: with its flags."""
    maps = Path("/proc/self/smaps")
    for part in re.split(r"\n(?=[0-9a-f]+-)", maps.read_text()) if maps.exists() else ():
        low, high = (int(end, 16) for end in part.split(maxsplit=1)[0].split("-"))
        if low <= address < high:
            return part
    return ""
