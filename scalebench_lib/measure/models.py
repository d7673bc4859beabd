"""The models: each built from its published configuration, or from a folder or hub id.

Weights are drawn at random or loaded from safetensors. To add a model: enter the name that
transformers has for it in `KNOWN`, and give it a title in `config.MODELS`.
"""

from __future__ import annotations

import hashlib
import inspect
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.bert import BertModel
from transformers.utils import logging as transformers_logging

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs, Pixels, Tokens

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

IMPORTED = BertModel
"""Imported with this module, and so before a warm kernel is forked; other kinds when built."""


@dataclass(frozen=True)
class Known:
    """A published model: its kind in transformers, where its weights lie, what is not default."""

    kind: str
    hub_id: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)


BERT_TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}

KNOWN = {
    "bert": Known("bert", "google-bert/bert-base-uncased"),
    "bert-tiny": Known("bert", architecture=BERT_TINY),
    "distilbert": Known("distilbert", "distilbert/distilbert-base-uncased"),
    "gpt2": Known("gpt2", "openai-community/gpt2"),
    "resnet50": Known("resnet", "microsoft/resnet-50"),
}
"""The models by name: the defaults of their configurations are the published ones."""

_UNCASED_VOCABULARY, _CLS, _SEP = 30_522, 101, 102
"""BERT's uncased vocabulary, and its ids for start and end, which configurations do not hold."""

_TILE = 1_000_003
"""How many random numbers weights are tiled from; prime, so that no two rows are alike."""


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode that maps inputs of its kind to a tuple of tensors.

    `str(model.kind)` describes an item: ``16 tokens``.
    """

    module: nn.Module
    kind: Tokens | Pixels

    def inputs(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch; `padded` gives texts lengths of their own, as real batches have."""
        return self.kind.make(batch_size, seed, padded)


class Plain(nn.Module):
    """A transformers model with positional inputs and plain tensors out, as tracing needs."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the last hidden state (batch, tokens, hidden), and the pooled output if any."""
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)


def build(config: Config) -> Model:
    """Build the model of `config` with its weights, in evaluation mode, fp32.

    Raises `MeasurementError` if it or its weights cannot be had or do not fit the config.
    """
    known = KNOWN.get(config.model)
    architecture = _architecture(config, known)
    model_class = _model_class(config, architecture)
    kind, names = _kind(config, architecture, model_class)
    weights = _weights(config, known, model_class, architecture)
    model = Model(Plain(weights, names).eval(), kind)
    _require_size(config, model)
    return model


def digest(model: Model) -> str:
    """Return 12 hex digits that change with the model's structure or any of its weights."""
    found = hashlib.sha256(f"{model.module} {_settings(model)}".encode())
    for name, part in model.module.state_dict().items():
        weights = part.detach().contiguous().flatten().view(torch.uint8).numpy()
        # By far the fastest that the standard library has; SHA-256 would take twice as long.
        found.update(f"{name} {part.dtype} {tuple(part.shape)} {zlib.crc32(weights)}".encode())
    return found.hexdigest()[:12]


def _settings(model: Model) -> dict[str, Any]:
    """What of its configuration is not as usual; some of it shows in no module's description."""
    config = getattr(getattr(model.module, "model", None), "config", None)
    settings = config.to_diff_dict() if config else {}
    elsewhere = ("_name_or_path", "transformers_version")  # where it came from, and by what
    return {name: settings[name] for name in sorted(settings) if name not in elsewhere}


