"""The models and their inputs."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.bert import BertConfig, BertForMaskedLM, BertModel
from transformers.models.resnet import ResNetConfig

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import BERT_TINY, KNOWN, Model, build, digest
from scalebench_lib.model_names import MODELS

TINY = Config(model="bert-tiny")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small pretrained model in a folder, as safetensors."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(5)
    model = BertModel(BertConfig(**BERT_TINY))
    model.save_pretrained(folder)
    return folder, model


def test_every_model_that_may_be_asked_for_can_be_built() -> None:
    """The words and the builders are in step."""
    assert set(KNOWN) == set(MODELS)


def test_bert_is_bert_base() -> None:
    """110 million parameters, 12 layers of 768, in fp32."""
    module = build(Config()).module
    parameters = list(module.parameters())
    assert sum(p.numel() for p in parameters) == 109_482_240
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not module.training


def test_random_weights_are_those_of_their_seed() -> None:
    """The same sweep measures the same model."""

    def weights(seed: int) -> torch.Tensor:
        module = build(TINY.model_copy(update={"seed": seed})).module
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.isfinite(weights(1)).all()


def test_the_digest_of_a_model_is_that_of_its_structure_and_its_weights() -> None:
    """The same seed gives the same; any weight, any layer changes it."""
    model = build(TINY)
    before = digest(model)
    assert re.fullmatch("[0-9a-f]{12}", before)
    assert digest(build(TINY)) == before
    assert digest(build(TINY.model_copy(update={"batch_size": 8, "seq_len": 32}))) == before
    assert digest(build(TINY.model_copy(update={"seed": 1}))) != before
    with torch.no_grad():
        weight = model.module.state_dict()["model.encoder.layer.1.output.dense.weight"]
        weight[-1, -1] += 1e-6
        changed = digest(model)
        weight[-1, -1] = build(TINY).module.state_dict()[
            "model.encoder.layer.1.output.dense.weight"
        ][-1, -1]
    assert changed != before
    assert digest(model) == before
    model.module.model.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.ReLU()
    assert digest(model) != before, "the same weights compute something else"


def test_the_digest_tells_settings_that_no_layer_shows(tmp_path: Path) -> None:
    """The same model in another folder is the same."""
    small = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 99}
    digests = []
    for number, changed in enumerate(({}, {}, {"scale_attn_by_inverse_layer_idx": True})):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(small | changed))
        digests.append(digest(build(Config(model=str(folder)))))
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_takes_weights_of_any_type() -> None:
    """As bf16 and counts of batches are."""
    digests = set()
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        module = torch.nn.Module()
        module.register_buffer("weights", torch.ones(4, 1, dtype=dtype).expand(4, 3))
        module.register_buffer("scalar", torch.tensor(1, dtype=dtype))
        digests.add(digest(Model(module, build(TINY).kind)))
    assert len(digests) == 3


def test_tiled_weights_are_distributed_as_bert_asks() -> None:
    """Normal with standard deviation 0.02; norms are ones, biases zero; no two rows alike."""
    state = build(TINY).module.state_dict()
    dense = state["model.encoder.layer.0.intermediate.dense.weight"]
    assert float(dense.std()) == pytest.approx(0.02, rel=0.02)
    assert float(dense.mean()) == pytest.approx(0, abs=1e-3)
    assert len(torch.unique(dense, dim=0)) == len(dense)
    attention = "model.encoder.layer.{}.attention.self.{}.weight"
    first = state[attention.format(0, "query")]
    assert not torch.equal(first, state[attention.format(0, "key")])
    assert not torch.equal(first, state[attention.format(1, "query")])
    assert (state["model.embeddings.LayerNorm.weight"] == 1).all()
    assert (state["model.encoder.layer.1.output.dense.bias"] == 0).all()


def test_random_weights_do_not_let_signals_fade_to_denormals(tmp_path) -> None:
    """CPUs are slow with them, and zeros are the same for any input."""
    CONFIG_MAPPING["mobilevit"]().save_pretrained(tmp_path)
    model = build(Config(model=str(tmp_path), image_size=64))
    with torch.inference_mode():
        outputs = model.module(*model.inputs(1, seed=1))
    assert all(output.abs().max() > torch.finfo(torch.float32).tiny for output in outputs)


def test_inputs_are_token_ids_mask_and_types() -> None:
    """Each (batch, tokens); full length unless padded."""
    ids, mask, types = build(TINY).inputs(batch_size=3, seed=0)
    assert ids.shape == mask.shape == types.shape == (3, 16)
    assert (ids[:, 0] == 101).all()
    assert (ids[:, -1] == 102).all()
    assert mask.all()
    assert not types.any()


def test_padded_inputs_have_lengths_of_their_own() -> None:
    """Padding behind the end token, masked."""
    ids, mask, _ = build(TINY).inputs(batch_size=8, seed=0, padded=True)
    lengths = mask.sum(1)
    assert len(set(lengths.tolist())) > 2
    assert (ids[mask == 0] == 0).all()
    assert all(ids[item, length - 1] == 102 for item, length in enumerate(lengths))


def test_pretrained_weights_are_loaded_from_a_folder(saved) -> None:
    """Every one of them, bit for bit."""
    folder, model = saved
    loaded = build(Config(model="bert-tiny", weights=str(folder))).module.model
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_pickled_weights_are_never_read(saved, tmp_path) -> None:
    """A pickle can run code; safetensors cannot."""
    folder, model = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MeasurementError, match="weights: cannot load"):
        build(Config(model="bert-tiny", weights=str(tmp_path)))


@pytest.mark.parametrize("weights", ["pretrained", "./no/such/folder"])
def test_weights_that_cannot_be_had_are_told_in_one_line(weights) -> None:
    """bert-tiny has none of its own on the hub."""
    with pytest.raises(MeasurementError, match=r"^weights: ") as caught:
        build(Config(model="bert-tiny", weights=weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_hidden_layers": 3}, "lacks 16 of the model's, 'encoder.layer.2"),
        ({"num_hidden_layers": 1}, "has 8 that the model has no place for, 'encoder.layer.1"),
        ({"intermediate_size": 256}, "has 6 of other shapes than the model's, 'encoder.layer.0"),
    ],
)
@pytest.mark.parametrize("head", [False, True])
def test_weights_that_are_not_those_of_the_configuration_are_told(
    tmp_path, changed: dict, told: str, head: bool
) -> None:
    described = BertConfig(**BERT_TINY)
    (BertForMaskedLM if head else BertModel)(described).save_pretrained(tmp_path)
    assert build(Config(model=str(tmp_path), weights="pretrained"))
    described.update(changed)
    described.save_pretrained(tmp_path)
    with pytest.raises(MeasurementError) as caught:
        build(Config(model=str(tmp_path), weights="pretrained"))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "architecture", "names"),
    [
        ("roberta", {"type_vocab_size": 1, "pad_token_id": 1}, 3),
        ("albert", {"embedding_size": 32}, 3),
        ("distilbert", {"dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": 128}, 2),
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2}, 2),
    ],
)
def test_a_folder_of_another_kind_is_measured_as_what_it_is(
    tmp_path, kind: str, architecture: dict, names: int
) -> None:
    """Encoders and decoders, random from its configuration or as saved."""
    small = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    general = small | {"intermediate_size": 128} if kind in ("roberta", "albert") else {}
    written = CONFIG_MAPPING[kind](**general, **architecture, vocab_size=200)
    torch.manual_seed(3)
    source = MODEL_MAPPING[type(written)](written).eval()
    source.save_pretrained(tmp_path)
    loaded = build(Config(model=str(tmp_path), weights="pretrained"))
    inputs = loaded.inputs(3, seed=0, padded=True)
    assert len(inputs) == names
    with torch.inference_mode():
        outputs = loaded.module(*inputs)
        hidden = source(input_ids=inputs[0], attention_mask=inputs[1]).last_hidden_state
        assert torch.allclose(outputs[0], hidden, atol=1e-5)
        random = build(Config(model=str(tmp_path))).module(*inputs)
    assert random[0].isfinite().all()
    assert not torch.allclose(random[0], outputs[0], atol=1e-3)


def test_a_folder_of_a_vision_model_takes_pixels(tmp_path) -> None:
    """Of the size asked for; a number of tokens means nothing to it."""
    ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]).save_pretrained(tmp_path)
    model = build(Config(model=str(tmp_path), image_size=64))
    (pixels,) = model.inputs(2, seed=0)
    assert pixels.shape == (2, 3, 64, 64)
    assert str(model.kind) == "64 × 64 pixels"
    with pytest.raises(MeasurementError, match=r"seq_len: .* takes pixel_values"):
        build(Config(model=str(tmp_path), seq_len=32))


def test_positions_of_roberta_begin_behind_its_padding(tmp_path) -> None:
    """514 positions hold 512 tokens."""
    CONFIG_MAPPING["roberta"](
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, max_position_embeddings=34
    ).save_pretrained(tmp_path)
    with torch.inference_mode():
        model = build(Config(model=str(tmp_path), seq_len=32))
        assert model.module(*model.inputs(1, seed=0))[0].isfinite().all()
    with pytest.raises(MeasurementError, match="33 tokens are more than the 32"):
        build(Config(model=str(tmp_path), seq_len=33))


def test_what_cannot_be_made_up_is_told_in_one_line(tmp_path) -> None:
    """A series of times is neither text nor images nor audio."""
    CONFIG_MAPPING["patchtst"]().save_pretrained(tmp_path)
    with pytest.raises(MeasurementError, match="takes no text, images or audio that can be made"):
        build(Config(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("distilbert", 66_362_880), ("gpt2", 124_439_808), ("resnet50", 23_508_032)],
)
def test_the_published_models_have_their_published_sizes(name: str, parameters: int) -> None:
    """From transformers' defaults; counted without memory."""
    architecture = CONFIG_MAPPING[KNOWN[name].kind]()
    with torch.device("meta"):
        module = MODEL_MAPPING[type(architecture)](architecture)
    assert sum(p.numel() for p in module.parameters()) == parameters
