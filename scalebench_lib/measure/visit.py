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
from scalebench_lib.measure import models, optimizations
from scalebench_lib.measure.pinning import Team, confine, pin_team
from scalebench_lib.measure.probe import PROBE_VERSION, Probe
from scalebench_lib.measure.roof import peak_gflops
from scalebench_lib.measure.timing import LONG_PASS_NS, Series, TimingLoop
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.record import Point, Record, Setup, Software
from scalebench_lib.verification import Verification

T = TypeVar("T")


@dataclass
class _Found:
    """What a visit has found so far: a failure keeps what came before it."""

    item: str | None = None
    verification: Verification | None = None
    setup: Setup | None = None
    flops: int | None = None
    peak_gflops: dict[int, dict[str, float]] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)


def measure(visit: Visit, machine: Machine) -> Record:
    """Measure `visit` in this process; a `MeasurementError` becomes a failed record."""
    started, found, reason = datetime.now(UTC), _Found(), None
    try:
        with _whole_machine_afterwards(machine), torch.inference_mode():
            _measure(visit, machine, found)
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
        points=tuple(found.points),
    )


def _measure(visit: Visit, machine: Machine, found: _Found) -> None:
    config, bench = visit.config, _Bench(visit, machine)
    bench.switch(max(visit.threads))
    build_s, model = _timed(lambda: models.build(config))
    found.item = str(model.kind)
    inputs = model.inputs(config.batch_size, config.seed)
    verifier = Verifier(model, inputs, seed=config.seed, thorough=visit.number == 1, any_batch=True)
    found.flops = verifier.flops
    apply = optimizations.APPLY[config.optimization]
    optimize_s, runner = _timed(lambda: apply(model.module, inputs))
    passes: list[tuple[float, tuple[torch.Tensor, ...]]] = []
    bench.team.check(lambda: passes.append(_timed(lambda: runner(*inputs))))
    first_pass_s, outputs = passes[0]
    found.setup = Setup(build_s=build_s, optimize_s=optimize_s, first_pass_s=first_pass_s)
    found.verification = verifier.check(runner, outputs)
    if visit.number == 1:  # later visits would tell the same of the machine
        found.peak_gflops = bench.roof()
    warm = first_pass_s * 1e9 >= LONG_PASS_NS
    found.points = bench.time(lambda: runner(*inputs), warm)
    verifier.recheck(runner)


class _Bench:
    """The threads of this process, as a visit places them."""

    def __init__(self, visit: Visit, machine: Machine) -> None:
        self.visit, self.machine = visit, machine
        self.teams: dict[int, Team] = {}
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)

    def switch(self, threads: int) -> None:
        """Compute with `threads` threads from now on, each on its own CPU."""
        config = self.visit.config
        cpus = self.machine.cpus_for(threads, config.smt, config.placement)
        self.team = self.teams[threads] = pin_team(cpus, self.machine.pinnable)

    def time(self, run: Callable[[], object], warm: bool) -> list[Point]:
        """Time `run` at each thread count of the visit; `warm` if it has had its warm-up."""
        loop = TimingLoop(
            run=run,
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
        team = self.teams[series.threads]
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
