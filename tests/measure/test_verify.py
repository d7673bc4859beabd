"""Sabotaged models must not pass for the real one."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.vit import ViTConfig

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import Model, build
from scalebench_lib.measure.optimizations.base import Runner
from scalebench_lib.measure.verify import Float64Mode, Verifier, count_flops, evenly_spaced
from scalebench_lib.record import Verification
from tests.measure.sabotage import heavy_layers

MODEL = build(Config(model="bert-tiny"))
INPUTS = MODEL.inputs(12, seed=0)


def checked(runner: Runner, **how: object) -> Verification:
    """What verification finds of `runner`."""
    with torch.inference_mode():
        return Verifier(MODEL, INPUTS, **how).check(runner)


def test_the_model_itself_passes() -> None:
    """Against float64, on 8 items of 12, and says so in a sentence."""
    found = checked(MODEL.module)
    assert found.reference == "fp64"
    assert 105 < found.eager_sqnr_db < 160
    assert abs(found.sqnr_db - found.eager_sqnr_db) < 6
    assert "against fp64" in str(found)
    assert "worst of 8 items" in str(found)


def test_a_trial_that_is_not_the_first_compares_with_eager_alone() -> None:
    """Cheaply, and says so."""
    found = checked(MODEL.module, thorough=False)
    assert (found.reference, found.eager_sqnr_db, found.items) == ("eager", None, 1)
    assert "against eager" in str(found)


def test_the_reference_is_the_model_in_float64_which_is_left_as_it_was() -> None:
    """Each function widens its own arguments; nothing of the model is converted."""
    double = copy.deepcopy(MODEL.module).double()
    with torch.inference_mode():
        expected = MODEL.module(*INPUTS)
        with Float64Mode():
            reference = MODEL.module(*INPUTS)
        for one, other in zip(reference, double(*INPUTS), strict=True):
            assert one.dtype == torch.float64
            assert torch.equal(one, other)
        assert {p.dtype for p in MODEL.module.parameters()} == {torch.float32}
        assert torch.equal(MODEL.module(*INPUTS)[0], expected[0])


def test_a_model_that_casts_to_float32_is_computed_in_float64_all_the_same() -> None:
    """As norms and rotary positions do, whatever the type of the model."""

    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.float().to(torch.float32).div(3).add_(torch.zeros(2, dtype=torch.float32))

    with Float64Mode():
        assert torch.equal(cast(torch.ones(2)), torch.ones(2, dtype=torch.float64) / 3)


@pytest.mark.parametrize("thorough", [True, False])
def test_a_batch_of_one_is_compared_with_padding_too(thorough: bool) -> None:
    """Its own item has none, and a mask that is ignored would not be seen."""
    with torch.inference_mode():
        verifier = Verifier(MODEL, MODEL.inputs(1, seed=0), thorough=thorough, any_batch=True)
        verifier.check(MODEL.module)
        with pytest.raises(MeasurementError, match="verification failed"):
            verifier.check(without_mask)


def test_models_of_pixels_are_verified_in_float64_too(tmp_path) -> None:
    """A vision transformer casts its pixels to the type of its weights."""
    ViTConfig(
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
    ).save_pretrained(tmp_path)
    model = build(Config(model=str(tmp_path), image_size=32))
    with torch.inference_mode():
        found = Verifier(model, model.inputs(2, seed=0)).check(model.module)
    assert (found.reference, found.note) == ("fp64", None)
    assert found.sqnr_db > 100


def test_where_float64_does_not_fit_eager_is_the_reference(monkeypatch) -> None:
    """Never silently."""
    monkeypatch.setattr("scalebench_lib.measure.verify.MEMORY_SHARE", 0.0)
    found = checked(MODEL.module)
    assert found.reference == "eager"
    assert "float64 would need" in str(found)


def test_long_items_are_compared_by_fewer(monkeypatch) -> None:
    """The reference costs a bounded time; the sentence says how many."""
    monkeypatch.setattr("scalebench_lib.measure.verify.FP64_FLOPS", 1.0)
    assert checked(MODEL.module).items == 1


def wrong_everywhere(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A thousandth off."""
    return tuple(output + 1e-3 for output in MODEL.module(*inputs))


def without_mask(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor):
    """Attends to padding."""
    return MODEL.module(ids, torch.ones_like(mask), types)


