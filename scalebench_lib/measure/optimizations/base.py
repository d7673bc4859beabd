"""An optimization is a function of a `Target` that returns an `OptimizedModel`."""

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
from scalebench_lib.optimizations import Precision

Outputs = tuple[Tensor, ...]
Runner = Callable[..., Outputs]
"""Computes one pass: takes the tensors of a batch as positional arguments."""

Times = Counter[str]
"""Times in ns by name of the operator."""
Profile = tuple[int, Times]
"""The wall time of passes in ns, and the times of their operators."""
_X86 = platform.machine().lower() in ("x86_64", "amd64")
MIN_QUANTIZED_SHARE = 0.8
"""A model with less of its arithmetic in quantized layers is not what people mean by int8."""

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
TORCH = {"name": "torch", "version": torch.__version__}


@dataclass(frozen=True)
class Target:
    """A model to optimize, a batch like those to be timed, and its config."""

    model: Model
    inputs: Inputs
    config: Config


@dataclass(frozen=True)
class OptimizedModel:
    """A model ready to run; `runner(threads)` returns the function to time at `threads` threads.

    `engine` describes what computes it, for the record: by default torch's threads. With
    `own_threads` the engine has a thread pool; if it also `pins_itself`, it binds the pool, in each
    pass, to the CPUs that the caller had when the runner was made. With `per_thread_count` runners
    are costly, and made before the turns. `prepare` converts batches, such as the type of a cache.
    `guarded` is entered around the turns; it raises `MeasurementError` if something else was timed
    than was prepared. `profile(threads, batch, passes)` runs passes under the engine's profiler, in
    another session. `files` is the folder that the engine reads.
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
    """Return an `OptimizedModel` that torch's threads compute, whatever their number."""
    return OptimizedModel(lambda _: run, TORCH, **more)


@cache
def has_native_matmul(precision: Precision) -> bool:
    """Return whether this CPU has products of that type: emulated, they are slower than in fp32.

    oneDNN supports bf16 on any CPU with AVX-512, and converts fp16: the CPU's flags decide, and the
    time of a product, as ``ONEDNN_MAX_CPU_ISA`` may forbid what the CPU has.
    """
    if precision in ("fp32", "int8"):
        return precision == "fp32" or bool(torch.cpu._is_vnni_supported())
    if precision == "bf16":
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported() and (
            not _X86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    else:
        supported = torch.ops.mkldnn._is_mkldnn_fp16_supported() and (
            not _X86 or torch.cpu.get_capabilities().get("avx512_fp16")
        )
    return bool(supported) and _is_faster(DTYPES[precision])


def no_arithmetic_message(title: str) -> str:
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
    """Return the least CPU time of 10 matrix products on this thread: others do not count."""
    left, right = torch.ones((256, 512), dtype=dtype), torch.ones((512, 512), dtype=dtype)
    times = []
    for _ in range(10):
        start = time.thread_time_ns()
        torch.mm(left, right)
        times.append(time.thread_time_ns() - start)
    return min(times)


def require_quantized(target: Target, share: float, of: str) -> None:
    """Raise `MeasurementError` where layers with a `share` of less than 0.8 are quantized."""
    name, model = target.config.optimization, target.config.model
    if share < MIN_QUANTIZED_SHARE:
        raise MeasurementError(
            f"optimization {name!r} does not apply to {model}: {share:.0%} of its {of} are in "
            f"layers that it quantizes, less than {MIN_QUANTIZED_SHARE:.0%}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings, logs and progress bars of exporters and quantizers."""
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
