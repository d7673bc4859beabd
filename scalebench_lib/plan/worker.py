"""One instance of a plan: a process that computes when it is told to.

Runs as ``python -m scalebench_lib.plan.worker FD``. The first JSON message on that pipe is its
`WorkerSpec`. It answers with ``{"ready": seconds}``, and from then on each ``{"start_ns": n}`` with
``{"ended_ns": n}`` on the clock that all processes share. Between messages it sleeps. It ends
with its parent, or with the pipe.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from scalebench_lib.config import Config, StrictModel
from scalebench_lib.processes import die_with_parent

_AWAKE_NS = 300_000
"""A sleep ends up to this late; the rest of the wait is spent awake, on a CPU of one's own."""

_ROTATION = 4
"""Inputs that passes take in turn, as in a measurement."""

_WARMUP_S = 1.0
"""So long, and one pass at least, before an instance is ready."""


class WorkerSpec(StrictModel):
    """What the process is: a copy of the model of `config`, and its CPUs, one a thread."""

    config: Config
    cpus: tuple[int, ...]
    pinnable: bool = True


def main(pipe: Connection) -> None:
    """Become what the first message says, then compute at each start that is sent."""
    start = time.perf_counter()
    role = WorkerSpec.model_validate(_receive(pipe))
    if role.pinnable:
        os.sched_setaffinity(0, role.cpus)  # whatever the libraries start will inherit it
    with suppress(EOFError):
        _serve(pipe, role, start)


def _serve(pipe: Connection, role: WorkerSpec, start: float) -> None:
    import torch

    with torch.inference_mode():
        work = _model(role, role.config)
        _send(pipe, ready=time.perf_counter() - start)
        while True:
            _wait_until(_receive(pipe)["start_ns"])
            work()
            _send(pipe, ended_ns=time.perf_counter_ns())


def _model(role: WorkerSpec, config: Config) -> Callable[[], object]:
    """The optimized model on its CPUs, warm."""
    from scalebench_lib import allocators
    from scalebench_lib.measure import models, optimizations
    from scalebench_lib.measure.executor import Executor
    from scalebench_lib.measure.optimizations.base import Target

    allocators.require_loaded(config.allocator)
    threads = len(role.cpus)
    executor = Executor((threads,), lambda _: role.cpus, role.pinnable)
    executor.switch(threads)
    model = models.build(config)
    batches = [model.inputs(config.batch_size, config.seed + k) for k in range(_ROTATION)]
    subject = Target(model, batches[0], config)
    apply = optimizations.REGISTRY[config.optimization].apply
    executor.load(lambda: apply(subject), batches)
    executor.check(executor.pass_once)
    _warm_up(executor.pass_once)
    return executor.pass_once


def _warm_up(run: Callable[[], object]) -> None:
    end = time.perf_counter() + _WARMUP_S
    while time.perf_counter() < end:
        run()


def _wait_until(start_ns: int) -> None:
    time.sleep(max(0.0, (start_ns - time.perf_counter_ns() - _AWAKE_NS) / 1e9))
    while time.perf_counter_ns() < start_ns:
        pass


def _receive(pipe: Connection) -> Any:
    return json.loads(pipe.recv_bytes())


def _send(pipe: Connection, **message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def run(arguments: Sequence[str]) -> None:
    """Serve on the pipe whose file descriptor is the only argument."""
    die_with_parent()
    main(Connection(int(arguments[0])))


if __name__ == "__main__":
    run(sys.argv[1:])
