"""What a worker of a cluster runs on its host: one visit at a time, in a folder that goes again.

Everything that a host tells is JSON or the bytes of a file, so that what another version of
scalebench says is noticed, not unpickled.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import re
import signal
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from pydantic import BaseModel, ConfigDict

from scalebench_lib.allocators import require_installed
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS, PROJECT
from scalebench_lib.record import KernelKind, Software
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import machine_to_itself
from scalebench_lib.words import Allocator

LABEL = "SCALEBENCH_HOST"
"""The environment variable that gives a worker's host another name than the system's."""

_kernels: dict[bool, Kernels] = {}
"""Warm and fresh ones, kept as long as the worker."""

_running: dict[str, set[int]] = {}
"""The kernels' processes by the sweep that they belong to."""

_ended: set[str] = set()
"""Sweeps that were interrupted: what they had still asked for is not begun."""


class Host(BaseModel):
    """A host as its worker describes it. `trouble` is why it can measure nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    machine: Machine
    software: Software
    code: str
    available_bytes: int
    trouble: str | None = None


class Found(NamedTuple):
    """What a visit left behind: the files' bytes, or the `reason` that there is no record.

    `full` tells that the host's disk was, `available_bytes` the memory it has left.
    """

    record: bytes | None
    notebook: bytes | None
    reason: str
    kind: KernelKind
    full: bool
    available_bytes: int


def describe(allocators: Iterable[Allocator], if_busy: str, dask_worker: Any = None) -> str:
    """This host as JSON; `dask_worker` is the worker that asks."""
    if getattr(dask_worker, "nanny", None):
        _without_what_nannies_set()
    return Host(
        name=host_name(),
        machine=Machine.here(),
        software=Software.here(),
        code=code_digest(),
        available_bytes=psutil.virtual_memory().available,
        trouble=_trouble(allocators, if_busy),
    ).model_dump_json()


def host_name() -> str:
    """What this host is called, fit for file names."""
    name = os.environ.get(LABEL) or platform.node().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:63] or "host"


def code_digest() -> str:
    """One number for the code that measures: two checkouts can have the same version."""
    files = sorted((PROJECT / "scalebench_lib").rglob("*.py"))
    digest = hashlib.sha256()
    for path in (*files, NOTEBOOKS / "measure.ipynb"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _trouble(allocators: Iterable[Allocator], if_busy: str) -> str | None:
    try:
        require_installed(allocators)
        if if_busy == "refuse" and not any(_running.values()):
            with machine_to_itself("a sweep that is about to start", if_busy):
                pass
    except RequestError as error:
        return str(error)
    return None


def _without_what_nannies_set() -> None:
    """Dask's nannies tell workers to compute with one thread: nothing for a measurement."""
    import dask.config

    for name, value in dask.config.get("distributed.nanny.pre-spawn-environ").items():
        if os.environ.get(name) == str(value):
            del os.environ[name]


def visit(
    sweep: str, doing: str, name: str, parameters: Mapping[str, Any], limit_s: float, how: Any
) -> Found:
    """Run ``measure.ipynb`` with `parameters`, as the visit `name` of the `sweep` (an id).

    `doing` is what others on this host are told; `how` holds ``warm`` and ``if_busy``.
    """
    wait = "beside" if how["if_busy"] == "beside" else "wait"
    with machine_to_itself(doing, wait), tempfile.TemporaryDirectory() as scratch:
        if sweep in _ended:
            return Found(None, None, "the sweep has ended", "none", False, 0)
        return _visit(sweep, Path(scratch) / "sweep", name, parameters, limit_s, how["warm"])


def _visit(
    sweep: str, out: Path, name: str, parameters: Mapping[str, Any], limit_s: float, warm: bool
) -> Found:
    kernels = _kernels_for(warm)
    notebook, reason, full = out / "notebooks" / f"{name}.ipynb", "", False

    def started(process: int) -> None:
        _running.setdefault(sweep, set()).add(process)
        if sweep in _ended:
            end(sweep)

    try:
        inside = {**parameters, "out": str(out)}
        kernels.run(NOTEBOOKS / "measure.ipynb", notebook, inside, limit_s, started)
    except MeasurementError as error:
        reason = str(error)
    except OSError as error:
        reason, full = str(error.strerror or error), True
    finally:
        _running.pop(sweep, None)
    record = next((out / "records").glob("*.json"), None)
    return Found(
        record.read_bytes() if record else None,
        notebook.read_bytes() if notebook.exists() else None,
        reason,
        kernels.kind,
        full,
        psutil.virtual_memory().available,
    )


def _kernels_for(warm: bool) -> Kernels:
    if warm not in _kernels:
        _kernels[warm] = Kernels(warm=warm)
        atexit.register(_kernels[warm].close)
    return _kernels[warm]


def end(sweep: str) -> None:
    """Kill what `sweep` (an id) is running here, and begin nothing more of it."""
    _ended.add(sweep)
    for process in _running.get(sweep, ()):
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(process, signal.SIGKILL)
