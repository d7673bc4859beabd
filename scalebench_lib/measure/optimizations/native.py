"""The optimizations of torch itself: eager, TorchScript, bfloat16, float16."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations import base
from scalebench_lib.optimizations import OPTIMIZATIONS


def none(target: base.Target) -> base.OptimizedModel:
    """Eager PyTorch, as it comes."""
    return base.by_torch(target.model.module)


def script(target: base.Target) -> base.OptimizedModel:
    """TorchScript: traced on the inputs, frozen, optimized for inference."""
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(target.model.module, target.inputs, check_trace=False)
        _require_script(traced)  # with PYTORCH_JIT=0 it is none
        runner = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    _require_script(runner)
    return base.by_torch(runner)


def _require_script(made: object) -> None:
    if not isinstance(made, torch.jit.ScriptModule):
        raise MeasurementError(
            f"optimization 'script' did not take effect: got {type(made).__name__}, "
            "not a ScriptModule"
        )


def low_precision(target: base.Target) -> base.OptimizedModel:
    """Weights, computation and outputs in the type of the optimization."""
    return base.by_torch(lowered(target), **kv_cache_options(target))


class Lowered(nn.Module):
    """A copy of `module` in `dtype`; inputs that are floats are cast in the pass."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = copy.deepcopy(module).to(dtype), dtype

    def forward(self, *inputs: Tensor) -> base.Outputs:
        cast = (part.to(self.dtype) if part.is_floating_point() else part for part in inputs)
        return tuple(self.module(*cast))


def _dtype(target: base.Target) -> torch.dtype:
    return base.DTYPES[OPTIMIZATIONS[target.config.optimization].precision]


def lowered(target: base.Target) -> nn.Module:
    """Return the model in the type of the optimization.

    Raises `MeasurementError` where the CPU has no such arithmetic, or some of it keeps its type.
    """
    name, dtype = target.config.optimization, _dtype(target)
    if not base.has_native_matmul(OPTIMIZATIONS[name].precision):
        lacking = base.no_arithmetic_message(str(dtype).removeprefix("torch."))
        raise MeasurementError(
            f"optimization {name!r} does not apply: {lacking}, and torch would emulate it"
        )
    module = Lowered(target.model.module, dtype)
    one_item = (part[:1] for part in target.inputs)
    kinds = {part.dtype for part in (*module.parameters(), *module(*one_item))}
    if kinds != {dtype}:
        raise MeasurementError(f"optimization {name!r} did not take effect: found {kinds}")
    return module


def kv_cache_options(target: base.Target) -> dict[str, Any]:
    """Return how batches are prepared: a decoder's cache has the type of its weights."""
    dtype = _dtype(target)
    if target.config.phase == "forward":
        return {}

    def cast_caches(batches: Sequence[Inputs]) -> list[Inputs]:
        cast = {id(part): part.to(dtype) for batch in batches for part in batch[1:]}
        return [(batch[0], *(cast[id(part)] for part in batch[1:])) for batch in batches]

    return {"prepare": cast_caches}
