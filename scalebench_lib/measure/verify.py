"""Does the optimized model compute the same function as eager? If not, its speed means nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs
from scalebench_lib.measure.models import Model
from scalebench_lib.record import Verification

Precision = Literal["fp32", "bf16", "int8"]
Outputs = tuple[Tensor, ...]

REQUIRED_DB: dict[Precision, float] = {"fp32": 90.0, "bf16": 30.0, "int8": 20.0}
"""Least SQNR of the worst item; BERT has 116–128, 38–47, 28–40 dB, with a layer dropped 7–8."""

NEAR_EAGER_DB = 10.0
"""Where eager fp32 itself is imprecise, so much less than eager's will do."""

IDENTICAL_DB = 200.0
"""The SQNR of outputs equal bit for bit."""

MAX_ITEMS = 8
"""Items of a batch to compare: errors of a whole model show in every item."""

FEW_ITEMS = 1
"""Items that a trial compares which is not its config's first: that one has proved the config."""

FP64_FLOPS = 25e9
"""Work of the reference: about half a second of two cores; long items are compared by fewer."""

MEMORY_SHARE = 0.8
"""Share of the available memory that a layer in float64 may take."""


class Verifier:
    """What `model` should answer to `inputs` and to a padded batch unlike them.

    `thorough` takes float64 as the reference; else eager float32, on the padded batch alone and
    on fewer items. `any_batch`: the runner takes batches of any size, so that a slice of the
    padded batch will do. Build it before an optimization may change the model, in
    `torch.inference_mode`. `flops` are those of one pass of `inputs`, None unless `thorough`.
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
        self.note: str | None = None
        self._items = items = self._affordable_items()
        several = max(items, 1 + thorough)  # padding is mixed among two at least
        self.other = model.inputs(several if any_batch else self.batch_size, seed + 1, padded=True)
        self._padded = _Expected(model, self.other, several)
        self._measured = _Expected(model, inputs, items) if thorough else None
        self.eager_db = self._use_double(model) if thorough else None

    def check(self, runner: Callable[..., Outputs], outputs: Outputs | None = None) -> Verification:
        """Compare `runner` on both batches; `outputs` are its on `inputs`, where known.

        Raises `MeasurementError`, with the figures, where it computes something else.
        """
        first = runner(*self.inputs) if outputs is None else outputs
        other = runner(*self.other)
        for got, size in ((first, self.batch_size), (other, len(self.other[0]))):
            self._check_form(got, size)
        self._must_differ(first, other)
        measured = [self._measured.figures(first)] if self._measured else []
        return self._judge([*measured, self._padded.figures(other)])

    def recheck(self, runner: Callable[..., Outputs]) -> Verification:
        """`check` once more, after timing; unless thorough, on the padded batch alone."""
        if self._measured:
            return self.check(runner)
        got = runner(*self.other)
        self._check_form(got, len(self.other[0]))
        return self._judge([self._padded.figures(got)])

    @property
    def required_db(self) -> float:
        """Least SQNR of the worst item, in dB."""
        asked = REQUIRED_DB[self.precision]
        return asked if self.eager_db is None else min(asked, self.eager_db - NEAR_EAGER_DB)

    def _affordable_items(self) -> int:
        items = min(self.batch_size, FEW_ITEMS if self.flops is None else MAX_ITEMS)
        if self.flops:
            items = min(items, int(FP64_FLOPS / 2 / (self.flops / self.batch_size)))
        return max(items, 1)

    def _use_double(self, model: Model) -> float | None:
        """Take float64 as the reference; the SQNR of eager float32, or None if it cannot be had."""
        batches = [batch for batch in (self._measured, self._padded) if batch]
        need = 3 * 8 * max((p.numel() for p in model.module.parameters()), default=0)
        available = psutil.virtual_memory().available
        if need > MEMORY_SHARE * available:
            self.note = f"float64 would need {need / 2**30:.1f} GiB, {available / 2**30:.1f} free"
            return None
        try:
            with float64_reference(model.module):
                doubles = [model.module(*_double(batch.inputs)) for batch in batches]
        except RuntimeError as error:  # a layer that reads another's weights
            self.note = f"float64 does not run: {str(error).splitlines()[0]}"
            return None
        for batch, reference in zip(batches, doubles, strict=True):
            batch.reference = reference
        return min(batch.sqnr_db([output.double() for output in batch.eager]) for batch in batches)

    def _check_form(self, got: Outputs, batch_size: int) -> None:
        """Shapes, types, finite everywhere."""
        shapes = [tuple(output.shape) for output in got]
        wanted = [(batch_size, *output.shape[1:]) for output in self._padded.eager]
        if shapes != wanted:
            raise MeasurementError(
                f"verification failed: outputs of shapes {shapes}, eager's are {wanted}"
            )
        allowed = {torch.float32} | ({torch.bfloat16} if self.precision == "bf16" else set())
        for output in got:
            if output.dtype not in allowed:
                raise MeasurementError(
                    f"verification failed: outputs are {output.dtype}, not {self.precision}"
                )
            if bad := int((~torch.isfinite(output)).sum()):
                raise MeasurementError(
                    f"verification failed: {bad} of {output.numel()} outputs are not finite"
                )

    def _must_differ(self, first: Outputs, second: Outputs) -> None:
        """Answers to different questions differ: neither cached nor constant."""
        if any(torch.equal(one[:1], other[:1]) for one, other in zip(first, second, strict=True)):
            raise MeasurementError(
                "verification failed: another input gives the same output, equal bit for bit "
                "(difference 0): it is cached, or constant"
            )

    def _judge(self, figures: list[tuple[float, float]]) -> Verification:
        found = Verification(
            sqnr_db=min(sqnr for sqnr, _ in figures),
            eager_sqnr_db=self.eager_db,
            required_db=self.required_db,
            max_abs_error=max(error for _, error in figures),
            items=self._items,
            batch_size=self.batch_size,
            precision=self.precision,
            reference="eager" if self.eager_db is None else "fp64",
            note=self.note,
        )
        if not found.passed:
            raise MeasurementError(f"verification failed: {found}")
        return found


class _Expected:
    """Some `items` of a batch, and what eager and the reference (eager at first) answer to them."""

    def __init__(self, model: Model, batch: Inputs, items: int) -> None:
        self.items = spread(len(batch[0]), items)
        self.inputs = tuple(part[self.items] for part in batch)
        self.mask = model.mask(self.inputs)
        self.eager: Outputs = model.module(*self.inputs)
        self.reference: Outputs = self.eager

    def figures(self, outputs: Outputs) -> tuple[float, float]:
        """SQNR in dB of a whole batch's `outputs`, and their largest difference from eager."""
        picked = [output[self.items].double() for output in outputs]
        return self.sqnr_db(picked), self.max_abs_error(picked)

    def sqnr_db(self, got: list[Tensor]) -> float:
        """Signal over error of the worst item, over all outputs and unmasked positions."""
        return min(
            _sqnr_db(*map(self._unmasked, (output.double(), other)))
            for output, other in zip(self.reference, got, strict=True)
        )

    def max_abs_error(self, got: list[Tensor]) -> float:
        """Largest difference from eager float32 at unmasked positions."""
        pairs = zip(self.eager, got, strict=True)
        return max(float(self._unmasked(one - other).abs().max()) for one, other in pairs)

    def _unmasked(self, output: Tensor) -> Tensor:
        """Zero where padding is; (items, values)."""
        if self.mask is not None and output.dim() == 3 and output.shape[:2] == self.mask.shape:
            output = output.where(self.mask.unsqueeze(-1), 0.0)
        return output.flatten(1)


