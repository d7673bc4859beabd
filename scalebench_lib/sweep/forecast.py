"""How long a sweep will take, and whether a batch will fit in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import psutil

from scalebench_lib.config import Config, Visit
from scalebench_lib.estimate import MIN_LONG_SAMPLES
from scalebench_lib.record import Record
from scalebench_lib.sweep.fate import KILLED, OUT_OF_MEMORY

VISIT_OVERHEAD_S = 2.5
"""A warm kernel, building the model, its warm-up: seconds a visit."""

OPTIMIZING_S = {
    "script": 1.0,
    "compile": 20.0,
    "onnxruntime": 4.0,
    "onnxruntime-int8": 3.0,
    "openvino": 6.0,
    "openvino-bf16": 5.0,
}
"""Tracing, compiling, converting: seconds a visit, until the config's latest visit tells."""

FIRST_PASSES = 2
"""Passes before the first sample: the first one, and a warm-up."""

FLOPS_PER_TOKEN = {"bert": 170e6, "bert-tiny": 0.8e6, "distilbert": 85e6, "gpt2": 170e6}
"""Before anything is measured, a model's arithmetic says roughly how long a pass takes."""

FLOPS_PER_PIXEL = {"resnet50": 8.2e9 / 224**2}

EFFICIENCY = 0.5
"""Share of a large matrix product's speed that a whole model reaches, roughly."""

SETUP_LIMIT_S = 600.0
SLOWER_THAN_EXPECTED = 20
"""A visit hangs when it has had time to compile or download, and this many times its forecast."""

MEMORY_MARGIN = 0.95
"""Share of the memory that a batch may be expected to fill."""


class Forecast:
    """Predicts seconds of visits from what `records` measured, else from this machine's speed."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._per_flop: dict[tuple[str, bool, int], float] = {}
        self._optimizing: dict[str, float] = {}
        self._speed: float | None = None
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        """Take the passes of `record` into account from now on."""
        for point in record.points:
            key = (record.config.optimization, record.config.smt, point.threads)
            self._per_flop[key] = point.statistics.median / 1e9 / _work(record.config)
        if record.setup and record.points:
            passes = FIRST_PASSES * min(one.statistics.median for one in record.points) / 1e9
            self._optimizing[record.config_id] = max(0.0, record.setup.seconds - passes)

    def pass_seconds(self, config: Config, threads: int) -> float:
        """Seconds of one pass of the whole batch."""
        known = self._per_flop.get((config.optimization, config.smt, threads))
        return _work(config) * known if known else self._guess(config, threads)

    def visit_seconds(self, visit: Visit) -> float:
        """Seconds of a whole visit at most: points may stop earlier, at their ``target_ci``."""
        first = min(self.pass_seconds(visit.config, threads) for threads in visit.threads)
        guess = OPTIMIZING_S.get(visit.config.optimization, 0.0)
        optimizing = self._optimizing.get(visit.config.id, guess)
        return VISIT_OVERHEAD_S + optimizing + FIRST_PASSES * first + sum(self._points(visit))

    def visit_limit(self, visit: Visit) -> float:
        """Seconds after which a visit is sure to hang: never too few for honest work."""
        return SETUP_LIMIT_S + SLOWER_THAN_EXPECTED * self.visit_seconds(visit)

    def _points(self, visit: Visit) -> list[float]:
        passes = [self.pass_seconds(visit.config, threads) for threads in visit.threads]
        return [max(visit.max_seconds, MIN_LONG_SAMPLES * one) for one in passes]

    def seconds(self, visits: Iterable[Visit], rounds: int) -> float:
        """Seconds of `visits` and those of the rounds that follow, at most."""
        return sum(self._all_rounds(visit, rounds) for visit in visits)

    def _all_rounds(self, visit: Visit, rounds: int) -> float:
        """A config whose passes outlast its share of the time is visited fewer times."""
        rounds_left = rounds - visit.number + 1
        points = self._points(visit)
        share = rounds_left * visit.max_seconds * len(points) / sum(points)
        return self.visit_seconds(visit) * max(1.0, share)

    def _guess(self, config: Config, threads: int) -> float:
        if self._speed is None:
            self._speed = _matrix_speed() / (psutil.cpu_count() or 1)
        return _work(config) / (EFFICIENCY * self._speed * threads)


def _work(config: Config) -> float:
    """Floating-point operations of one pass, roughly."""
    if per_pixel := FLOPS_PER_PIXEL.get(config.model):
        return per_pixel * config.image_size**2 * config.batch_size
    flops = FLOPS_PER_TOKEN.get(config.model, FLOPS_PER_TOKEN["bert"])
    return flops * config.seq_len * config.batch_size


def _matrix_speed(size: int = 1024) -> float:
    """FLOP/s of an fp32 matrix product on all CPUs."""
    left = np.ones((size, size), dtype=np.float32)
    _ = left @ left
    start = time.perf_counter()
    _ = left @ left
    return 2 * size**3 / (time.perf_counter() - start)


def lacking_memory(visit: Visit, records: Sequence[Record], memory_bytes: int) -> str | None:
    """Why the batch of `visit` would not fit, or None: judged by the smaller batches' peaks.

    Memory grows linearly with the batch; the two largest batches measured so far, with all else
    equal, give the line. One alone cannot tell the model's share from the batch's.
    """
    peaks: dict[int, int] = {}
    for record in records:
        if record.peak_memory_bytes and _same_but_batch(record.config, visit.config):
            size = record.config.batch_size
            peaks[size] = max(record.peak_memory_bytes, peaks.get(size, 0))
    if len(peaks) < 2:
        return None
    (small, low), (large, high) = sorted(peaks.items())[-2:]
    need = high + max(0.0, (high - low) / (large - small)) * (visit.config.batch_size - large)
    if need <= MEMORY_MARGIN * memory_bytes:
        return None
    return (
        f"would need about {need / 2**30:.1f} GiB of the {memory_bytes / 2**30:.1f} GiB there are, "
        f"judged by batch {small} and {large}"
    )


def doomed(visit: Visit, records: Sequence[Record]) -> str | None:
    """Why the batch of `visit` is not tried: a smaller one alike has just died of it. Or None."""
    latest = {record.config_id: record for record in records}
    for record in latest.values():
        died = (record.reason or "").startswith((OUT_OF_MEMORY, KILLED))
        config = visit.config.model_copy(update={"smt": record.config.smt})
        if died and _same_but_batch(record.config, config):
            reason = str(record.reason).partition(":")[0]
            return f"batch {record.config.batch_size} ended so: {reason}"
    return None


def _same_but_batch(one: Config, other: Config) -> bool:
    return one.batch_size < other.batch_size and one == other.model_copy(
        update={"batch_size": one.batch_size}
    )
