"""The optimizations: each turns a module into a runner that computes the same, faster.

An optimization is a function of a module and example inputs that returns the runner, and raises
`MeasurementError` where it did not take effect. To add one: write it, enter it in `APPLY`, and
say in `config.OPTIMIZATIONS` what it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Inputs

Runner = Callable[..., tuple[Tensor, ...]]


def none(module: nn.Module, inputs: Inputs) -> Runner:
    """Eager PyTorch, as it comes."""
    return module


def script(module: nn.Module, inputs: Inputs) -> Runner:
    """TorchScript: traced on `inputs`, frozen, optimized for inference."""
    with torch.no_grad(), warnings.catch_warnings():
        for noise in (TracerWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", noise)
        traced = torch.jit.trace(module, inputs, check_trace=False)
        runner = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    if not isinstance(runner, torch.jit.ScriptModule):
        raise MeasurementError(
            f"optimization 'script' did not take effect: got {type(runner).__name__}, "
            "not a ScriptModule"
        )
    return runner


APPLY: dict[str, Callable[[nn.Module, Inputs], Runner]] = {"none": none, "script": script}
"""Optimizations by name."""
