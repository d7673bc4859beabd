"""One visit: build, optimize, verify and time a config, and say what was found in a `Record`."""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import torch

from scalebench_lib.config import Visit
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure import allocator, models, optimizations
from scalebench_lib.measure.models import Inputs
from scalebench_lib.measure.optimizations import Optimized, Runner, Subject
from scalebench_lib.measure.pinning import Team, confine, pin_engine, pin_team
from scalebench_lib.measure.probe import PROBE_VERSION, Probe
from scalebench_lib.measure.roof import peak_gflops
from scalebench_lib.measure.timing import LONG_PASS_NS, Series, TimingLoop
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.record import Point, Record, Setup, Software, Verification

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
    config, bench = visit.config, _Bench(visit, machine)
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
        points = bench.time(warm=first_pass_s * 1e9 >= LONG_PASS_NS)
        verifier.recheck(bench.runner)
    found.points = points


class _Bench:
    """The threads of this process, as a visit places them, and what they run."""

    runner: Runner
    optimized = Optimized()

    def __init__(self, visit: Visit, machine: Machine) -> None:
        self.visit, self.machine = visit, machine
        self.teams: dict[int, Team] = {}
        self.engines: dict[int, Team] = {}
        self.runners: dict[int, Runner] = {}
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)

    def switch(self, threads: int) -> None:
        """Compute with `threads` threads from now on, each on its own CPU."""
        config = self.visit.config
        cpus = self.machine.cpus_for(threads, config.smt, config.placement)
        self.team = self.teams[threads] = pin_team(cpus, self.machine.pinnable)
        if self.optimized.per_thread_count and threads not in self.runners:
            with self._roaming(cpus):
                self.runners[threads] = self.optimized.runner(threads)
        if threads in self.runners:
            self.runner = self.runners[threads]
        if self.optimized.own_threads:
            self._pin_engine(threads, cpus)

    def _pin_engine(self, threads: int, cpus: tuple[int, ...]) -> None:
        """An engine's threads are found once; torch's, for the probe, are pinned beside them."""
        if threads not in self.engines:
            self.pass_once()
            self.engines[threads] = pin_engine(cpus, self.machine.pinnable, self.pass_once)
        self.team.pin()
        self.engines[threads].pin()

    @contextmanager
    def _roaming(self, cpus: tuple[int, ...]) -> Iterator[None]:
        """Let this thread use all of `cpus` for a while: compilers and engines look at that."""
        if self.machine.pinnable:
            os.sched_setaffinity(0, cpus)
        yield
        self.team.pin()

    def take(self, make: Callable[[], Optimized], batches: Sequence[Inputs]) -> Optimized:
        """Run what `make` makes on `batches` in turn from now on, ready at each thread count."""
        with self._roaming(self.team.cpus):
            optimized = make()
        self.optimized, self.batches = optimized, itertools.cycle(batches)
        if optimized.per_thread_count:
            for threads in sorted(self.visit.threads, reverse=True):
                self.switch(threads)  # the most first: engines look at their CPUs only once
            self.switch(max(self.visit.threads))
        else:
            self.runner = optimized.runner(max(self.visit.threads))
        return optimized

    def pass_once(self) -> None:
        """One pass, over the next batch."""
        self.runner(*next(self.batches))

    def check(self, run: Callable[[], object]) -> None:
        """Call `run`; `MeasurementError` unless the threads that were pinned alone compute it."""
        (self.engines or self.teams)[max(self.visit.threads)].check(run)

    def time(self, warm: bool) -> list[Point]:
        """Time passes at each thread count of the visit; `warm` if there was a warm-up."""
        loop = TimingLoop(
            run=self.pass_once,
            probe=Probe(),
            warm=warm,
            switch=self.switch,
            threads=self.visit.threads,
            target_ci=self.visit.target_ci,
            max_seconds=self.visit.max_seconds,
            seed=self.visit.number,
        )
        return [self._point(series) for series in loop.measure()]

    def roof(self) -> dict[int, dict[str, float]]:
        """The machine's own peak at each thread count of the visit."""
        peaks = {}
        for threads in self.visit.threads:
            self.switch(threads)
            peaks[threads] = peak_gflops()
        return peaks

    def _point(self, series: Series) -> Point:
        team = (self.engines or self.teams)[series.threads]
        return Point(
            threads=series.threads,
            cores=self.machine.cores_of(series.threads, self.visit.config.smt),
            cpus=team.cpus,
            pinned=team.pinned,
            samples_ns=tuple(series.samples_ns),
            started_ns=tuple(series.started_ns),
            probe_before_ns=tuple(series.probe_before_ns),
            probe_after_ns=tuple(series.probe_after_ns),
            passes_per_sample=series.passes_per_sample,
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
