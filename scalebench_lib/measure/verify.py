"""Does the optimized model compute the same function as eager? If not, its speed means nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Inputs, Model
from scalebench_lib.measure.optimizations import Runner
from scalebench_lib.record import Verification

TOLERANCE = 1e-4
"""Largest absolute difference to eager that fp32 arithmetic in another order explains."""

MAX_ITEMS = 8
"""Items of a batch to compare: errors of a whole model show in every item."""


def verify(
    model: Model, runner: Runner, inputs: Inputs, outputs: tuple[Tensor, ...], seed: int
) -> Verification:
    """Compare `runner` with eager: its `outputs` on `inputs`, and a padded batch unlike them.

    Raises `MeasurementError` where an output is not finite or differs by more than `TOLERANCE`.
    """
    items = min(len(inputs[0]), MAX_ITEMS)
    padded = model.inputs(max(items, 2), inputs[0].shape[1], seed + 1, padded=True)
    pairs = [
        (tuple(output[:items] for output in outputs), tuple(part[:items] for part in inputs)),
        (runner(*padded), padded),
    ]
    error = max(_max_abs_error(got, model.module, batch) for got, batch in pairs)
    if not error <= TOLERANCE:
        raise MeasurementError(
            f"verification failed: outputs differ from eager's by up to {error:.2g}, "
            f"more than {TOLERANCE:g}"
        )
    return Verification(max_abs_error=error, tolerance=TOLERANCE, items=items)


def _max_abs_error(got: tuple[Tensor, ...], module: nn.Module, inputs: Inputs) -> float:
    """The largest difference at unmasked positions; nan where an output is not finite."""
    mask = inputs[1].bool()
    errors = []
    for output, expected in zip(got, module(*inputs), strict=True):
        difference = (output - expected).abs()
        errors.append(difference[mask] if difference.dim() == 3 else difference.flatten(1))
    return float(torch.stack([error.amax() for error in errors]).amax())


def count_flops(module: nn.Module, inputs: Inputs) -> int:
    """Floating-point operations of one pass over the whole batch, counted on its first item."""
    one = tuple(part[:1] for part in inputs)
    # The counter does not know the fused attention of CPUs; spelled out it is matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*one)
    return int(counter.get_total_flops()) * len(inputs[0])
