"""Sabotaged models must not pass for the real one."""

import pytest
import torch
from torch import nn

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import build
from scalebench_lib.measure.optimizations import Runner
from scalebench_lib.measure.verify import TOLERANCE, count_flops, verify

MODEL = build(Config(model="bert-tiny"))
INPUTS = MODEL.inputs(12, 16, seed=0)


def checked(runner: Runner) -> float:
    """The error that verification finds for `runner`."""
    with torch.inference_mode():
        return verify(MODEL, runner, INPUTS, runner(*INPUTS), seed=0).max_abs_error


def test_the_model_itself_passes() -> None:
    """With hardly a difference: other batch sizes round differently."""
    assert checked(MODEL.module) < TOLERANCE / 10


def wrong_everywhere(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A thousandth off."""
    return tuple(output + 1e-3 for output in MODEL.module(*inputs))


def without_mask(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor):
    """Attends to padding."""
    return MODEL.module(ids, torch.ones_like(mask), types)


def not_finite(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One NaN."""
    outputs = tuple(output.clone() for output in MODEL.module(*inputs))
    outputs[1][0, 0] = float("nan")
    return outputs


class Cached(nn.Module):
    """Gives its first answer again, cut to size."""

    answer: tuple[torch.Tensor, ...] | None = None

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The first answer."""
        self.answer = self.answer or MODEL.module(*inputs)
        return tuple(output[: len(inputs[0])] for output in self.answer)


@pytest.mark.parametrize("runner", [wrong_everywhere, without_mask, not_finite, Cached()])
def test_a_runner_that_computes_something_else_is_refused(runner: Runner) -> None:
    """With the figure in the message."""
    with pytest.raises(MeasurementError, match="outputs differ from eager's by up to"):
        checked(runner)


def test_a_dropped_layer_is_refused() -> None:
    """Faster, and wrong."""
    short = build(Config(model="bert-tiny"))
    del short.module.model.encoder.layer[1]
    with pytest.raises(MeasurementError, match="verification failed"):
        checked(short.module)


def test_flops_grow_with_the_batch() -> None:
    """Two layers' products, by hand: projections, attention, feed-forward, pooler."""
    hidden, tokens, inner = 128, 16, 512
    layer = 2 * tokens * hidden * (4 * hidden + 2 * inner) + 2 * 2 * tokens * tokens * hidden
    expected = 2 * layer + 2 * hidden * hidden
    with torch.inference_mode():
        assert count_flops(MODEL.module, MODEL.inputs(1, 16, seed=0)) == expected
        assert count_flops(MODEL.module, INPUTS) == 12 * expected
