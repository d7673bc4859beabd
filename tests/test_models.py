"""The models and their inputs."""

import pytest
import torch
from transformers.models.bert import BertConfig, BertModel

from scalebench_lib.config import MODELS, Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import BERT_TINY, KNOWN, build

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
