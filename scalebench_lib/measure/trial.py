"""One trial: build, optimize, verify and time a config, and say what was found in a `Record`."""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TypeVar

import psutil
import torch

from scalebench_lib import allocators, protocol
from scalebench_lib.config import Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine, stolen_ns, throttled_periods
from scalebench_lib.measure import models, optimizations
from scalebench_lib.measure.executor import Executor
from scalebench_lib.measure.optimizations.base import OptimizedModel, Target
from scalebench_lib.measure.pinning import ThreadTeam, set_affinity, thread_times
from scalebench_lib.measure.turns import LONG_PASS_NS, PointTurns, TurnTaker, Usage, take_alone
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.protocol import EndedBy
from scalebench_lib.record import Point, Record, Setup, Software, Verification

T = TypeVar("T")

ROTATION = 4
"""Batches of different seeds that timed passes take in turn."""


@dataclass
class _Found:
    """What a trial has found so far: a failure keeps what came before it."""

    item: str | None = None
    model_hash: str | None = None
    verification: Verification | None = None
    setup: Setup | None = None
    resident_bytes: int | None = None
    flops: int | None = None
    engine: dict[str, str] = field(default_factory=dict)
    peak_gflops: dict[int, dict[str, float]] = field(default_factory=dict)
    ended_by: EndedBy | None = None
    points: list[Point] = field(default_factory=list)


def measure(trial: Trial, machine: Machine) -> Record:
    """Measure `trial` in this process; a `MeasurementError` becomes a failed record.

    Its turns come from the runner that the environment names; without one it is alone. Raises
    `RequestError` where this process was started with another allocator, and
    `ConnectionEndedError` where its runner is gone.
    """
    allocators.require_loaded(trial.config.allocator)
    started, found, reason = datetime.now(UTC), _Found(), None
    try:
        with _runner() as runner, _whole_machine_afterwards(machine), torch.inference_mode():
            _measure(trial, machine, found, runner)
        machine.require_unchanged()
    except MeasurementError as error:
        reason, found.points = str(error), []
    return Record(
        config=trial.config,
        config_id=trial.config.id,
        trial=trial.number,
        round=trial.round,
        block=trial.block or None,
        status="failed" if reason else "ok",
        reason=reason,
        ended_by=None if reason else found.ended_by,
        started=started,
        finished=datetime.now(UTC),
        machine=machine,
        kernel="warm" if os.environ.get("SCALEBENCH_KERNEL") == "warm" else "fresh",
        software=Software.here(_libraries()),
        item=found.item,
        model_hash=found.model_hash,
        verification=found.verification,
        setup=found.setup,
        peak_memory_bytes=_peak_memory_bytes(),
        resident_bytes=found.resident_bytes,
        governor_after=machine.new_governor(),
        flops=found.flops,
        peak_gflops=found.peak_gflops,
        engine=found.engine,
        points=tuple(found.points),
    )


@contextmanager
def _runner() -> Iterator[IO[str] | None]:
    """The connection to the runner; None for a trial alone."""
    path = os.environ.get(protocol.RUNNER)
    if not path:
        yield None
        return
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise protocol.ConnectionEndedError(f"the runner is gone: {error}") from None
        with connection.makefile("rw") as stream:
            yield stream


def _measure(trial: Trial, machine: Machine, found: _Found, runner: IO[str] | None) -> None:
    config = trial.config
    executor = Executor(
        trial.threads,
        lambda threads: machine.cpus_for(threads, config.smt, config.placement),
        machine.pinnable,
    )
    verifier, optimized = _set_up(trial, executor, found)
    gc.collect()  # and no more until the end
    found.resident_bytes = psutil.Process().memory_info().rss
    assert found.setup is not None  # noqa: S101 - it has just been set up
    taker = TurnTaker(
        executor.pass_once,
        executor.switch,
        trial.threads,
        usage=lambda: _usage(executor.team.cpus),
        check=lambda before, after: executor.require_alone(before.threads, after.threads),
        warm=found.setup.first_pass_s * 1e9 >= LONG_PASS_NS,
    )
    with optimized.guarded():
        found.ended_by = _take_turns(trial, taker, runner, found.setup.first_pass_s)
        executor.require_in_place()
        verifier.recheck(executor.runner)
    found.points = [
        _point(one, executor.team_of(one.threads), machine.cores_of(one.threads, config.smt))
        for one in taker.points.values()
    ]


