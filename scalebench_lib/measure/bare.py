"""A bare loop beside the timing loop: what people write by hand, to hold our numbers against.

Same process, same model, same pinned threads, turn by turn: only who looks at the clock differs.
``python -m scalebench_lib.measure.bare MODEL BATCH THREADS SECONDS`` (THREADS as in ``1,2``) prints
as JSON, by number of threads, the ratio of each turn's median in the timing loop to that of the
turns beside it: of the ``bare`` loop, and of torch's own ``timer``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch.utils.benchmark import Timer

from scalebench_lib.config import Config
from scalebench_lib.machine import Machine
from scalebench_lib.measure import models
from scalebench_lib.measure.bench import Bench
from scalebench_lib.measure.optimizations import REGISTRY, Subject
from scalebench_lib.measure.probe import Probe
from scalebench_lib.measure.timing import Series, TimingLoop
from scalebench_lib.measure.visit import ROTATION

TURN_S = 0.5
"""The bare loop and torch's timer take turns as long as the timing loop's."""

Ratios = dict[int, dict[str, list[float]]]


@dataclass
class _InTurn(TimingLoop):
    """After each turn of the timing loop, one of the `plain` pass in a bare loop, and torch's."""

    plain: Callable[[], object] = lambda: None
    ratios: Ratios = field(default_factory=dict)

    def _turn(self, one: Series) -> None:
        before = len(one.samples_ns)
        super()._turn(one)
        ours = median(one.samples_ns[before:]) / 1e9
        timer = Timer("run()", globals={"run": self.plain}, num_threads=one.threads)
        times = {
            "bare": _loop(self.plain),
            "timer": timer.blocked_autorange(min_run_time=TURN_S).times,
        }
        found = self.ratios.setdefault(one.threads, {name: [] for name in times})
        for name, theirs in times.items():
            found[name].append(ours / median(theirs))


def main(config: Config, threads: tuple[int, ...], seconds: float) -> Ratios:
    """Time `config` unoptimized for `seconds` a loop and number of threads."""
    machine = Machine.here()
    place = partial(machine.cpus_for, smt=config.smt, placement=config.placement)
    with torch.inference_mode():
        bench, model = Bench(threads, place, machine.pinnable), models.build(config)
        bench.switch(max(threads))
        batches = [model.inputs(config.batch_size, seed) for seed in range(ROTATION)]
        subject = Subject(model, batches[0], config)
        bench.take(lambda: REGISTRY["none"].apply(subject), batches)
        loop = _InTurn(bench.pass_once, Probe(), bench.switch, threads, 1e-6, seconds)
        loop.plain = lambda: model.module(*batches[0])
        loop.measure()
    return loop.ratios


def _loop(run: Callable[[], object]) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + TURN_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    name, batch, counts, length = sys.argv[1:]
    asked = Config(model=name, batch_size=int(batch))
    print(json.dumps(main(asked, tuple(map(int, counts.split(","))), float(length))))
