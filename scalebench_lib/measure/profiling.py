"""Profile a few passes after the timing, by torch's profiler or the engine's."""

from __future__ import annotations

import os
import time

from torch.autograd.profiler import profile

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.optimizations.base import Profile, Times
from scalebench_lib.measure.pinned_executor import PinnedExecutor
from scalebench_lib.operators import OperatorTimes

MIN_PASSES, MAX_PASSES, PROFILE_S = 5, 100, 0.5
"""Profile passes for about `PROFILE_S`: an interruption of a few would count too much."""
MAX_PROFILE_S = 10.0
"""Profile nothing that takes longer, with an engine's second start."""


def operator_times(executor: PinnedExecutor, threads: int, pass_s: float) -> OperatorTimes:
    """Profile passes, of about `pass_s` seconds each, at `threads` threads.

    Engines profile in another session, and free those that were timed. Raises `MeasurementError`
    where it would take too long, or where the profiler reports no times.
    """
    passes = max(MIN_PASSES, min(MAX_PASSES, round(PROFILE_S / pass_s)))
    engine = executor.optimized.profile if executor.optimized else None
    expected_s = (executor.open_s if engine else 0) + (1 + passes) * pass_s
    if expected_s > MAX_PROFILE_S:
        raise MeasurementError(f"it would take {expected_s:.0f} s, more than {MAX_PROFILE_S:.0f}")
    executor.set_num_threads(threads)
    profiled = executor.profile(engine, threads, passes) if engine else _by_torch(executor, passes)
    wall_ns, times = profiled
    if not times.total():
        raise MeasurementError("its engine tells no times of operators")
    self_ns = {name: round(ns) for name, ns in times.items() if ns > 0}
    return OperatorTimes(threads=threads, passes=passes, wall_ns=wall_ns, self_ns=self_ns)


def _by_torch(executor: PinnedExecutor, passes: int) -> Profile:
    """Profile the operators of torch, also those of compiled code."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it logs each start and stop
    executor.pass_once()
    with profile(use_kineto=False) as found:
        start = time.perf_counter_ns()
        for _ in range(passes):
            executor.pass_once()
        wall_ns = time.perf_counter_ns() - start
    times = Times()
    for event in found.function_events or ():
        # A copy counts for the operator that called it: a conversion, or a product.
        caller = event.cpu_parent if event.name == "aten::copy_" else None
        name = "CompiledFxGraph" if "CompiledFxGraph" in event.name else (caller or event).name
        times[name] += 1e3 * event.self_cpu_time_total
    return wall_ns, times