def _architecture(config: Config, known: Known | None) -> Any:
    if known:
        architecture = CONFIG_MAPPING[known.kind](**known.architecture)
    else:
        try:
            architecture = AutoConfig.from_pretrained(config.model, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise MeasurementError(
                f"model: cannot load {config.model!r}: {first_line(error)}"
            ) from None
    architecture.use_cache = False
    return architecture


def _model_class(config: Config, architecture: Any) -> Any:
    if type(architecture) not in MODEL_MAPPING or architecture.is_encoder_decoder:
        raise MeasurementError(
            f"model: {config.model!r} is {architecture.model_type!r}, which is no encoder, "
            "decoder or vision model that transformers builds alone"
        )
    return MODEL_MAPPING[type(architecture)]


def _kind(
    config: Config, architecture: Any, model_class: Any
) -> tuple[Tokens | Pixels, tuple[str, ...]]:
    """The kind of inputs, and the names of the arguments that take them."""
    arguments = set(inspect.signature(model_class.forward).parameters)
    if {"input_ids", "attention_mask"} <= arguments and "pixel_values" not in arguments:
        _require_default(config, "image_size", "text")
        kind = _tokens(config, architecture, "token_type_ids" in arguments)
        return kind, ("input_ids", "attention_mask", "token_type_ids")[: 2 + kind.types]
    if "pixel_values" in arguments and "input_ids" not in arguments:
        _require_default(config, "seq_len", "images")
        channels = getattr(architecture, "num_channels", 3)
        return Pixels(config.image_size, channels), ("pixel_values",)
    raise MeasurementError(
        f"model: {config.model!r} takes neither text nor images alone, but "
        f"{model_class.main_input_name}"
    )


def _require_default(config: Config, size: str, taken: str) -> None:
    """A size that means nothing to a model is not an axis to measure it along."""
    if getattr(config, size) != Config.model_fields[size].default:
        raise MeasurementError(f"{size}: {config.model!r} takes {taken}: leave {size} out")


def _tokens(config: Config, architecture: Any, takes_types: bool) -> Tokens:
    def special(name: str) -> int | None:
        value = getattr(architecture, f"{name}_token_id", None)
        return value if isinstance(value, int) and 0 <= value < vocabulary else None

    vocabulary = architecture.vocab_size
    uncased = vocabulary == _UNCASED_VOCABULARY
    return Tokens(
        seq_len=config.seq_len,
        vocabulary=vocabulary,
        pad=special("pad") or 0,
        start=_CLS if uncased else special("bos"),
        end=_SEP if uncased else special("eos"),
        types=takes_types and getattr(architecture, "type_vocab_size", 0) > 0,
    )


def _weights(config: Config, known: Known | None, model_class: Any, architecture: Any) -> Any:
    if config.weights == "random":
        with _tiled_random(config.seed):
            return model_class._from_config(architecture, dtype=torch.float32)
    own = known.hub_id if known else config.model
    source = own if config.weights == "pretrained" else config.weights
    if source is None:
        raise MeasurementError(
            f"weights: {config.model} has no published ones: use 'random' or a folder"
        )
    return _pretrained(model_class, source, architecture)


@contextmanager
def _tiled_random(seed: int) -> Iterator[None]:
    """Draw weights by tiling seeded random numbers: BERT-base takes 0.15 s instead of 0.5 s."""
    generator, drawn = torch.Generator().manual_seed(seed), 0
    normal = torch.randn(_TILE, generator=generator).repeat(2)
    uniform = torch.rand(_TILE, generator=generator).repeat(2)

    def fill(target: Tensor, tile: Tensor, shift: float, scale: float) -> Tensor:
        nonlocal drawn
        start = drawn % _TILE  # no two layers begin alike
        drawn += target.numel()
        for part in target.view(-1).split(_TILE):
            torch.mul(tile[start : start + part.numel()], scale, out=part)
        return target.add_(shift) if shift else target

    def normal_(target: Tensor, mean: float = 0, std: float = 1, generator: Any = None) -> Tensor:
        return fill(target, normal, mean, std)

    def uniform_(target: Tensor, low: float = 0, high: float = 1, generator: Any = None) -> Tensor:
        return fill(target, uniform, low, high - low)

    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.multiple(Tensor, normal_=normal_, uniform_=uniform_),
    ):
        torch.manual_seed(seed)
        yield


def _pretrained(model_class: Any, source: str, architecture: Any) -> Any:
    """Load the weights of `source`, a hub id or a folder: only safetensors, and no code."""
    try:
        model, report = model_class.from_pretrained(
            source,
            config=architecture,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise MeasurementError(f"weights: cannot load {source!r}: {first_line(error)}") from None
    missing = [name for name in sorted(report["missing_keys"]) if "pooler" not in name]
    if missing:
        raise MeasurementError(
            f"weights: {source!r} lacks {len(missing)} of the model's, {missing[0]!r} among them"
        )
    return model


def _require_size(config: Config, model: Model) -> None:
    """Raise `MeasurementError` if the model takes no items of the config's size."""
    if isinstance(model.kind, Pixels):
        try:  # some models take images of one size alone, and only they know which
            with torch.inference_mode():
                model.module(*model.inputs(1, config.seed))
        except (ValueError, RuntimeError) as error:
            raise MeasurementError(
                f"image_size: {config.model!r} takes no {config.image_size}: {first_line(error)}"
            ) from None
        return
    for name, layer in model.module.named_modules():
        if isinstance(layer, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # Positions of RoBERTa's kind begin behind the padding id.
            begin = 0 if layer.padding_idx is None else layer.padding_idx + 1
            if config.seq_len > (longest := layer.num_embeddings - begin):
                raise MeasurementError(
                    f"seq_len: {config.seq_len} tokens are more than the {longest} that this "
                    "model takes"
                )


def first_line(error: Exception) -> str:
    """Return the first line of the message, or the name of the error if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
