"""``torch.compile``: compile ahead of the timing, and refuse to fall back to eager."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import nn
from torch._dynamo.exc import RecompileError, TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import freezing
from torch._inductor.async_compile import shutdown_compile_workers
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from scalebench_lib.errors import MeasurementError, reason_of
from scalebench_lib.measure.optimizations.base import TORCH, OptimizedModel, Runner, Target, quiet
from scalebench_lib.measure.optimizations.export_cache import (
    LOOKUPS,
    cache_folder,
    raise_if_disk_error,
)
from scalebench_lib.measure.optimizations.native import kv_cache_options, lowered

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"

_MAX_SETTINGS = ("max_autotune", "freezing", "cpp_wrapper")  # settings of Inductor

_MAX_THREAD_COUNTS = 1024
"""Compiled code is kept for each thread count; from dynamo's limit on it would run eager."""


def compiled(target: Target) -> OptimizedModel:
    """``compile``, or with all of `_MAX_SETTINGS` ``compile-max``; either also in bfloat16."""
    name = target.config.optimization
    settings = _MAX_SETTINGS if "-max" in name else ()
    if "bf16" not in name:
        return compile_module(target, target.model.module, settings)
    return replace(compile_module(target, lowered(target), settings), **kv_cache_options(target))


def compile_module(
    target: Target, module: nn.Module, settings: Collection[str] = ()
) -> OptimizedModel:
    """Compile `module` for one shape of inputs, and for each number of threads.

    `settings` of Inductor are on, others of `_MAX_SETTINGS` off. It keeps its code for later trials
    next to the exports of other engines, unless ``TORCHINDUCTOR_CACHE_DIR`` names another folder.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise MeasurementError(
            f"optimization {target.config.optimization!r} needs a C++ compiler, and there is none: "
            "install g++"
        ) from None
    os.environ.setdefault(_FOLDER, str(cache_folder() / "inductor"))
    _require_one_word(os.environ[_FOLDER])
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = _MAX_THREAD_COUNTS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.suppress_errors = False  # what does not compile would run eager
    for name in _MAX_SETTINGS:  # as an option, freezing would take effect in part
        setattr(torch._inductor.config, name, name in settings)
    before = _compilations()["graphs"]
    runner = torch.compile(module, fullgraph=True, dynamic=False)
    return OptimizedModel(
        lambda _: _compile_now(runner, target, before),
        {**TORCH, "backend": "inductor", **dict.fromkeys(settings, "on")},
        per_thread_count=True,
        guarded=_no_compilation,
    )


def _compile_now(module: Runner, target: Target, graphs_before: int) -> Runner:
    """Compile for the number of threads that torch has now, or take the code from disk."""
    before = counters["inductor"].copy()
    frozen = mock.patch.object(freezing, "freeze", wraps=freezing.freeze)
    try:
        with frozen as freeze, quiet(), redirect_stderr(StringIO()):  # it prints what it tries
            module(*target.inputs)
    except TorchDynamoException as error:
        raise_if_disk_error(error, Path(os.environ[_FOLDER]))
        raise MeasurementError(
            f"optimization {target.config.optimization!r} does not apply: "
            f"{type(error).__name__}: {reason_of(error)}"
        ) from error
    except RuntimeError as error:  # TORCH_COMPILE_DISABLE
        if "no compiled frames" not in str(error):
            raise
    shutdown_compile_workers()
    cached = counters["inductor"] - before
    # Frozen weights that are packed are kept by no cache.
    anew = cached["fxgraph_cache_miss"] + cached["fxgraph_cache_bypass"]
    LOOKUPS.update({True: cached["fxgraph_cache_hit"], False: anew})
    if _compilations()["graphs"] == graphs_before:
        raise MeasurementError(
            f"optimization {target.config.optimization!r} did not take effect: no graph was "
            "compiled (is TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE set?)"
        )
    if torch._inductor.config.freezing and not freeze.called:
        raise MeasurementError("freezing did not take effect: the weights are no constants")
    return module


def _require_one_word(path: str) -> None:
    """Raise `MeasurementError` for a path with spaces: Inductor splits the compiler's command."""
    try:
        whole = shlex.split(path) == [path]
    except ValueError:
        whole = False
    if not whole:
        raise MeasurementError(
            "optimization 'compile' does not work in a folder with spaces or quotes in its path, "
            f"{path!r}: set {_FOLDER} to another"
        )


@contextmanager
def _no_compilation() -> Iterator[None]:
    """Raise `MeasurementError` after a graph break or a recompilation."""
    before = _compilations()
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            yield
    except RecompileError as error:
        raise MeasurementError(f"compiled anew while timing: {reason_of(error)}") from None
    if grown := _compilations() - before:
        raise MeasurementError(f"compiled anew while timing: {dict(grown)}")


def _compilations() -> Counter[str]:
    breaks = sum(counters["graph_break"].values())
    return Counter({"graph breaks": breaks, "graphs": counters["stats"]["unique_graphs"]})
