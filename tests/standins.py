"""Processes in the place of a plan's instances, and how to find either."""

import sys

import psutil

_MODULE = "scalebench_lib.plan.worker"

STAND_IN = (
    sys.executable,
    "-c",
    f"""# in place of {_MODULE}: what it says, without a model
import json, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
pipe.recv_bytes()
answer = {{"ready": 0}}
while True:
    pipe.send_bytes(json.dumps(answer).encode())
    start = json.loads(pipe.recv_bytes())["start_ns"]
    time.sleep(max(0, start - time.perf_counter_ns()) / 1e9 + 0.005)
    answer = {{"ended_ns": time.perf_counter_ns()}}
""",
)
"""The command of a stand-in: it takes 5 ms for everything."""


def instances() -> list[psutil.Process]:
    """The instances, or their stand-ins, that this process has started, the first one first."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if any(_MODULE in word for word in one.cmdline())]
