"""What an optimization is: a function of a `Target` that returns an `OptimizedModel`."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.models import Model

Outputs = tuple[Tensor, ...]
Runner = Callable[..., Outputs]
"""Computes one pass: takes the tensors of a batch as positional arguments."""

Times = Counter[str]
"""Times in ns by name of the operator."""
Profile = tuple[int, Times]
"""The wall time of passes in ns, and the times of their operators."""
_X86 = platform.machine().lower() in ("x86_64", "amd64")
ENOUGH_QUANTIZED = 0.8
"""A model with less of its arithmetic in quantized layers is not what people mean by int8."""

TORCH = {"name": "torch", "version": torch.__version__}


@dataclass(frozen=True)
class Target:
    """What to optimize: a model, inputs like those that it will be timed with, its config."""

    model: Model
    inputs: Inputs
    config: Config


@dataclass(frozen=True)
class OptimizedModel:
    """A model made ready to run; `runner(threads)` is what to time with so many threads.

    `engine` names what computes it, for the record. By default torch's threads compute it. With
    `own_threads` the engine has a pool of its own; if it also `pins_itself`, it binds its threads,
    in each pass, to the CPUs that the caller was allowed when the runner was made. With
    `per_thread_count` runners are costly, and made before the turns. `prepare` makes what batches
    keep from pass to pass (a cache) fit for it. `guarded` is entered around the turns; it raises
    `MeasurementError` if something else was timed than was prepared.
    `profile(threads, batch, passes)` does passes under the engine's profiler, in another session.
    `files` is the folder of what the engine reads.
    """

    runner: Callable[[int], Runner]
    engine: dict[str, str]
    own_threads: bool = False
    per_thread_count: bool = False
    pins_itself: bool = False
    prepare: Callable[[Sequence[Inputs]], Sequence[Inputs]] = list
    guarded: Callable[[], AbstractContextManager[None]] = nullcontext
    profile: Callable[[int, Inputs, int], Profile] | None = None
    files: Path | None = None


def by_torch(run: Runner, **more: Any) -> OptimizedModel:
    """Return `run` as a model that any number of torch's threads computes."""
    return OptimizedModel(lambda _: run, TORCH, **more)


@cache
def has_bfloat16() -> bool:
    """Return whether this CPU multiplies in bfloat16: emulated, a product is slower than in fp32.

    oneDNN alone says yes of any CPU with AVX-512; ``ONEDNN_MAX_CPU_ISA`` may forbid what there is.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if _X86 and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    return _is_faster(torch.bfloat16)


@cache
def has_float16() -> bool:
    """Return whether this CPU multiplies in float16: with AVX-512 alone, oneDNN would convert."""
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return False
    if _X86 and not torch.cpu.get_capabilities().get("avx512_fp16"):
        return False
    return _is_faster(torch.float16)


def no_arithmetic(title: str) -> str:
    """Say that this CPU does not compute in the type `title`, and the limit it was given."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"this CPU has no {title} arithmetic{f' with ONEDNN_MAX_CPU_ISA={limit}' * bool(limit)}"


def _is_faster(dtype: torch.dtype) -> bool:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _product_ns(dtype) < _product_ns(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _product_ns(dtype: torch.dtype) -> int:
    """The least CPU time of a matrix product on this thread, whatever else the machine does."""
    left, right = torch.ones((256, 512), dtype=dtype), torch.ones((512, 512), dtype=dtype)
    times = []
    for _ in range(10):
        start = time.thread_time_ns()
        torch.mm(left, right)
        times.append(time.thread_time_ns() - start)
    return min(times)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters and quantizers: warnings, logs, and bars of progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    bars = mock.patch.multiple("rich.progress.Progress", start=mock.DEFAULT, stop=mock.DEFAULT)
    try:
        with bars, warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def import_extra(name: str, *modules: str) -> ModuleType:
    """Import `modules` of the package's extra `name`; return the first.

    They are imported late: they start threads, which a process that forks must not have.
    Raises `MeasurementError`, naming the extra to install, if one is missing.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        first, *_ = map(importlib.import_module, modules)
        return first
    except ImportError as error:
        raise MeasurementError(
            f"{error.name or name} cannot be imported: pip install -e '.[{name}]'"
        ) from None
