"""Decoding against a bare loop: ``python tests/tools/bare_decode.py [MODEL [CYCLES]]``.

In one process, in turn, on the same weights: scalebench's own runner, and transformers' own forward
with its static cache, whose position is set back before each pass. Prints the median ratio of the
times per output token, and its quartiles, for batch 1 and 8 and a past of 16, 128 and 512 tokens,
at each number of threads.
"""

import gc
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from transformers.cache_utils import StaticCache

sys.path.insert(0, str(Path(__file__).parents[2]))

from scalebench_lib.config import Config
from scalebench_lib.machine import Machine
from scalebench_lib.measure import models
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.pinned_executor import PinnedExecutor
from scalebench_lib.measure.turns import TurnTimer
from scalebench_lib.optimizations import OPTIMIZATIONS
from scalebench_lib.protocol import TURN_S

WITHIN = (0.95, 1.05)


def bare_loop(model: Any, tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a pass over the last of `tokens`: nothing of scalebench is in it."""
    past = tokens.shape[1] - 1
    cache = StaticCache(model.config, past + 1)
    model(tokens[:, :past], past_key_values=cache, use_cache=True)
    last = tokens[:, past:].clone()

    def decode() -> torch.Tensor:
        for layer in cache.layers:
            layer.cumulative_length.fill_(past)
        return model(last, past_key_values=cache, use_cache=True).logits[:, -1]

    return decode


def turn(decode: Callable[[], object]) -> float:
    """The median of its passes of a turn, in ns; the first does not count."""
    decode()
    gc.disable()
    samples, end = list[int](), time.perf_counter() + TURN_S
    while not samples or time.perf_counter() < end:
        start = time.perf_counter_ns()
        decode()
        samples.append(time.perf_counter_ns() - start)
    gc.enable()
    return median(samples)


def ratios(config: Config, machine: Machine, cycles: int) -> dict[int, list[float]]:
    """Scalebench's time over the bare loop's, of each cycle, by number of threads."""
    model = models.build(config)
    counts = tuple(machine.thread_counts("auto", smt=False))
    place = lambda threads: machine.cpus_for(threads, False, "sequential")  # noqa: E731
    executor = PinnedExecutor(counts, place, machine.pinnable)
    executor.set_num_threads(max(counts))
    batches = [model.inputs(config.batch_size, seed) for seed in range(4)]
    target = Target(model, batches[0], config)
    executor.load(lambda: OPTIMIZATIONS["none"].apply(target), batches)
    bare = bare_loop(model.module.model, batches[0][0])
    torch.testing.assert_close(bare(), executor.runner(*batches[0])[0])
    timer = TurnTimer(executor.pass_once, executor.set_num_threads, counts)
    found: dict[int, list[float]] = {threads: [] for threads in counts}
    for cycle, threads in product(range(1, cycles + 1), counts):
        executor.set_num_threads(threads)
        before = turn(bare) if cycle % 2 else None
        timer.take_turn(cycle, threads)
        own = timer.points[threads].turns[-1].median_ns
        found[threads].append(own / (before or turn(bare)))
    return found


def main(name: str = "gpt2", cycles: str = "20") -> None:
    """Print the ratios; exit code 1 where a median lies outside of `WITHIN`."""
    outside, machine = 0, Machine.here()  # pinned later on, the process sees fewer CPUs
    for batch_size, past in product((1, 8), (16, 128, 512)):
        config = Config(model=name, phase="decode", seq_len=past, batch_size=batch_size)
        with torch.inference_mode():
            found = ratios(config, machine, int(cycles))
        for threads, each in found.items():
            low, middle, high = quantiles(each, n=4)
            where = f"batch {batch_size}, past {past}, threads {threads}"
            print(f"{where}: {middle:.3f} ({low:.3f}–{high:.3f})", flush=True)
            outside += not WITHIN[0] <= middle <= WITHIN[1]
    sys.exit(f"{outside} outside of {WITHIN}" if outside else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
