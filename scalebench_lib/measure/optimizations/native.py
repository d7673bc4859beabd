"""What torch has by itself: eager, TorchScript, bfloat16, float16."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.optimizations.base import (
    OptimizedModel,
    Outputs,
    Target,
    by_torch,
    has_bfloat16,
    has_float16,
    no_arithmetic,
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
    """Weights, computation and outputs in bfloat16."""
    return by_torch(lowered(target, torch.bfloat16), **casting(target, torch.bfloat16))


def fp16(target: Target) -> OptimizedModel:
    """Weights, computation and outputs in float16."""
    return by_torch(lowered(target, torch.float16), **casting(target, torch.float16))


class Lowered(nn.Module):
    """A copy of `module` in `dtype`; inputs that are floats are cast in the pass."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = copy.deepcopy(module).to(dtype), dtype

    def forward(self, *inputs: Tensor) -> Outputs:
        """Return the outputs of `module`, in `dtype`."""
        cast = (part.to(self.dtype) if part.is_floating_point() else part for part in inputs)
        return tuple(self.module(*cast))


def lowered(target: Target, dtype: torch.dtype) -> nn.Module:
    """Return the model in `dtype`; `MeasurementError` where that does not apply here."""
    name, title = target.config.optimization, str(dtype).removeprefix("torch.")
    if not (has_bfloat16() if dtype == torch.bfloat16 else has_float16()):
        raise MeasurementError(
            f"optimization {name!r} does not apply: {no_arithmetic(title)}, "
            "and torch would emulate it"
        )
    module = Lowered(target.model.module, dtype)
    one_item = (part[:1] for part in target.inputs)
    kinds = {part.dtype for part in (*module.parameters(), *module(*one_item))}
    if kinds != {dtype}:
        raise MeasurementError(f"optimization {name!r} did not take effect: found {kinds}")
    return module


def casting(target: Target, dtype: torch.dtype) -> dict[str, Any]:
    """Return how batches are prepared: a decoder keeps its cache in its own type."""
    if target.config.phase == "forward":
        return {}

    def cast_caches(batches: Sequence[Inputs]) -> list[Inputs]:
        cast = {id(part): part.to(dtype) for batch in batches for part in batch[1:]}
        return [(batch[0], *(cast[id(part)] for part in batch[1:])) for batch in batches]

    return {"prepare": cast_caches}
