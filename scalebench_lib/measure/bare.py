"""A bare loop around BERT-base: what people write by hand, to hold our numbers against.

Knows nothing of the rest of the library. ``python -m scalebench_lib.measure.bare BATCH CPUS
SECONDS`` (CPUS as in ``0,2``) prints the medians of a plain loop and of
``torch.utils.benchmark``, in ms, as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer
from transformers import BertConfig, BertModel


def main(batch_size: int, cpus: list[int], seconds: float) -> dict[str, float]:
    """Time BERT-base, 16 tokens an item, with a thread for each of `cpus`; medians in ms."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(len(cpus))
    model = BertModel(BertConfig()).eval()
    ids = torch.randint(1000, 30522, (batch_size, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        for _ in range(3):
            model(**inputs)
        return {"loop": _loop(lambda: model(**inputs), seconds), "timer": _timer(model, inputs)}


def _loop(run: Callable[[], object], seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _timer(model: BertModel, inputs: dict[str, torch.Tensor]) -> float:
    timer = Timer(
        "model(**inputs)",
        globals={"model": model, "inputs": inputs},
        num_threads=torch.get_num_threads(),
    )
    return float(timer.blocked_autorange(min_run_time=1.0).median) * 1e3


if __name__ == "__main__":
    batch, numbers, duration = sys.argv[1:]
    print(json.dumps(main(int(batch), [int(n) for n in numbers.split(",")], float(duration))))
