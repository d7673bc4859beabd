"""Small folders of many kinds: each is measured as what it says it is, or refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from scalebench_lib.config import Config
from scalebench_lib.measure.models import build
from scalebench_lib.measure.preflight import reason_against
from scalebench_lib.model_names import TASKS, resolved_task
from scalebench_lib.record import model_files_digest
from tests.architectures import SMALL, VISION

GROUPED = SMALL | {"num_key_value_heads": 2, "layer_types": None}
BOTH = {
    "d_model": 32,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
    "vocab_size": 200,
    "max_position_embeddings": 64,
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 8,
}
SPEECH = {"max_source_positions": 50, "max_target_positions": 32, "num_mel_bins": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
WAVES = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
TEXT = {"text_config": SMALL | {"bos_token_id": 198, "eos_token_id": 199}}
DECODER = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2}
MAE = VISION | DECODER | {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 64}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 200}


def write(folder: Path, kind: str, values: dict[str, Any], architecture: str) -> str:
    """Write a ``config.json`` as people have it; return its folder."""
    written = {"model_type": kind, "architectures": [architecture], **values}
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "values", "architecture", "item", "outputs"),
    [
        ("roberta", SMALL, "RobertaForSequenceClassification", "16 tokens", ["logits"]),
        (
            "deberta-v2",
            SMALL | RELATIVE,
            "DebertaV2ForTokenClassification",
            "16 tokens",
            ["logits"],
        ),
        (
            "longformer",
            SMALL | {"attention_window": [32]},
            "LongformerForTokenClassification",
            "16 tokens, padded to 32",
            ["logits"],
        ),
        (
            "t5",
            T5,
            "T5ForConditionalGeneration",
            "16 tokens and 16 decoder tokens",
            ["logits", "encoder_last_hidden_state"],
        ),
        ("t5", T5, "T5EncoderModel", "16 tokens", ["last_hidden_state"]),
        (
            "bart",
            BOTH,
            "BartModel",
            "16 tokens and 16 decoder tokens",
            ["last_hidden_state", "encoder_last_hidden_state"],
        ),
        (
            "opt",
            SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
            "OPTForCausalLM",
            "16 tokens",
            ["logits"],
        ),
        ("qwen2", GROUPED, "Qwen2ForCausalLM", "16 tokens", ["logits"]),
        ("llama", GROUPED, "LlamaForCausalLM", "16 tokens", ["logits"]),
        (
            "mixtral",
            GROUPED | {"num_local_experts": 16},
            "MixtralForCausalLM",
            "16 tokens",
            ["logits"],
        ),
        ("vit", VISION, "ViTForImageClassification", "32 × 32 pixels", ["logits"]),
        (
            "convnext",
            {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
            "ConvNextModel",
            "32 × 32 pixels",
            ["last_hidden_state", "pooler_output"],
        ),
        (
            "whisper",
            BOTH | SPEECH | IDS,
            "WhisperForConditionalGeneration",
            "1 s of audio and 16 decoder tokens",
            ["logits", "encoder_last_hidden_state"],
        ),
        ("wav2vec2", SMALL | WAVES, "Wav2Vec2ForCTC", "10 s of audio", ["logits"]),
        (
            "canine",
            SMALL | {"num_hash_buckets": 64, "local_transformer_stride": 8},
            "CanineForSequenceClassification",
            "16 tokens",
            ["logits"],
        ),
        (
            "xmod",
            SMALL | {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
            "XmodForMaskedLM",
            "16 tokens",
            ["logits"],
        ),
        (
            "clip",
            TEXT | {"vision_config": VISION, "projection_dim": 16},
            "CLIPModel",
            "16 tokens and 32 × 32 pixels",
            ["text_embeds", "image_embeds"],
        ),
        (
            "videomae",
            VISION | {"num_frames": 4},
            "VideoMAEForVideoClassification",
            "4 frames of 32 × 32 pixels",
            ["logits"],
        ),
    ],
)
def test_a_folder_is_measured_as_what_it_says(
    tmp_path: Path, kind: str, values: dict, architecture: str, item: str, outputs: list[str]
) -> None:
    """Built, run, verified in float64; its inputs and outputs are those of its own class."""
    model = write(tmp_path, kind, values, architecture)
    size = {"image_size": 32} if "pixels" in item else {}
    config = Config(model=model, task=resolved_task(model, "auto"), **size)
    assert reason_against([config]) is None
    with torch.inference_mode():
        built = build(config)
    assert type(built.module.model).__name__ == architecture
    assert (str(built.kind), [".".join(place) for place in built.module.outputs]) == (item, outputs)
    assert ("logits_per_image (not of single items)" in built.note) == (kind == "clip")


@pytest.mark.parametrize(
    ("kind", "values", "architecture", "reason"),
    [
        ("vit_mae", MAE, "ViTMAEForPreTraining", r"in 'vit\.embeddings' \(ViTMAEEmbeddings\)"),
        ("xmod", SMALL | {"languages": ["en_XX"]}, "XmodModel", "Input language unknown"),
        (
            "gpt2",
            {"n_embd": 8, "n_layer": 1, "n_head": 2},
            "GPT2ForSequenceClassification",
            "padding token",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_once(
    tmp_path: Path, kind: str, values: dict, architecture: str, reason: str
) -> None:
    """By the preflight, in one line that says why."""
    model = write(tmp_path, kind, values, architecture)
    size = {"image_size": 32} if kind == "vit_mae" else {}
    config = Config(model=model, task=resolved_task(model, "auto"), **size)
    found = str(reason_against([config]))
    assert re.search(reason, found), found
    assert "\n" not in found


def test_every_task_is_one_of_transformers() -> None:
    """Or it would be refused of any model."""
    names = {name.lower() for name in vars(modeling_auto)}
    assert {f"automodelfor{task.replace('-', '')}" for task in TASKS} <= names


def test_weights_in_several_files_are_loaded_and_known(tmp_path: Path) -> None:
    """Sharded, with a head whose weights are those of the embeddings."""
    architecture = CONFIG_MAPPING["gpt2"](n_embd=16, n_layer=1, n_head=2, vocab_size=99)
    source = modeling_auto.AutoModelForCausalLM.from_config(architecture).eval()
    source.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = Config(model=str(tmp_path), weights="pretrained", task="causal-lm")
    built, before = build(config), model_files_digest(config)
    ids, mask = built.inputs(2, seed=0)
    with torch.inference_mode():
        assert torch.equal(built.module(ids, mask)[0], source(ids, attention_mask=mask).logits)
    next(tmp_path.glob("*.safetensors")).touch()
    assert model_files_digest(config) == before
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    assert model_files_digest(config) != before
