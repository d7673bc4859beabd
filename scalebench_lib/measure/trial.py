"""Run one trial: build, optimize, verify and time a config, and return its `Record`."""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any, TypeVar

import psutil
import torch

from scalebench_lib import allocators, protocol
from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError, reason_of
from scalebench_lib.machine import Machine, stolen_ns, throttled_periods
from scalebench_lib.measure import generation, models, turns
from scalebench_lib.measure.optimizations.base import OptimizedModel, Outputs, Target
from scalebench_lib.measure.optimizations.export_cache import LOOKUPS, cache_state
from scalebench_lib.measure.peak import peak_gflops, read_gb_per_s
from scalebench_lib.measure.pinned_executor import PinnedExecutor
from scalebench_lib.measure.pinning import set_affinity, thread_times
from scalebench_lib.measure.profiling import operator_times
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.optimizations import OPTIMIZATIONS
from scalebench_lib.record import Point, Record, Setup, Software, model_files_digest

T = TypeVar("T")

ROTATION = 4
"""Timed passes rotate over this many batches of different seeds."""

_Found = dict[str, Any]
"""Fields of the `Record`, as they are found: a failure keeps what came before it."""


def measure(trial: Trial, machine: Machine, say: turns.Say = lambda doing, share: None) -> Record:
    """Measure `trial` in this process; a `MeasurementError` becomes a failed record.

    The runner that the environment names asks for turns; a trial without one is alone, and reports
    its progress to `say`. Raises `RequestError` if this process was started with another allocator,
    and `ConnectionEndedError` if the runner has ended.
    """
    allocators.require_loaded(trial.config.allocator)
    found: _Found = {"status": "ok", "started": datetime.now(UTC)}
    try:
        with _runner() as runner, _all_cpus_afterwards(machine), torch.inference_mode():
            _measure(trial, machine, found, runner, say)
        machine.require_unchanged()
    except MeasurementError as error:
        found |= {"status": "failed", "reason": str(error), "points": (), "ended_by": None}
    return Record.of(
        trial,
        machine=machine,
        kernel="warm" if os.environ.get("SCALEBENCH_KERNEL") == "warm" else "fresh",
        software=Software.here(_libraries()),
        governor_after=machine.new_governor(),
        **{"peak_memory_bytes": _peak_memory_bytes(), **found},
    )


@contextmanager
def _runner() -> Iterator[IO[str] | None]:
    """The connection to the sweep's runner; None for a trial alone."""
    path = os.environ.get(protocol.RUNNER_SOCKET)
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


def _measure(
    trial: Trial, machine: Machine, found: _Found, runner: IO[str] | None, say: turns.Say
) -> None:
    config = trial.config
    say("building, optimizing and verifying the model", None)
    executor = PinnedExecutor(
        trial.threads,
        lambda threads: machine.cpus_for(threads, config.smt, config.placement),
        machine.pinnable,
    )
    optimized, verifier, first_pass_s = _set_up(trial, executor, found)
    executor.keep_outputs = first_pass_s * 1e9 >= turns.SHORT_PASS_NS
    timer = turns.TurnTimer(
        executor.pass_once,
        executor.set_num_threads,
        trial.threads,
        usage=lambda: _usage(executor.team.cpus),
        check=lambda before, after: executor.team.require_alone(before.threads, after.threads),
        warm=first_pass_s * 1e9 >= turns.LONG_PASS_NS,
    )
    gc.collect()
    found["resident_bytes"] = psutil.Process().memory_info().rss
    with optimized.guarded():
        if runner is None:
            limits = trial.target_ci, trial.max_seconds
            found["ended_by"] = turns.take_alone(timer, *limits, trial.number, say)
        else:
            found["ended_by"] = _take_requested_turns(runner, timer, first_pass_s)
        executor.team.require_in_place()
        # Short passes keep no outputs, which would change their use of memory: compute one more.
        verifier.check(executor.runner, executor.first_outputs)
    found["points"] = tuple(_point(one, executor, machine, trial) for one in timer.points.values())
    found["peak_memory_bytes"] = _peak_memory_bytes()
    if trial.thorough:
        found |= _profiled(executor, min(found["points"], key=lambda point: point.median_ns))


def _profiled(executor: PinnedExecutor, best: Point) -> _Found:
    """Profile passes at the best thread count; where the profiler fails, the trial does not."""
    try:
        return {"operators": operator_times(executor, best.threads, best.median_ns / 1e9)}
    except Exception as error:  # engines raise whatever their parts raise
        return {"not_profiled": reason_of(error)}


