"""Verify that the optimized model computes the same function as eager.

Outputs are compared with those of the model itself in float64, as a signal-to-quantization-noise
ratio (SQNR, in dB): on items of the batch that is timed, and on items with padding. A decoder with
a cache is compared with a full pass without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from scalebench_lib.errors import MeasurementError, reason_of
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.models import Model
from scalebench_lib.measure.optimizations.base import DTYPES, Outputs, Runner
from scalebench_lib.measure.purity import first_varying_layer, require_no_side_effects
from scalebench_lib.optimizations import Precision
from scalebench_lib.record import Verification
from scalebench_lib.text import format_error_db

REQUIRED_DB: dict[Precision, float] = {"fp32": 90.0, "fp16": 45.0, "bf16": 30.0, "int8": 20.0}
"""Least SQNR of the worst item. BERT-base has 116–128 dB in fp32, 38–47 in bf16, 25–40 in int8, and
7–8 with a layer dropped; fp16 was seen of bert-tiny alone, emulated: 62."""

NEAR_EAGER_DB = 10.0
"""Where eager fp32 itself is imprecise, this much less than eager's SQNR is enough."""

EAGER_DB = REQUIRED_DB["bf16"] + NEAR_EAGER_DB
"""Least SQNR of eager fp32 itself: below it, a wrong model would pass."""

IDENTICAL_DB = 200.0
"""The SQNR of outputs that are equal bit for bit."""

MAX_ITEMS = 8
"""Most items of a batch to compare: errors of a whole model show in every item."""

FP64_FLOPS = 25e9
"""Most work of the reference, about half a second of two cores: it limits the items."""

MEMORY_SHARE = 0.8
"""Share of the available memory that a layer in float64 may take."""


class Verifier:
    """Compare runners with the outputs of `model` for `inputs` and for a padded batch.

    If `thorough`, the reference is float64, on up to 8 items, and `flops` are those of one pass of
    `inputs`. Otherwise it is eager float32 on one item: an earlier trial has proved the config.
    With `any_batch` the runner takes batches of any size, and the padded one holds only the items
    to compare. Build it in `torch.inference_mode`, before an optimization may change the model.
    Raises `MeasurementError` where the model itself is no reference.
    """

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        precision: Precision = "fp32",
        *,
        seed: int = 0,
        thorough: bool = True,
        any_batch: bool = False,
    ) -> None:
        self.inputs, self.precision, self.batch_size = inputs, precision, len(inputs[0])
        self.flops = count_flops(model.module, inputs) if thorough else None
        self.items = self._affordable_items(model)
        padded_items = max(self.items, 1 + thorough)  # padding is mixed among two at least
        padded_size = padded_items if any_batch else self.batch_size
        self.padded = model.inputs(padded_size, seed + 1, padded=True)
        self._measured = _Expected(model, inputs, self.items)
        self._padded = _Expected(model, self.padded, padded_items)
        self.eager_db: float | None = None
        self.note = model.note or None
        if thorough:
            if model.reference is model.module:  # others write to a cache among their inputs
                require_no_side_effects(model.module, self._padded.inputs)
            self._require_repeatable(model)
            notes = filter(None, (self.note, self._use_float64(model)))
            self.note = "; ".join(notes) or None

    def check(self, runner: Runner, outputs: Outputs | None = None) -> Verification:
        """Compare `runner` on both batches; `outputs` are its answer to `inputs`, if known.

        Raises `MeasurementError`, with the figures, if it computes another function.
        """
        first = runner(*self.inputs) if outputs is None else outputs
        second = runner(*self.padded)
        for got, size in ((first, self.batch_size), (second, len(self.padded[0]))):
            self._check_form(got, size)
        _require_different(first, second)
        figures = self._measured.compare(first), self._padded.compare(second)
        found = Verification(
            sqnr_db=min(sqnr for sqnr, _ in figures),
            eager_sqnr_db=self.eager_db,
            required_db=self.required_db,
            max_abs_error=max(error for _, error in figures),
            items=self.items,
            batch_size=self.batch_size,
            precision=self.precision,
            reference="eager" if self.eager_db is None else "fp64",
            note=self.note,
        )
        if not found.passed:
            raise MeasurementError(f"verification failed: {found}")
        return found

    @property
    def required_db(self) -> float:
        least = REQUIRED_DB[self.precision]
        return least if self.eager_db is None else min(least, self.eager_db - NEAR_EAGER_DB)

    def _affordable_items(self, model: Model) -> int:
        if self.flops is None:
            return 1
        items, alone = min(self.batch_size, MAX_ITEMS), model.reference is model.module
        if work := self.flops if alone else count_flops(model.reference, self.inputs):
            items = min(items, int(FP64_FLOPS / 2 / (work / self.batch_size)))
        return max(items, 1)

    def _require_repeatable(self, model: Model) -> None:
        """Raise `MeasurementError` where eager is nondeterministic, and so no reference."""
        if self._padded.sqnr_db(model.reference(*self._padded.inputs)) < REQUIRED_DB["fp32"]:
            layer = first_varying_layer(model.module, self._padded.inputs)
            raise MeasurementError(
                "the model answers the same input differently: cannot be verified; it draws at "
                f"random, or keeps state, in {layer}"
            )

    def _use_float64(self, model: Model) -> str:
        """Take float64 as the reference; return why not where it does not run."""
        need = 3 * 8 * max((p.numel() for p in model.module.parameters()), default=0)
        available = psutil.virtual_memory().available
        if need > MEMORY_SHARE * available:
            return f"float64 would need {need / 2**30:.1f} GiB, {available / 2**30:.1f} free"
        both = (self._measured, self._padded)
        try:
            with Float64Mode():
                both[0].reference, both[1].reference = (model.reference(*b.inputs) for b in both)
        except Exception as error:  # of a kernel, or the user's code, without float64
            return f"float64 does not run: {reason_of(error)}"
        self.eager_db = min(one.sqnr_db(one.eager) for one in both)
        if self.eager_db < EAGER_DB:
            raise MeasurementError(
                f"eager fp32 itself has an error of {format_error_db(self.eager_db)} dB against "
                f"fp64, more than −{EAGER_DB:.0f}: cannot be verified"
            )
        return ""

    def _check_form(self, got: Outputs, batch_size: int) -> None:
        """Raise `MeasurementError` for wrong shapes or types, or values that are not finite."""
        shapes = [tuple(output.shape) for output in got]
        wanted = [(batch_size, *output.shape[1:]) for output in self._padded.eager]
        if shapes != wanted:
            raise MeasurementError(
                f"verification failed: outputs of shapes {shapes}, eager's are {wanted}"
            )
        allowed = {torch.float32, DTYPES[self.precision]} - {torch.int8}
        for output in got:
            if output.dtype not in allowed:
                raise MeasurementError(
                    f"verification failed: outputs are {output.dtype}, not {self.precision}"
                )
            if bad := int((~torch.isfinite(output)).sum()):
                raise MeasurementError(
                    f"verification failed: {bad} of {output.numel()} outputs are not finite"
                )


