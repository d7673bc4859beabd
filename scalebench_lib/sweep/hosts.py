"""The hosts of a dask cluster: who they are, and whether a sweep may have them measure.

On the wire dask speaks pickle: use it on networks that you trust, or with ``tls://``.
"""

from __future__ import annotations

import importlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.record import Software
from scalebench_lib.sweep import remote
from scalebench_lib.sweep.remote import Host, Order

CONNECT_S = 10.0
"""How long the scheduler may take to answer, and then the first worker to turn up."""


class Cluster:
    """A connection to the scheduler at `address`, by a `client` of dask's.

    Every question raises `ScalebenchError` where nobody answers any more.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address

    def workers(self) -> set[str]:
        """The addresses of the workers that are there now."""
        with self._answering():
            return set(self._client.nthreads())

    def hosts(self, workers: Iterable[str]) -> dict[str, Host]:
        """The hosts of `workers`, by these addresses, in the order of their names.

        Raises `RequestError` where one has not the software that is here.
        """
        asked = {"workers": sorted(workers), "on_error": "return"}
        with self._answering():
            told = self._client.run(remote.describe, **asked)
        hosts = {worker: _checked(worker, answer) for worker, answer in told.items()}
        return dict(sorted(hosts.items(), key=lambda item: item[1].name))

    def all_hosts(self) -> dict[str, Host]:
        """The hosts of all workers there are, as `hosts`; `RequestError` where there is none."""
        deadline = time.monotonic() + CONNECT_S
        while not (workers := self.workers()):
            if time.monotonic() > deadline:
                raise RequestError(
                    f"scheduler: no workers at {self._address}: start some with "
                    f"'dask worker {self._address} --nthreads 1'"
                )
            time.sleep(0.1)
        return self.hosts(workers)

    def measure(self, worker: str, order: Order) -> Any:
        """Have `worker` measure a block; returns a future of what it has found, in JSON."""
        asked = {"key": f"scalebench-{uuid.uuid4().hex}", "workers": [worker], "pure": False}
        with self._answering():
            return self._client.submit(_by_value(), order.model_dump_json(), **asked)

    def end(self, run: str) -> None:
        """Have the blocks of `run` (an id) end with the cycle in flight, wherever they are."""
        with suppress(Exception):  # the cluster may be what has failed
            self._client.run(remote.end, run, on_error="ignore")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise ScalebenchError(
                f"stopped: the scheduler at {self._address} no longer answers ({why(error)}); "
                "what is done is kept, and the same command goes on"
            ) from None


@contextmanager
def cluster_at(address: str) -> Iterator[Cluster]:
    """Connect to the scheduler at `address`; `RequestError` where that cannot be."""
    try:
        distributed = importlib.import_module("distributed")
    except ModuleNotFoundError:
        raise RequestError(
            "scheduler: needs dask.distributed: pip install 'scalebench[cluster]'"
        ) from None
    for name in ("distributed", "distributed.client", "tornado"):  # we say it in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise RequestError(f"scheduler: none at {address!r} ({why(error)})") from None
    try:
        yield Cluster(client, address)
    finally:
        with suppress(Exception):  # nothing of ours depends on it
            client.close(timeout=2)


def why(error: BaseException) -> str:
    """The first line of `error`, or what it is."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _by_value() -> Callable[[str], str]:
    """`measure_block`, shipped whole: the scheduler unpacks it, and may know no scalebench."""

    def block(order: str) -> str:
        from scalebench_lib.sweep.remote import measure_block

        return measure_block(order)

    return block


def _checked(worker: str, answer: object) -> Host:
    """The host that answers so; `RequestError` where it has not the software that is here."""
    if isinstance(answer, ModuleNotFoundError):
        raise RequestError(f"worker {worker} lacks {answer.name}: install this checkout there")
    try:
        host = Host.model_validate_json(answer if isinstance(answer, str) else "")
    except ValidationError:
        raise RequestError(
            f"worker {worker} has another scalebench ({answer!r:.80}): install this checkout there"
        ) from None
    differs = Software.here().differs_from(host.software)
    if not differs and host.code != (here := remote.code_digest()):
        differs = f"scalebench's code {here} against {host.code}"
    if differs:
        raise RequestError(
            f"host {host.name} has other software than this one ({differs}): make them the same"
        )
    return host


def require_distinct(hosts: Mapping[str, Host], if_busy: str) -> None:
    """Raise `RequestError` where two workers (`hosts` by address) would disturb each other."""
    for (worker, one), (second, other) in combinations(hosts.items(), 2):
        identity = one.machine.identity if if_busy != "beside" else None
        if one.name == other.name or (identity and identity == other.machine.identity):
            raise RequestError(
                f"host {one.name} has two workers, {worker} and {second}, which would disturb "
                "each other: start one a host"
            )


def require_alike(hosts: Sequence[Host]) -> None:
    """Raise `RequestError` where one of `hosts` cannot stand in for the first."""
    for other in hosts[1:]:
        if differs := hosts[0].machine.differs_from(other.machine):
            raise RequestError(
                f"any_host: {hosts[0].name} and {other.name} differ in {differs}, and only hosts "
                "that are alike can stand in for each other: leave '--any-host' out"
            )