def _set_up(trial: Trial, executor: Executor, found: _Found) -> tuple[Verifier, OptimizedModel]:
    """Build, optimize and verify the model of `trial`; `executor` then runs it."""
    config, optimization = trial.config, optimizations.REGISTRY[trial.config.optimization]
    executor.switch(max(trial.threads))
    build_s, model = _timed(lambda: models.build(config))
    found.item, found.model_hash = str(model.kind), models.digest(model)
    batches = [model.inputs(config.batch_size, config.seed + k) for k in range(ROTATION)]
    verifier = Verifier(
        model,
        batches[0],
        optimization.precision,
        seed=config.seed + ROTATION,
        thorough=trial.thorough,
        any_batch=optimization.any_batch,
    )
    if trial.thorough:  # other trials would tell the same
        found.flops, found.peak_gflops = verifier.flops, executor.roof(optimization.precision)
    subject = Target(model, batches[0], config)
    optimize_s, optimized = _timed(
        lambda: executor.load(lambda: optimization.apply(subject), batches)
    )
    found.engine = {"precision": optimization.precision, **optimized.engine}
    passes: list[tuple[float, tuple[torch.Tensor, ...]]] = []
    executor.check(lambda: passes.append(_timed(lambda: executor.runner(*batches[0]))))
    first_pass_s, outputs = passes[0]
    found.setup = Setup(build_s=build_s, optimize_s=optimize_s, first_pass_s=first_pass_s)
    found.verification = verifier.check(executor.runner, outputs)
    return verifier, optimized


def _take_turns(
    trial: Trial, taker: TurnTaker, runner: IO[str] | None, first_pass_s: float
) -> EndedBy:
    if runner is None:
        return take_alone(taker, trial.target_ci, trial.max_seconds, trial.number)
    return _take_told(taker, runner, first_pass_s)


def _take_told(taker: TurnTaker, runner: IO[str], first_pass_s: float) -> EndedBy:
    """Say that the trial is ready, and take the turns that the runner asks for, until it ends."""
    protocol.send(runner, protocol.Ready(ready=tuple(taker.threads), first_pass_s=first_pass_s))
    while True:
        told = protocol.receive(runner)
        if isinstance(told, protocol.End):
            return told.end
        protocol.send(runner, taker.take(told.cycle, told.threads, told.seconds))


def _usage(cpus: Sequence[int]) -> Usage:
    return Usage(time.process_time_ns(), thread_times(), throttled_periods(), stolen_ns(cpus))


def _point(taken: PointTurns, team: ThreadTeam, cores: float) -> Point:
    return Point(
        threads=taken.threads,
        cores=cores,
        cpus=team.cpus,
        pinned=team.pinned,
        passes_per_sample=taken.passes_per_sample,
        warmup_ns=tuple(taken.warmup_ns),
        spent_s=taken.spent_ns / 1e9,
        turns=tuple(taken.turns),
    )


def _libraries() -> dict[str, str]:
    """What computes inside torch, as torch tells it."""
    told = [line.strip() for line in torch.__config__.parallel_info().splitlines()]
    marks = {"blas": "Math Kernel", "dnn": "MKL-DNN", "openmp": "OpenMP 2"}
    found = {name: [line for line in told if mark in line] for name, mark in marks.items()}
    return {
        **{name: lines[0] if lines else "unknown" for name, lines in found.items()},
        "malloc": allocators.library_of("malloc"),
        "vector": torch.backends.cpu.get_cpu_capability(),
    }


@contextmanager
def _whole_machine_afterwards(machine: Machine) -> Iterator[None]:
    """Give the process its CPUs back: in JupyterLab its kernel lives on."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if machine.pinnable:
            set_affinity(cpu for core in machine.cores for cpu in core.cpus)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