def _sqnr_db(reference: Tensor, got: Tensor) -> float:
    """The least over items of 10 log10(signal / error), from (items, values) of float64."""
    signal = reference.square().sum(1)
    error = (reference - got).square().sum(1)
    ratio = torch.where(error == 0, math.inf, signal / error)
    return max(-IDENTICAL_DB, min(IDENTICAL_DB, float(10 * torch.log10(ratio.min()))))


def spread(size: int, items: int) -> Tensor:
    """Indices of `items` of `size`, the first and the last among them."""
    return torch.linspace(0, size - 1, min(items, size)).round().long()


@contextmanager
def float64_reference(module: nn.Module) -> Iterator[None]:
    """Compute in float64 for a while: each layer's weights are converted as it runs.

    So a model needs no second copy of itself, twice as large.
    """
    handles = []
    for layer in module.modules():
        own = _OwnInDouble()
        handles.append(layer.register_forward_pre_hook(own.enter))
        handles.append(layer.register_forward_hook(own.leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _OwnInDouble:
    """Swaps a layer's own weights for float64 while it runs; embeddings' only where looked up."""

    def __init__(self) -> None:
        self.kept: list[tuple[dict[str, Any], str, Tensor]] = []

    def enter(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(layer, nn.Embedding):
            return given
        tensors: list[dict[str, Any]] = [layer.__dict__["_parameters"], layer.__dict__["_buffers"]]
        for own in tensors:
            for name, value in own.items():
                if value is not None and value.is_floating_point():
                    self.kept.append((own, name, value))
        for own, name, value in self.kept:
            own[name] = value.double()
        # Some models first cast what they are given to the type of weights not yet swapped.
        return _double(given)

    def leave(self, layer: nn.Module, _: Any, output: Any) -> Any:
        for own, name, value in self.kept:
            own[name] = value
        self.kept.clear()
        return output.double() if isinstance(layer, nn.Embedding) and output is not None else output


def _double(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same with tensors of floats as float64."""
    return tuple(
        part.double() if isinstance(part, Tensor) and part.is_floating_point() else part
        for part in given
    )


def count_flops(module: nn.Module, inputs: Inputs) -> int:
    """Floating-point operations of one pass over the whole batch, counted on its first item."""
    one = tuple(part[:1] for part in inputs)
    # The counter does not know the fused attention of CPUs; spelled out it is matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*one)
    return int(counter.get_total_flops()) * len(inputs[0])
