"""What torch has by itself: eager, TorchScript, bfloat16."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations.base import (
    OptimizedModel,
    Outputs,
    Target,
    by_torch,
    has_bfloat16,
)


def none(target: Target) -> OptimizedModel:
    """Eager PyTorch, as it comes."""
    return by_torch(target.model.module)


def script(target: Target) -> OptimizedModel:
    """TorchScript: traced on the inputs, frozen, optimized for inference."""
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(target.model.module, target.inputs, check_trace=False)
        _require_script(traced)  # with PYTORCH_JIT=0 it is none
        runner = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    _require_script(runner)
    return by_torch(runner)


def _require_script(made: object) -> None:
    if not isinstance(made, torch.jit.ScriptModule):
        raise MeasurementError(
            f"optimization 'script' did not take effect: got {type(made).__name__}, "
            "not a ScriptModule"
        )


def bf16(target: Target) -> OptimizedModel:
    """Weights, computation and outputs in bfloat16; inputs that are floats are cast in the pass."""
    if not has_bfloat16():
        raise MeasurementError(
            "optimization 'bf16' does not apply: this CPU has no bfloat16 arithmetic, "
            "and torch would emulate it"
        )
    module = copy.deepcopy(target.model.module).to(torch.bfloat16)

    def run(*inputs: Tensor) -> Outputs:
        cast = (part.bfloat16() if part.is_floating_point() else part for part in inputs)
        outputs: Outputs = module(*cast)
        return outputs

    one_item = (part[:1] for part in target.inputs)
    kinds = {part.dtype for part in (*module.parameters(), *run(*one_item))}
    if kinds != {torch.bfloat16}:
        raise MeasurementError(f"optimization 'bf16' did not take effect: found {kinds}")
    return by_torch(run, prepare=list if target.config.phase == "forward" else _cast_caches)


def _cast_caches(batches: Sequence[Inputs]) -> list[Inputs]:
    """A decoder keeps its cache in its own type: cast once, and shared as before."""
    cast = {id(part): part.bfloat16() for batch in batches for part in batch[1:]}
    return [(batch[0], *(cast[id(part)] for part in batch[1:])) for batch in batches]