def _set_up(
    trial: Trial, executor: PinnedExecutor, found: _Found
) -> tuple[OptimizedModel, Verifier, float]:
    """Build, optimize and verify the model; return also the seconds of its first pass."""
    config, optimization = trial.config, OPTIMIZATIONS[trial.config.optimization]
    executor.set_num_threads(max(trial.threads))
    build_s, model = _timed(lambda: models.build(config))
    found |= {"item": str(model.kind), "model_hash": models.digest(model)}
    found["model_files"] = model_files_digest(config)
    batches = [model.inputs(config.batch_size, config.seed + k) for k in range(ROTATION)]
    verifier = Verifier(
        model,
        batches[0],
        optimization.precision,
        seed=config.seed + ROTATION,
        thorough=trial.thorough,
        any_batch=optimization.any_batch,
    )
    if trial.thorough:  # later trials would find the same
        found |= {"flops": verifier.flops or None, **_limits(executor, config)}
    target, lookups = Target(model, batches[0], config), LOOKUPS.copy()
    optimize_s, optimized = _timed(
        lambda: executor.load(lambda: optimization.apply(target), batches)
    )
    found["engine"] = {"precision": optimization.precision, **optimized.engine}
    if config.phase == "decode":
        cache, precision = executor.first_batch[1:], optimization.precision
        found["bytes_to_read"] = generation.bytes_to_read(model.module, precision, cache)
    first_pass_s, outputs = _first_pass(executor)
    found["setup"] = Setup(
        build_s=build_s,
        optimize_s=optimize_s,
        first_pass_s=first_pass_s,
        ready_s=executor.ready_s,
        export_cache=cache_state(lookups),
    )
    found["verification"] = verifier.check(executor.runner, outputs)
    return optimized, verifier, first_pass_s


def _limits(executor: PinnedExecutor, config: Config) -> _Found:
    """Measure the machine's peaks by number of threads."""
    precision = OPTIMIZATIONS[config.optimization].precision
    found: _Found = {"peak_gflops": {}, "read_gb_per_s": {}}
    for threads in executor.threads:
        executor.set_num_threads(threads)
        found["peak_gflops"][threads] = peak_gflops(precision)
        if config.phase == "decode" and (rate := read_gb_per_s()):
            found["read_gb_per_s"][threads] = rate
    return found


def _first_pass(executor: PinnedExecutor) -> tuple[float, Outputs]:
    """Compute the first batch; return the seconds and the outputs of its first pass."""
    passes: list[tuple[float, Outputs]] = []
    run = partial(executor.runner, *executor.first_batch)
    executor.team.run_and_check(lambda: passes.append(_timed(run)))
    return passes[0]


def _take_requested_turns(
    runner: IO[str], timer: turns.TurnTimer, first_pass_s: float
) -> protocol.EndedBy:
    """Take the turns that the runner asks for, until it ends the trial; return why it did."""
    protocol.send(runner, protocol.Ready(first_pass_s=first_pass_s))
    while isinstance(message := protocol.receive(runner), protocol.TurnRequest):
        protocol.send(runner, timer.take_turn(message.cycle, message.threads, message.seconds))
    return message.end


def _usage(cpus: tuple[int, ...]) -> turns.CpuCounters:
    return turns.CpuCounters(
        time.process_time_ns(), thread_times(), throttled_periods(), stolen_ns(cpus)
    )


def _point(
    taken: turns.PointTurns, executor: PinnedExecutor, machine: Machine, trial: Trial
) -> Point:
    team = executor.teams[taken.threads]
    return Point(
        threads=taken.threads,
        cores=machine.cores_of(taken.threads, trial.config.smt, trial.config.placement),
        cpus=team.cpus,
        pinned=team.is_pinned,
        passes_per_sample=taken.passes_per_sample,
        warmup_ns=tuple(taken.warmup_ns),
        spent_s=taken.spent_ns / 1e9,
        turns=tuple(taken.turns),
    )


def _libraries() -> dict[str, str]:
    """Return the libraries that compute inside torch, as it names them, and that of malloc."""
    lines = [line.strip() for line in torch.__config__.parallel_info().splitlines()]
    found = {}
    for name, mark in {"blas": "Math Kernel", "dnn": "MKL-DNN", "openmp": "OpenMP 2"}.items():
        found[name] = next((line for line in lines if mark in line), "unknown")
    vector = torch.backends.cpu.get_cpu_capability()
    return {**found, "malloc": allocators.library_of_symbol("malloc"), "vector": vector}


@contextmanager
def _all_cpus_afterwards(machine: Machine) -> Iterator[None]:
    """Give the process its CPUs back: in JupyterLab its kernel goes on."""
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
