"""How exact the load generator is, on a stand-in whose service time is known.

``python -m tests.tools.load_error [RATE]``: five runs of 10 s of constant arrivals, 500 a second.
The stand-ins spin for 1 ms; as no request waits for another, its latency should be that. Print the
error of the 99th percentile of each run, and the median of the five; at most 1 ms is wanted, on
CPUs that nobody else uses.
"""

import sys
from statistics import median

import numpy as np

from scalebench_lib.plan import runner
from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.load import LoadTest
from scalebench_lib.plan.runner import Workers
from scalebench_lib.plan.simulate import Batching
from tests.plan.test_load import SPEC
from tests.standins import STAND_IN

SERVICE_MS, SECONDS = 1.0, 10

SPINNING = STAND_IN[2].replace(
    "    time.sleep(max(0, start - time.perf_counter_ns()) / 1e9 + 0.005)\n",
    f"    end = time.perf_counter_ns() + {SERVICE_MS * 1e6:.0f}\n"
    "    while time.perf_counter_ns() < end: pass\n",
)


def error_ms(rate: float) -> float:
    """The error of one run's 99th percentile."""
    with Workers([SPEC] * 2) as workers:
        workers.answers(60)
        test = LoadTest(workers, Batching(max_batch=1, sizes=(1,)))
        log = test.run(arrival_times("constant", rate, round(rate * SECONDS)))
    return float(np.percentile(1e3 * log.latency_s, 99)) - SERVICE_MS


if __name__ == "__main__":
    assert STAND_IN[2] != SPINNING, "the stand-in has changed"
    runner._COMMAND = (*STAND_IN[:2], SPINNING)
    errors = [error_ms(float(sys.argv[1]) if sys.argv[1:] else 500.0) for _ in range(5)]
    print(", ".join(f"{error:.3f}" for error in errors), f"ms; median {median(errors):.3f} ms")
