"""One visit: build, optimize, verify and time a config, and say what was found in a `Record`."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import torch

from scalebench_lib.config import Visit
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure import allocator, models, optimizations
from scalebench_lib.measure.bench import Bench
from scalebench_lib.measure.optimizations import Subject
from scalebench_lib.measure.pinning import Team, confine
from scalebench_lib.measure.probe import PROBE_VERSION, Probe
from scalebench_lib.measure.timing import LONG_PASS_NS, Series, TimingLoop
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.record import Point, Record, Setup, Software
from scalebench_lib.verification import Verification

T = TypeVar("T")

ROTATION = 4
"""Batches of different seeds that timed passes take in turn."""


@dataclass
class _Found:
    """What a visit has found so far: a failure keeps what came before it."""

    item: str | None = None
    verification: Verification | None = None
    setup: Setup | None = None
    flops: int | None = None
    engine: dict[str, str] = field(default_factory=dict)
    peak_gflops: dict[int, dict[str, float]] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)


def measure(visit: Visit, machine: Machine) -> Record:
    """Measure `visit` in this process; a `MeasurementError` becomes a failed record.

    Raises `RequestError` where this process was started with another allocator.
    """
    allocator.require_loaded(visit.config.allocator)
    started, found, reason = datetime.now(UTC), _Found(), None
    try:
        with _whole_machine_afterwards(machine), torch.inference_mode():
            _measure(visit, machine, found)
        machine.require_unchanged()
    except MeasurementError as error:
        reason, found.points = str(error), []
    return Record(
        config=visit.config,
        config_id=visit.config.id,
        visit=visit.number,
        status="failed" if reason else "ok",
        reason=reason,
        started=started,
        finished=datetime.now(UTC),
        machine=machine,
        kernel="warm" if os.environ.get("SCALEBENCH_KERNEL") == "warm" else "fresh",
        software=Software.here(_libraries()),
        item=found.item,
        verification=found.verification,
        setup=found.setup,
        peak_memory_bytes=_peak_memory_bytes(),
        flops=found.flops,
        probe_version=PROBE_VERSION,
        peak_gflops=found.peak_gflops,
        engine=found.engine,
        points=tuple(found.points),
    )


def _measure(visit: Visit, machine: Machine, found: _Found) -> None:
    config = visit.config
    bench = Bench(
        visit.threads,
        lambda threads: machine.cpus_for(threads, config.smt, config.placement),
        machine.pinnable,
    )
    optimization = optimizations.REGISTRY[config.optimization]
    bench.switch(max(visit.threads))
    build_s, model = _timed(lambda: models.build(config))
    found.item = str(model.kind)
    batches = [model.inputs(config.batch_size, config.seed + k) for k in range(ROTATION)]
    verifier = Verifier(
        model,
        batches[0],
        optimization.precision,
        seed=config.seed + ROTATION,
        thorough=visit.thorough,
        any_batch=optimization.any_batch,
    )
    if visit.thorough:  # other visits would tell the same
        found.flops, found.peak_gflops = verifier.flops, bench.roof()
    subject = Subject(model, batches[0], config)
    optimize_s, optimized = _timed(lambda: bench.take(lambda: optimization.apply(subject), batches))
    found.engine = {"precision": optimization.precision, **optimized.engine}
    passes: list[tuple[float, tuple[torch.Tensor, ...]]] = []
    bench.check(lambda: passes.append(_timed(lambda: bench.runner(*batches[0]))))
    first_pass_s, outputs = passes[0]
    found.setup = Setup(build_s=build_s, optimize_s=optimize_s, first_pass_s=first_pass_s)
    found.verification = verifier.check(bench.runner, outputs)
    with optimized.watched():
        series = _time(bench, visit, warm=first_pass_s * 1e9 >= LONG_PASS_NS)
        bench.require_in_place()
        verifier.recheck(bench.runner)
    found.points = [
        _point(one, bench.team_of(one.threads), machine.cores_of(one.threads, config.smt))
        for one in series
    ]


def _time(bench: Bench, visit: Visit, warm: bool) -> list[Series]:
    """Time passes at each thread count of the visit; `warm` if there was a warm-up."""
    return TimingLoop(
        run=bench.pass_once,
        probe=Probe(),
        warm=warm,
        switch=bench.switch,
        threads=visit.threads,
        target_ci=visit.target_ci,
        max_seconds=visit.max_seconds,
        seed=visit.number,
    ).measure()


def _point(series: Series, team: Team, cores: float) -> Point:
    return Point(
        threads=series.threads,
        cores=cores,
        cpus=team.cpus,
        pinned=team.pinned,
        samples_ns=tuple(series.samples_ns),
        started_ns=tuple(series.started_ns),
        probe_before_ns=tuple(series.probe_before_ns),
        probe_after_ns=tuple(series.probe_after_ns),
        passes_per_sample=series.passes_per_sample,
        cpu_ns=series.cpu_ns,
        warmup_ns=tuple(series.warmup_ns),
        spent_s=series.spent_ns / 1e9,
        stopped_by=series.stopped_by,
    )


def _libraries() -> dict[str, str]:
    """What computes inside torch, as torch tells it."""
    told = [line.strip() for line in torch.__config__.parallel_info().splitlines()]
    marks = {"blas": "Math Kernel", "dnn": "MKL-DNN", "openmp": "OpenMP 2"}
    found = {name: [line for line in told if mark in line] for name, mark in marks.items()}
    return {
        **{name: lines[0] if lines else "unknown" for name, lines in found.items()},
        "malloc": allocator.library_of("malloc"),
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
            confine(cpu for core in machine.cores for cpu in core.cpus)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
