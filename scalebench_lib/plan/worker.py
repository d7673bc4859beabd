"""One instance of a plan: a process that computes batches on request.

Runs as ``python -m scalebench_lib.plan.worker FD``. The first JSON message on that pipe is its
`WorkerSpec`. It answers with ``{"ready": seconds}``, and from then on each ``{"start_ns": n}`` with
``{"ended_ns": n}`` on the clock that all processes share; a ``shape`` beside it, batch size and
tokens, chooses one of several. Between messages it sleeps. It ends with its parent, or the pipe.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, groupby
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from scalebench_lib.config import Config, StrictModel
from scalebench_lib.processes import die_with_parent

if TYPE_CHECKING:
    from scalebench_lib.measure.inputs import Inputs
    from scalebench_lib.measure.models import Model
    from scalebench_lib.measure.pinned_executor import PinnedExecutor

_AWAKE_NS = 300_000
"""A sleep ends up to this late; the rest of the wait is spent awake, on a CPU of one's own."""

_ROTATION = 4
"""Inputs that passes take in turn, as in a measurement."""

_WARMUP_S = 1.0
"""So long, and one pass at least, before an instance is ready."""


class WorkerSpec(StrictModel):
    """The config of the instance, its CPU numbers, one a thread, and the shapes it takes.

    Without `shapes` it takes that of the config alone; the config's tokens may be written as 0.
    """

    config: Config
    cpus: tuple[int, ...]
    pinnable: bool = True
    shapes: tuple[tuple[int, int], ...] = ()


def serve(pipe: Connection) -> None:
    """Load the model that the first message names, then compute at each start that is sent."""
    began = time.perf_counter()
    spec = WorkerSpec.model_validate_json(pipe.recv_bytes())
    if spec.pinnable:
        os.sched_setaffinity(0, spec.cpus)  # whatever the libraries start will inherit it
    import torch

    with torch.inference_mode():
        passes = _warm_model(spec)
        answer: dict[str, float] = {"ready": time.perf_counter() - began}
        while True:
            pipe.send_bytes(json.dumps(answer).encode())
            try:
                message = json.loads(pipe.recv_bytes())
            except EOFError:
                return
            start_ns = message["start_ns"]
            time.sleep(max(0.0, (start_ns - time.perf_counter_ns() - _AWAKE_NS) / 1e9))
            while time.perf_counter_ns() < start_ns:
                pass
            passes[tuple(message.get("shape", (spec.config.batch_size, 0)))]()
            answer = {"ended_ns": time.perf_counter_ns()}


def _warm_model(spec: WorkerSpec) -> dict[tuple[int, int], Callable[[], object]]:
    """Return by shape the optimized model, on its CPUs and warm: a call is a pass."""
    from scalebench_lib import allocators
    from scalebench_lib.measure import models
    from scalebench_lib.optimizations import OPTIMIZATIONS

    allocators.require_loaded(spec.config.allocator)
    shapes = sorted(set(spec.shapes) or {(spec.config.batch_size, 0)}, key=lambda s: (s[1], -s[0]))
    any_batch = OPTIMIZATIONS[spec.config.optimization].any_batch
    passes: dict[tuple[int, int], Callable[[], object]] = {}
    for tokens, alike in groupby(shapes, key=lambda shape: shape[1]):
        config = spec.config.model_copy(update={"seq_len": tokens or spec.config.seq_len})
        model, sizes = models.build(config), [size for size, _ in alike]
        for together in [sizes] if any_batch else [[size] for size in sizes]:
            found = _passes(spec, config, model, together)
            passes |= {(size, tokens): pass_once for size, pass_once in found.items()}
    for pass_once in passes.values():
        end = time.perf_counter() + _WARMUP_S / len(passes)
        while time.perf_counter() < end:
            pass_once()
    return passes


def _passes(
    spec: WorkerSpec, config: Config, model: Model, sizes: list[int]
) -> dict[int, Callable[[], object]]:
    """Return passes of `sizes`, the largest first, all by the model optimized for that."""
    from scalebench_lib.measure.optimizations.base import Target
    from scalebench_lib.measure.pinned_executor import PinnedExecutor
    from scalebench_lib.optimizations import OPTIMIZATIONS

    config = config.model_copy(update={"batch_size": sizes[0]})
    executor = PinnedExecutor((len(spec.cpus),), lambda _: spec.cpus, spec.pinnable)
    executor.set_num_threads(len(spec.cpus))
    seeds = [config.seed + k for k in range(_ROTATION)]
    batches = {size: [model.inputs(size, seed) for seed in seeds] for size in sizes}
    target = Target(model, batches[sizes[0]][0], config)
    apply = OPTIMIZATIONS[config.optimization].apply
    executor.load(lambda: apply(target), batches[sizes[0]])
    executor.team.run_and_check(executor.pass_once)
    turns = {size: cycle(some) for size, some in batches.items()}
    return {size: partial(_run_next, executor, turn) for size, turn in turns.items()}


def _run_next(executor: PinnedExecutor, batches: Iterator[Inputs]) -> None:
    executor.runner(*next(batches))


if __name__ == "__main__":
    die_with_parent()
    serve(Connection(int(sys.argv[1])))
