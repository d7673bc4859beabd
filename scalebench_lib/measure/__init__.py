"""Inside the kernel: build a model, optimize it, time it, check it. The only part with torch."""

import os
import sys

_affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

import torch  # noqa: E402, F401

# Wherever it is installed, transformers would import it: a second, and warnings on the console.
sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]

# OMP_PROC_BIND and GOMP_CPU_AFFINITY have OpenMP bind the thread that loads it to one CPU.
if _affinity is not None:
    os.sched_setaffinity(0, _affinity)
