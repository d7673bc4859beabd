"""One instance of a plan: a process that computes batches on request.

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
from collections.abc import Callable
from multiprocessing.connection import Connection

from scalebench_lib.config import Config, StrictModel
from scalebench_lib.processes import die_with_parent

_AWAKE_NS = 300_000
"""A sleep ends up to this late; the rest of the wait is spent awake, on a CPU of one's own."""

_ROTATION = 4
"""Inputs that passes take in turn, as in a measurement."""

_WARMUP_S = 1.0
"""So long, and one pass at least, before an instance is ready."""


class WorkerSpec(StrictModel):
    """The config of the instance, and its CPU numbers, one a thread."""

    config: Config
    cpus: tuple[int, ...]
    pinnable: bool = True


def serve(pipe: Connection) -> None:
    """Load the model that the first message names, then compute at each start that is sent."""
    began = time.perf_counter()
    spec = WorkerSpec.model_validate_json(pipe.recv_bytes())
    if spec.pinnable:
        os.sched_setaffinity(0, spec.cpus)  # whatever the libraries start will inherit it
    import torch

    with torch.inference_mode():
        pass_once = _warm_model(spec)
        answer: dict[str, float] = {"ready": time.perf_counter() - began}
        while True:
            pipe.send_bytes(json.dumps(answer).encode())
            try:
                start_ns = json.loads(pipe.recv_bytes())["start_ns"]
            except EOFError:
                return
            time.sleep(max(0.0, (start_ns - time.perf_counter_ns() - _AWAKE_NS) / 1e9))
            while time.perf_counter_ns() < start_ns:
                pass
            pass_once()
            answer = {"ended_ns": time.perf_counter_ns()}


def _warm_model(spec: WorkerSpec) -> Callable[[], object]:
    """Return the optimized model, on its CPUs and warm: a call is a pass."""
    from scalebench_lib import allocators
    from scalebench_lib.measure import models
    from scalebench_lib.measure.executor import Executor
    from scalebench_lib.measure.optimizations.base import Target
    from scalebench_lib.optimizations import OPTIMIZATIONS

    config, threads = spec.config, len(spec.cpus)
    allocators.require_loaded(config.allocator)
    executor = Executor((threads,), lambda _: spec.cpus, spec.pinnable)
    executor.set_num_threads(threads)
    model = models.build(config)
    batches = [model.inputs(config.batch_size, config.seed + k) for k in range(_ROTATION)]
    target = Target(model, batches[0], config)
    apply = OPTIMIZATIONS[config.optimization].apply
    executor.load(lambda: apply(target), batches)
    executor.team.run_and_check(executor.pass_once)
    end = time.perf_counter() + _WARMUP_S
    while time.perf_counter() < end:
        executor.pass_once()
    return executor.pass_once


if __name__ == "__main__":
    die_with_parent()
    serve(Connection(int(sys.argv[1])))
