"""A host of a cluster: what its dask worker runs there, a block at a time, in a folder that goes.

What a host is told and tells is JSON, so that another version of scalebench is noticed. The worker
times nothing. By itself it takes 3 % of a CPU, in 100 slices a second, which turns would feel; in a
block it is quiet: 0.2 % in 5 slices, for the beat that tells the scheduler that it lives. A nanny
(1.3 % in 50) and a scheduler (as much) are as they are.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from scalebench_lib.allocators import require_installed
from scalebench_lib.config import StrictModel, Sweep
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import NOTEBOOKS, PROJECT
from scalebench_lib.record import Record, Software
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.runner import run_block
from scalebench_lib.sweep.stop import Stop

LABEL = "SCALEBENCH_HOST"
"""The environment variable that gives a worker's host another name than the system's."""

_RARELY_MS = 2000.0
"""A worker that does not look at itself for 3 s complains."""

_ended: set[str] = set()
"""Sweeps (ids) of which no further cycle is wanted."""


class Host(StrictModel):
    """A host as its worker describes it; `code` is a digest of the code that measures."""

    name: str
    machine: Machine
    software: Software
    code: str


class Order(StrictModel):
    """A block to be measured: as many of `configs` (ids), left of round `number`, as fit.

    `run` is the id by which all blocks of the sweep are ended, `folder` what others on the host
    are told. `records` are those of this host, or of all that count as one machine with it.
    """

    run: str
    folder: str
    sweep: Sweep
    machine: Machine
    records: tuple[Record, ...]
    retry: frozenset[str]
    number: int
    configs: frozenset[str]
    budget_s: float | None
    trial_timeout: float | None
    warm: bool
    if_busy: str


class Found(StrictModel):
    """What came of an order: new records, bases first, notebooks by name, `left` configs (ids).

    `trouble` is why the host can measure nothing more.
    """

    records: tuple[Record, ...] = ()
    notebooks: dict[str, str] = Field(default={})
    left: frozenset[str] = frozenset()
    trouble: str | None = None


def describe(dask_worker: Any) -> str:
    """The `Host` of the worker that is asked, in JSON."""
    if getattr(dask_worker, "nanny", None):
        _without_what_nannies_set()
    return Host(
        name=host_name(dask_worker),
        machine=Machine.here(),
        software=Software.here(),
        code=code_digest(),
    ).model_dump_json()


def host_name(dask_worker: Any) -> str:
    """What the host of a worker is called, fit for file names."""
    name = os.environ.get(LABEL) or platform.node().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:63] or "host"


def code_digest() -> str:
    """One word for the code that measures: two checkouts may have the same version."""
    digest = hashlib.sha256((NOTEBOOKS / "measure.ipynb").read_bytes())
    for path in sorted((PROJECT / "scalebench_lib").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _without_what_nannies_set() -> None:
    """Dask's nannies tell workers to compute with one thread: nothing for a measurement."""
    import dask.config

    for name, value in dask.config.get("distributed.nanny.pre-spawn-environ").items():
        if os.environ.get(name) == str(value):
            del os.environ[name]


def end(run: str) -> None:
    """End the blocks of `run` (an id) with the cycle in flight, and those that begin later."""
    _ended.add(run)


def measure_block(order: str) -> str:
    """Measure the block of an `Order`; returns what was `Found`. Both are JSON."""
    asked = Order.model_validate_json(order)
    worker = importlib.import_module("distributed").get_worker()
    scratch = tempfile.TemporaryDirectory(dir=worker.local_directory)  # dask's, after a kill too
    with scratch as folder, _quiet(worker):
        try:
            found = _measured(asked, Path(folder) / asked.folder, _Stop(asked, worker))
        except RequestError as error:
            found = Found(trouble=str(error))
    return found.model_dump_json()


def _measured(order: Order, out: Path, stop: Stop) -> Found:
    """Raises `RequestError` where the host lacks what is asked."""
    require_installed(order.sweep.allocators)
    for record in order.records:
        record.save(out / "records")
    run, left, trouble = SweepRun.on(order.machine, order.sweep, out), order.configs, None
    run.retry, run.trial_timeout = set(order.retry), order.trial_timeout
    try:
        with run.alone(order.if_busy), Kernels(order.warm) as run.kernels:
            trials = run_block(run, order.number, order.configs, stop)
        left = frozenset(trial.config.id for trial in trials)
    except ScalebenchError as error:
        trouble = str(error)
    new = tuple(run.records[len(order.records) :])
    texts = {path.stem: path.read_text("utf-8") for path in out.glob("notebooks/*.ipynb")}
    return Found(records=new, notebooks=texts, left=left, trouble=trouble)


class _Stop(Stop):
    """Ends a block at its deadline, when its sweep is ended, and when nobody waits for it."""

    def __init__(self, order: Order, worker: Any) -> None:
        budget_s = float("inf") if order.budget_s is None else order.budget_s
        super().__init__(time.monotonic() + budget_s)
        self._run, self._worker, self._key = order.run, worker, worker.get_current_task()

    def asked(self) -> bool:
        """Whether somebody has asked for the end."""
        task = self._worker.state.tasks.get(self._key)
        return self._run in _ended or task is None or task.state == "cancelled"


@contextmanager
def _quiet(worker: Any) -> Iterator[None]:
    """Let `worker` do rarely what it does by itself, as long as a block is measured."""
    calls = dict(worker.periodic_callbacks)
    usual_ms = {name: call.callback_time for name, call in calls.items()}
    for name, interval_ms in usual_ms.items():
        calls[name].callback_time = max(interval_ms, _RARELY_MS)
    try:
        yield
    finally:
        for name, interval_ms in usual_ms.items():
            calls[name].callback_time = interval_ms
