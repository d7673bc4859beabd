"""``torch.compile``: compiled ahead of the timing, and guarded so that nothing falls back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo.config
import torch._inductor.config
from torch._dynamo.exc import RecompileError, TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor.async_compile import shutdown_compile_workers
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.optimizations import export_cache
from scalebench_lib.measure.optimizations.base import OptimizedModel, Runner, Target

_MOST_THREAD_COUNTS = 1024
"""Compiled code is kept for each thread count; from dynamo's limit on it would run eager."""


class Compiled(OptimizedModel):
    """A module compiled by inductor for one shape of inputs, at each number of threads."""

    per_thread_count = True

    def __init__(self, subject: Target) -> None:
        _require_compiler()
        export_cache.share_inductor_cache()
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = _MOST_THREAD_COUNTS
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._inputs = subject.inputs
        self._compiled = torch.compile(subject.model.module, fullgraph=True, dynamic=False)
        super().__init__(self._compiled, backend="inductor")

    def runner(self, threads: int) -> Runner:
        """Compile for `threads` threads, or take it from the cache on disk."""
        try:
            self._compiled(*self._inputs)
        except TorchDynamoException as error:
            first_line = next(iter(str(error).splitlines()), "")
            raise MeasurementError(
                f"optimization 'compile' does not apply: {type(error).__name__}: {first_line}"
            ) from error
        shutdown_compile_workers()
        return super().runner(threads)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """No graph break and no recompilation, or the timing counts for nothing."""
        before = _compilations()
        try:
            with torch._dynamo.config.patch(error_on_recompile=True):
                yield
        except RecompileError as error:
            raise MeasurementError(
                f"compiled anew while timing: {str(error).splitlines()[0]}"
            ) from None
        grown = _compilations() - before
        if grown:
            raise MeasurementError(f"compiled anew while timing: {dict(grown)}")


def _compilations() -> Counter[str]:
    breaks = Counter({"graph breaks": sum(counters["graph_break"].values())})
    return breaks + Counter({"graphs": counters["stats"]["unique_graphs"]})


def _require_compiler() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise MeasurementError(
            "optimization 'compile' needs a C++ compiler, and there is none: install g++"
        ) from None
