"""Decoders generate: prefill fills a static cache, decode computes one token after it."""

import json
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import StaticLayer

from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure import models
from scalebench_lib.measure.generation import bytes_to_read
from scalebench_lib.measure.optimizations import base, native
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.preflight import reason_against
from scalebench_lib.measure.trial import measure
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.optimizations import OPTIMIZATIONS

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 200,
    "max_position_embeddings": 24,
}
GROUPED = SMALL | {"num_key_value_heads": 1}
KINDS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 200, "n_positions": 24},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": GROUPED | {"num_local_experts": 16},
}
GENERATING = ("prefill", "decode")


@pytest.fixture
def tiny(tmp_path: Path):
    """Writes the ``config.json`` of a small decoder, and returns a config of it."""

    def write(kind: str, phase: str = "decode", values: object = None, **asked: object) -> Config:
        given = {"model_type": kind, **(values or KINDS[kind])}
        (tmp_path / "config.json").write_text(json.dumps(given), encoding="utf-8")
        return Config(model=str(tmp_path), phase=phase, **{"seq_len": 8, **asked})

    return write


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def verified(config: Config, model: models.Model, batch_size: int = 3) -> None:
    """Verify what the optimization of `config` makes of `model`."""
    inputs, chosen = model.inputs(batch_size, 0), OPTIMIZATIONS[config.optimization]
    verifier = Verifier(model, inputs, chosen.precision, thorough=True, any_batch=chosen.any_batch)
    optimized = chosen.apply(Target(model, inputs, config))
    verifier.check(optimized.runner(torch.get_num_threads()))


@pytest.mark.parametrize(
    ("kind", "phase"), [*((kind, "decode") for kind in KINDS), ("gpt2", "prefill")]
)
def test_the_logits_are_those_of_a_full_pass(tiny, kind: str, phase: str) -> None:
    """Verified as before a sweep."""
    assert reason_against([tiny(kind, phase)]) is None


def test_inputs_are_whole_sequences_and_room_for_their_keys_and_values(tiny) -> None:
    tokens, *cache = models.build(tiny("llama")).inputs(3, 1)
    assert tokens.shape == (3, 8 + 1)
    assert {tuple(part.shape) for part in cache} == {(3, 1, 8 + 1, 16)}
    assert len(cache) == 2 * 2


def test_each_pass_computes_the_same(tiny) -> None:
    """The same position is written again."""
    model = models.build(tiny("llama"))
    inputs = model.inputs(2, 1)
    first, again = model.module(*inputs)[0], model.module(*inputs)[0]
    assert torch.equal(first, again)


def test_batches_share_a_past_and_end_in_tokens_of_their_own(tiny) -> None:
    """Their caches would need a lot of memory; a padded batch has another past."""
    model = models.build(tiny("gpt2"))
    one, other = model.inputs(4, 1), model.inputs(4, 2)
    assert all(a is b for a, b in zip(one[1:], other[1:], strict=True))
    assert torch.equal(one[0][:, :-1], other[0][:, :-1])
    assert not torch.equal(one[0][:, -1], other[0][:, -1])
    assert not torch.equal(one[0][:, :-1], model.inputs(4, 1, padded=True)[0][:, :-1])


@pytest.mark.parametrize("broken", ["past", "own"])
def test_a_wrong_cache_is_noticed(tiny, broken: str, monkeypatch) -> None:
    """The past of another sequence, or keys and values of its own that are not written."""
    config = tiny("gpt2")
    model = models.build(config)
    inputs = model.inputs(2, 0)
    verifier = Verifier(model, inputs)
    if broken == "past":
        verifier.inputs = (inputs[0], *(part.roll(1, 2) for part in inputs[1:]))
    else:
        kept = lambda layer, *_: (layer.keys, layer.values)  # noqa: E731
        monkeypatch.setattr(StaticLayer, "update", kept)
    with pytest.raises(MeasurementError, match="verification failed: error"):
        verifier.check(model.module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "phase", "needed"),
    [
        ("script", "prefill", "torch"),
        ("script", "decode", "torch"),
        ("onnxruntime", "decode", "onnxscript"),
        ("openvino", "decode", "openvino"),
    ],
)
def test_optimizations_take_the_cache_as_an_input(tiny, name: str, phase: str, needed: str) -> None:
    pytest.importorskip(needed)
    config = tiny("llama", phase, optimization=name)
    verified(config, models.build(config))


def test_bf16_keeps_the_cache_in_bf16(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cast before the turns, once for all batches, which go on sharing it."""
    monkeypatch.setattr(base, "has_native_matmul", lambda _: True)
    config = tiny("gpt2", optimization="bf16")
    model = models.build(config)
    verified(config, model)
    batches = [model.inputs(2, seed) for seed in (1, 2)]
    one, other = native.low_precision(Target(model, batches[0], config)).prepare(batches)
    assert one[0].dtype == torch.int64
    assert {part.dtype for part in one[1:]} == {torch.bfloat16}
    assert all(a is b for a, b in zip(one[1:], other[1:], strict=True))


@pytest.mark.stress
def test_compile_does_not_compile_anew_from_pass_to_pass(tiny) -> None:
    config = tiny("llama", optimization="compile")
    record = measure(Trial(config=config, threads=(1,), max_seconds=0.5), Machine.here())
    assert record.status == "ok", record.reason


def test_a_trial_records_what_each_pass_reads(tiny) -> None:
    """Weights but for tables that are looked up, and the cache; and how fast that can be."""
    config = tiny("gpt2", batch_size=2)
    trial = Trial(config=config, threads=(1,), max_seconds=0.1, target_ci=0.5)
    record = measure(trial, Machine.here())
    assert record.status == "ok", record.reason
    assert record.item == "1 token after 8"
    layer = 12 * 32 * 32 + 13 * 32
    cache = 2 * 2 * config.batch_size * config.positions * 32
    assert record.bytes_to_read == 4 * (200 * 32 + 2 * layer + 2 * 32 + cache)
    assert record.read_gb_per_s[1] > 0


def test_which_experts_are_read_is_not_known(tiny) -> None:
    model = models.build(tiny("mixtral"))
    assert bytes_to_read(model.module, "fp32", model.inputs(1, 0)[1:]) is None


def test_a_phase_changes_no_weights(tiny) -> None:
    """Points of both are of one model."""
    prefill, decode = (models.digest(models.build(tiny("gpt2", phase))) for phase in GENERATING)
    assert prefill == decode


@pytest.mark.parametrize(
    ("kind", "asked", "reason"),
    [
        ("bert", {"values": SMALL}, "is 'bert', which is no decoder that generates"),
        ("vit", {"values": {"image_size": 32}}, "is 'vit', which is no decoder that generates"),
        ("bart", {"values": {"d_model": 32}}, "is 'bart', which is no decoder that generates"),
        ("mistral", {"values": GROUPED}, "cache does not hold all tokens (StaticSlidingWindow"),
        ("gpt2", {"seq_len": 24}, "seq_len: 1 token after 24 has more than the 24 positions"),
        ("llama", {"seq_len": 24}, "seq_len: 1 token after 24 has more than the 24 positions"),
        ("llama", {"seq_len": 25, "phase": "prefill"}, "seq_len: 25 tokens has more than the 24"),
    ],
)
def test_what_cannot_generate_is_refused_in_one_line(tiny, kind, asked, reason) -> None:
    found = reason_against([tiny(kind, **asked)])
    assert reason in str(found)
    assert "\n" not in str(found)