def not_finite(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One NaN, in an item that is not compared."""
    outputs = tuple(output.clone() for output in MODEL.module(*inputs))
    outputs[1][-2, 0] = float("nan")
    return outputs


def constant(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same for every item."""
    return tuple(output[:1].expand_as(output) for output in MODEL.module(*INPUTS))


class Cached(nn.Module):
    """Gives its first answer again."""

    answer: tuple[torch.Tensor, ...] | None = None

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The first answer."""
        self.answer = self.answer or MODEL.module(*inputs)
        return self.answer


class Half(nn.Module):
    """A float16 model that hands out float32."""

    def __init__(self) -> None:
        super().__init__()
        self.half_model = build(Config(model="bert-tiny")).module.half()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Half precision, cast."""
        return tuple(output.float() for output in self.half_model(*inputs))


def dropped_layer() -> nn.Module:
    """Faster, and wrong."""
    short = build(Config(model="bert-tiny")).module
    del short.model.encoder.layer[1]
    return short


def cast(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Outputs of another type."""
    return tuple(output.half() for output in MODEL.module(*inputs))


def fewer(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Leaves an output out."""
    return MODEL.module(*inputs)[:1]


@pytest.mark.parametrize(
    ("runner", "figures"),
    [
        (wrong_everywhere, r"error −\d+ dB against fp64"),
        (without_mask, r"error [−+]\d+ dB against fp64"),
        (not_finite, "1 of 1536 outputs are not finite"),
        (constant, "another input gives the same output"),
        (Cached(), "another input gives the same output"),
        (Half(), r"error −\d+ dB against fp64 .fp32 must have −90 or less"),
        (dropped_layer(), r"error [−+]\d+ dB against fp64"),
        (cast, "outputs are torch.float16, not fp32"),
        (fewer, "outputs of shapes"),
    ],
)
def test_a_runner_that_computes_something_else_is_refused(runner: Runner, figures: str) -> None:
    """With the figure in the message."""
    with pytest.raises(MeasurementError, match=f"verification failed: .*{figures}"):
        checked(runner)


class Drawing(nn.Module):
    """Drops another value in every pass, as a masked autoencoder does."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Half of the values, drawn anew."""
        return tuple(output * (torch.rand_like(output) > 0.5) for output in MODEL.module(*inputs))


class Imprecise(nn.Module):
    """Loses most digits of float32, none of float64's."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The output as a small difference of large numbers."""
        return tuple(output + 3e6 - 3e6 for output in MODEL.module(*inputs))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Drawing(), "answers the same input differently: cannot be verified"),
        (
            Imprecise(),
            "eager fp32 itself has an error of .* dB against fp64, more than −40: cannot be",
        ),
    ],
)
def test_a_model_that_is_no_reference_is_refused(module: nn.Module, reason: str) -> None:
    """Whatever computes it would pass: all that is asked is to be about as wrong as eager."""
    with torch.inference_mode(), pytest.raises(MeasurementError, match=reason):
        Verifier(Model(module, MODEL.kind), INPUTS)


@pytest.fixture(scope="module")
def deep():
    return heavy_layers()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precision_is_no_excuse(deep, precision: str) -> None:
    """The bars of bf16 and int8 are above what a wrong model reaches."""
    short = copy.deepcopy(deep.module)
    del short.model.encoder.layer[1]
    inputs = deep.inputs(4, seed=0)
    with torch.inference_mode():
        verifier = Verifier(deep, inputs, precision)
        assert verifier.check(deep.module).passed
        for wrong in (short, lambda ids, mask, types: deep.module(ids, mask | 1, types)):
            with pytest.raises(MeasurementError, match=f"{precision} must have"):
                verifier.check(wrong)


def test_bf16_passes_as_bf16_and_not_as_fp32() -> None:
    """Its error is its own."""
    half = build(Config(model="bert-tiny")).module.bfloat16()
    assert 30 < checked(half, precision="bf16").sqnr_db < 60
    with pytest.raises(MeasurementError, match="not fp32"):
        checked(half)


def test_what_breaks_while_timing_is_found_afterwards() -> None:
    """On either batch; where the outputs of a timed pass are known, these are compared."""
    short = dropped_layer()

    def wrong_on(ids: torch.Tensor) -> Runner:
        return lambda *batch: (short if batch[0] is ids else MODEL.module)(*batch)

    with torch.inference_mode():
        verifier = Verifier(MODEL, INPUTS)
        assert verifier.check(MODEL.module).sqnr_db > 90
        for ids, *_ in (verifier.inputs, verifier.padded):
            with pytest.raises(MeasurementError, match="verification failed: error"):
                verifier.check(wrong_on(ids))
        timed = MODEL.module(*INPUTS)
        assert verifier.check(wrong_on(verifier.inputs[0]), timed).sqnr_db > 90
        with pytest.raises(MeasurementError, match="verification failed: error"):
            verifier.check(MODEL.module, short(*INPUTS))


@pytest.mark.parametrize("thorough", [True, False])
def test_a_batch_is_computed_anew_only_where_its_outputs_are_not_known(thorough: bool) -> None:
    """A large one costs seconds; of any size, only the items to compare are computed."""
    sizes: list[int] = []

    def run(*batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(batch[0]))
        return MODEL.module(*batch)

    with torch.inference_mode():
        verifier = Verifier(MODEL, INPUTS, thorough=thorough, any_batch=True)
        verifier.check(run, MODEL.module(*INPUTS))
        assert sizes == [8 if thorough else 1]
        verifier.check(run)
        assert sizes[1:] == [12, sizes[0]]


def test_a_batch_of_one_is_verified_with_padding_too() -> None:
    """Where the runner takes one item alone, that item is padded."""
    one = MODEL.inputs(1, seed=0)
    with torch.inference_mode(), pytest.raises(MeasurementError, match="verification failed"):
        Verifier(MODEL, one).check(without_mask)


def test_items_are_compared_from_the_first_to_the_last() -> None:
    """An error at the end of a batch is found."""
    assert evenly_spaced(64, 8).tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert evenly_spaced(3, 8).tolist() == [0, 1, 2]


def test_flops_grow_with_the_batch() -> None:
    """Two layers' products, by hand: projections, attention, feed-forward, pooler."""
    hidden, tokens, inner = 128, 16, 512
    layer = 2 * tokens * hidden * (4 * hidden + 2 * inner) + 2 * 2 * tokens * tokens * hidden
    expected = 2 * layer + 2 * hidden * hidden
    with torch.inference_mode():
        assert count_flops(MODEL.module, MODEL.inputs(1, seed=0)) == expected
        assert count_flops(MODEL.module, INPUTS) == 12 * expected
