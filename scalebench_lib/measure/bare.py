"""A bare loop around BERT-base: what people write by hand, to hold our numbers against.

Knows nothing of the rest of the library. ``python -m scalebench_lib.measure.bare BATCH CPUS``
(CPUS as in ``0,2``) says ``ready``, loops until it is terminated, and prints its times and those
of ``torch.utils.benchmark``, in ms, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer
from transformers import BertConfig, BertModel

TURN_S = 0.5
"""The plain loop and the timer take turns of this length."""


def main(batch_size: int, cpus: list[int], stop: threading.Event) -> dict[str, list[float]]:
    """Time BERT-base, 16 tokens an item, with a thread for each of `cpus` until `stop`; ms."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(len(cpus))
    model = BertModel(BertConfig()).eval()
    ids = torch.randint(1000, 30522, (batch_size, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    times: dict[str, list[float]] = {"loop": [], "timer": []}
    with torch.inference_mode():
        for _ in range(3):
            model(**inputs)
        print("ready", flush=True)
        while not stop.is_set():
            times["loop"] += _loop(lambda: model(**inputs))
            times["timer"] += _timer(model, inputs)
    return {name: [1e3 * seconds for seconds in found] for name, found in times.items()}


def _loop(run: Callable[[], object]) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + TURN_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _timer(model: BertModel, inputs: dict[str, torch.Tensor]) -> list[float]:
    threads = torch.get_num_threads()
    timer = Timer("model(**inputs)", globals=locals(), num_threads=threads)
    return list(timer.blocked_autorange(min_run_time=TURN_S).times)


if __name__ == "__main__":
    batch, numbers = sys.argv[1:]
    enough = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    print(json.dumps(main(int(batch), [int(n) for n in numbers.split(",")], enough)))
