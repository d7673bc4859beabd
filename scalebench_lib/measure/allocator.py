"""Which library serves this process's memory: asked of the loader, not of the environment."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from scalebench_lib.allocators import LIBRARIES
from scalebench_lib.errors import RequestError
from scalebench_lib.words import Allocator

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
