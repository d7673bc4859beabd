"""The hosts of a dask cluster: who they are, and their visits, sent out and brought home.

On the wire dask speaks pickle, both ways: use it on networks that you trust, or with ``tls://``.
"""

from __future__ import annotations

import importlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError

from scalebench_lib.config import Visit
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Software
from scalebench_lib.sweep import remote
from scalebench_lib.sweep.remote import Host
from scalebench_lib.words import Allocator

CONNECT_SECONDS = 10.0

WORKERS_SECONDS = 10.0
"""How long the first worker may take to turn up."""

Hosts = dict[str, tuple[Host, str]]
"""Hosts by name, each with the address of the worker that measures there."""


@contextmanager
def cluster_at(address: str, warm: bool = True, if_busy: str = "refuse") -> Iterator[Cluster]:
    """Connect to the scheduler at `address`; `RequestError` where that cannot be.

    `warm` and `if_busy` say how its hosts start kernels, and what they do where somebody measures.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ModuleNotFoundError:
        raise RequestError(
            "'--scheduler' needs dask.distributed: install the extra with "
            "pip install 'scalebench[cluster]'"
        ) from None
    for name in ("distributed", "tornado"):  # what they log, we say in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"no scheduler at {address!r}: {why}") from None
    try:
        yield Cluster(client, address, warm, if_busy)
    finally:
        with suppress(Exception):  # nothing of ours hangs on a farewell
            client.close(timeout=2)


class Cluster:
    """A connection to a scheduler and its workers."""

    def __init__(self, client: Any, address: str, warm: bool, if_busy: str) -> None:
        self.address = address
        self._client = client
        self._how = {"warm": warm, "if_busy": if_busy}
        self._sweep = uuid.uuid4().hex

    def alive(self) -> set[str]:
        """The addresses of the workers that are there now."""
        return set(self._client.nthreads())

    def hosts(self, allocators: Iterable[Allocator]) -> Hosts:
        """The hosts there are, checked: fit to measure, with the same software as here.

        Raises `RequestError` naming the first that is not, or where there is no worker at all.
        """
        deadline = time.monotonic() + WORKERS_SECONDS
        while not (workers := self.alive()):
            if time.monotonic() > deadline:
                raise RequestError(
                    f"no workers at {self.address}: start some with 'dask worker {self.address}'"
                )
            time.sleep(0.1)
        return self.described(workers, list(allocators))

    def described(self, workers: Iterable[str], allocators: list[Allocator]) -> Hosts:
        """The hosts of these `workers`, checked as by `hosts`."""
        told = self._client.run(
            remote.describe,
            allocators,
            self._how["if_busy"],
            workers=list(workers),
            on_error="return",
        )
        hosts: Hosts = {}
        for worker, answer in sorted(told.items()):
            host = _understood(worker, answer)
            _require_able(host, allocators)
            hosts.setdefault(host.name, (host, worker))
        return hosts

    def submit(self, worker: str, doing: str, visit: Visit, limit_s: float) -> Any:
        """Have `worker` make `visit`; a future of `remote.Found`."""
        return self._client.submit(
            _by_value(),
            self._sweep,
            doing,
            visit.name,
            visit.parameters(),
            limit_s,
            self._how,
            key=f"scalebench-{visit.name}-{uuid.uuid4().hex}",
            workers=[worker],
            allow_other_workers=False,
            pure=False,
        )

    def end_all(self) -> None:
        """Kill what we have running anywhere, and have nothing more begun."""
        with suppress(Exception):  # the cluster may be what has failed
            self._client.run(remote.end, self._sweep, on_error="ignore")


def _by_value() -> Callable[..., remote.Found]:
    """`remote.visit`, shipped whole: the scheduler looks into it, and may know no scalebench."""

    def visit(*arguments: Any) -> remote.Found:
        from scalebench_lib.sweep import remote

        return remote.visit(*arguments)

    return visit


def _understood(worker: str, answer: object) -> Host:
    if isinstance(answer, ModuleNotFoundError):
        raise RequestError(f"worker {worker} lacks {answer.name}: install scalebench there")
    try:
        return Host.model_validate_json(str(answer) if isinstance(answer, str) else "")
    except ValidationError:
        raise RequestError(
            f"worker {worker} has another scalebench ({type(answer).__name__}: "
            f"{str(answer)[:80]!r}): install the same one there"
        ) from None


def _require_able(host: Host, allocators: list[Allocator]) -> None:
    """Raise `RequestError` where `host` cannot measure, or would by other software than here."""
    if host.trouble:
        raise RequestError(f"host {host.name}: {host.trouble}")
    here = Software.here()
    allocator = "default" if "default" in allocators else allocators[0]
    differs = here.differs_from(host.software, allocator)
    if here.scalebench != host.software.scalebench:
        differs = f"scalebench {here.scalebench} against {host.software.scalebench}"
    elif host.code != (mine := remote.code_digest()):
        differs = differs or f"scalebench's code {mine} against {host.code}"
    if differs:
        raise RequestError(
            f"host {host.name} has other software than this one ({differs}): make them the same"
        )