def _require_different(first: Outputs, second: Outputs) -> None:
    """Raise `MeasurementError` where different inputs give the same outputs: cached, or constant.

    A single output may be equal, such as that of a decoder's first token.
    """
    if all(torch.equal(one[:1], other[:1]) for one, other in zip(first, second, strict=True)):
        raise MeasurementError(
            "verification failed: another input gives the same output, equal bit for bit "
            "(difference 0): it is cached, or constant"
        )


class _Expected:
    """The expected outputs of some `items` of a batch: `eager`, and the `reference`."""

    def __init__(self, model: Model, batch: Inputs, items: int) -> None:
        self.items = evenly_spaced(len(batch[0]), items)
        self.inputs = tuple(part[self.items] for part in batch)
        named = dict(zip(getattr(model.module, "names", ()), self.inputs, strict=False))
        self.mask = named.get("attention_mask")  # (items, tokens)
        self.eager: Outputs = model.reference(*self.inputs)
        self.reference = self.eager

    def compare(self, outputs: Outputs) -> tuple[float, float]:
        """Return the SQNR in dB of a batch's `outputs`, and their largest difference from eager."""
        picked = [output[self.items] for output in outputs]
        pairs = zip(self.eager, picked, strict=True)
        largest = max(float(self._unmasked(one - other).abs().max()) for one, other in pairs)
        return self.sqnr_db(picked), largest

    def sqnr_db(self, got: Iterable[Tensor]) -> float:
        """Return the SQNR of the worst item, over all outputs and unmasked positions."""
        return min(
            _sqnr_db(self._unmasked(output), self._unmasked(other))
            for output, other in zip(self.reference, got, strict=True)
        )

    def _unmasked(self, output: Tensor) -> Tensor:
        """Return outputs as float64 (items, values), with zeros at padding."""
        if self.mask is not None and output.dim() == 3 and output.shape[:2] == self.mask.shape:
            output = output.where(self.mask.bool().unsqueeze(-1), 0.0)
        return output.flatten(1).double()


def _sqnr_db(reference: Tensor, got: Tensor) -> float:
    """Return the least over items of 10 log10(signal / error), from (items, values) of float64."""
    signal = reference.square().sum(1)
    error = (reference - got).square().sum(1)
    ratio = torch.where(error == 0, math.inf, signal / error)
    return max(-IDENTICAL_DB, min(IDENTICAL_DB, float(10 * torch.log10(ratio.min()))))


def evenly_spaced(size: int, items: int) -> Tensor:
    """Return the indices of `items` of `size` items, with the first and the last."""
    return torch.linspace(0, size - 1, min(items, size)).round().long()


class Float64Mode(TorchFunctionMode):
    """While active, torch computes in float64 what a model asks for in float32.

    Each function converts its own arguments, so that no second copy of the model is needed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        if func is not nn.functional.embedding:  # convert the rows, not the whole table
            args, kwargs = tree_map(_widen, (args, kwargs))
        return tree_map(_widen, func(*args, **(kwargs or {})))


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def count_flops(module: Runner, inputs: Inputs) -> int:
    """Return the FLOPs of one pass over the whole batch, counted on its first item."""
    one = tuple(part[:1] for part in inputs)
    # The counter does not know the fused attention of CPUs; SDPBackend.MATH has matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*one)
    return int(counter.get_total_flops()) * len(inputs[0])
