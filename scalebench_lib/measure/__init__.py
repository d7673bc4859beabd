"""Inside the kernel: build a model, optimize it, time it, check it. The only part with torch."""

import os

_affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

import torch  # noqa: E402, F401

# OMP_PROC_BIND and GOMP_CPU_AFFINITY have OpenMP bind the thread that loads it to one CPU.
if _affinity is not None:
    os.sched_setaffinity(0, _affinity)
