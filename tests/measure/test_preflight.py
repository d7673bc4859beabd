"""Folders that cannot be measured are told in one line, before anything is measured."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from scalebench_lib.config import Config
from scalebench_lib.measure import models, preflight
from scalebench_lib.measure.preflight import reason_against
from tests.architectures import SMALL, VISION

OPT = SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 24}
DEBERTA = SMALL | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}

Folder = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a ``config.json`` as people have it, right or wrong, and returns its folder."""

    def write(kind: str, values: dict[str, Any] = SMALL, **more: object) -> str:
        described = json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
        text = json.dumps({**described, **values, **more, "model_type": kind})
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("kind", "values", "asked", "reason"),
    [
        ("opt", OPT, {"seq_len": 25}, "seq_len: 25 tokens are more than the 24 that this model"),
        ("bert", {"pad_token_id": 99_999}, {}, "cannot be built: Padding_idx must be within"),
        ("bert", {"_attn_implementation": "flash_attention_2"}, {}, "cannot be built: FlashAtt"),
        ("bert", {"hidden_act": "nope"}, {}, "cannot be built: KeyError: 'nope'"),
        ("bert", {"hidden_size": 33}, {}, "cannot be built: The hidden size (33) is not"),
        ("bert", {"vocab_size": "200"}, {}, "cannot load"),
        ("bert", {"auto_map": {"AutoModel": "x.X"}}, {}, "'bert' in fp32 would be measured inst"),
        ("bert", {"quantization_config": {"quant_method": "gptq"}}, {}, "take 'quantization_conf"),
        ("bert", {"compression_config": {"bits": 4}}, {}, "has quantized weights"),
        ("gpt2", {}, {"task": "ctc"}, "build for task 'ctc'; of its kind there are: none,"),
        (
            "bert",
            {"architectures": ["BertGenerationEncoder"]},
            {},
            "'BertGenerationEncoder', which",
        ),
        ("vit", VISION, {"image_size": 48}, "image_size: "),
        ("vit_mae", VISION, {"image_size": 32}, "answers the same input differently: cannot be v"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    folder: Folder, kind: str, values: dict[str, Any], asked: dict[str, Any], reason: str
) -> None:
    found = reason_against([Config(model=folder(kind, values), **asked)])
    assert found is not None
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "values", [{"num_hidden_layers": 10**6}, {"num_hidden_layers": 9_999}, {"vocab_size": 10**12}]
)
def test_more_than_the_machine_holds_is_refused_before_it_is_built(
    folder: Folder, values: dict[str, int], monkeypatch
) -> None:
    """In seconds: layers are no longer made once there are too many, though they are small."""
    monkeypatch.setattr(models, "MAX_TENSORS", 1_000)
    found = reason_against([Config(model=folder("bert", SMALL | values))])
    assert found is not None
    assert "GiB of weights in fp32, in " in found


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("deberta", DEBERTA),
        ("deberta-v2", DEBERTA | {"position_buckets": 8, "share_att_key": True}),
        ("bert", SMALL | {"return_dict": False}),
        ("bert", SMALL | {"output_attentions": True, "output_hidden_states": True}),
        ("bert", SMALL | {"is_decoder": True}),
        ("opt", OPT),
        ("vit", VISION),
    ],
)
def test_what_can_be_measured_is_let_through(
    folder: Folder, kind: str, values: dict[str, Any]
) -> None:
    size = {"image_size": 32} if kind == "vit" else {"seq_len": 24}
    assert reason_against([Config(model=folder(kind, values), **size)]) is None


def test_every_size_is_run(folder: Folder) -> None:
    model = folder("opt", OPT)
    found = reason_against([Config(model=model, seq_len=length) for length in (8, 16, 40)])
    assert found == "seq_len: 40 tokens are more than the 24 that this model takes"


def test_of_large_models_the_shapes_alone_are_looked_at(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MAX_WEIGHT_BYTES", 0)
    monkeypatch.setattr(models, "_tiled_random", lambda seed: pytest.fail("weights are drawn"))
    bert = folder("bert")
    assert reason_against([Config(model=bert)]) is None
    reason = "seq_len: 67 tokens are more than the 66 that this model takes"
    assert reason_against([Config(model=bert, seq_len=67)]) == reason
    assert reason_against([Config(model=bert, weights="pretrained")]) == (
        f"weights: cannot load {bert!r}: no safetensors"
    )
    vision = folder("vit", VISION)
    assert reason_against([Config(model=vision, image_size=32)]) is None
    assert "image_size" in str(reason_against([Config(model=vision, image_size=48)]))


def test_quantized_weights_of_another_folder_are_refused(folder: Folder) -> None:
    weights = folder("bert", quantization_config={"quant_method": "bitsandbytes"})
    found = reason_against([Config(model="bert-tiny", weights=weights)])
    assert str(found).startswith(f"weights: {weights!r} has quantized weights")


def test_a_folder_with_an_adapter_is_not_measured_without_it(folder: Folder) -> None:
    model = folder("bert")
    Path(model, "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "has an adapter (adapter_config.json)" in str(reason_against([Config(model=model)]))


def test_memory_that_ends_is_not_called_the_models_fault(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 3 bytes")

    monkeypatch.setattr(models.Plain, "answer", allocate)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        models.build(Config(model=folder("bert")))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A place in the network that takes calls, and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(models, "HUB_ANSWERS_S", 0.5)
        # Once a day its client asks for names of agents, and waits for 3 s.
        who = "huggingface_hub.utils._headers.detect_agent"
        monkeypatch.setattr(who, lambda: None, raising=False)
        yield server


def test_without_a_network_a_hub_id_is_refused_at_once(hub: socket.socket) -> None:
    """Whether calls are refused or never answered; the hub's own client tries for half a minute."""
    for config in (Config(model="some/model"), Config(model="bert-tiny", weights="some/weights")):
        found = reason_against([config])
        assert f"was never downloaded, and {constants.ENDPOINT} cannot be reached" in str(found)
    hub.close()
    assert "Connection refused" in str(reason_against([Config(model="some/model")]))


def test_what_was_downloaded_is_loaded_without_a_network(
    hub: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the hub's cache, and nobody is asked whether there is something newer."""
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    small = CONFIG_MAPPING["bert"](**SMALL)
    MODEL_MAPPING[type(small)](small).save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.setblocking(False)
    assert reason_against([Config(model="some/model", weights="pretrained")]) is None
    with pytest.raises(BlockingIOError):
        hub.accept()
