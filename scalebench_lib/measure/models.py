"""The models: how each is built, and inputs of its kind.

A builder takes a `Config` and returns a `Model`. To add one: write it, enter it in `BUILDERS`,
and give it a title in `config.MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.bert import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError

transformers_logging.set_verbosity_error()

Inputs = tuple[Tensor, ...]

BERT_HUB_ID = "google-bert/bert-base-uncased"
BERT_TINY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}

_CLS, _SEP, _FIRST_WORD = 101, 102, 1000
"""Token ids of the uncased vocabulary: start, end, and where its words begin."""

_TILE = 1_000_003
"""How many random numbers weights are tiled from; prime, so that no two rows are alike."""


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode that maps `inputs` to a tuple of tensors, batch first."""

    module: nn.Module
    vocabulary: int

    def inputs(self, batch_size: int, seq_len: int, seed: int, padded: bool = False) -> Inputs:
        """Token ids, attention mask and token types, each (batch_size, seq_len), int64.

        `padded` shortens every item but the first to a length of its own, as real batches are.
        """
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(_FIRST_WORD, self.vocabulary, (batch_size, seq_len), generator=random)
        lengths = torch.full((batch_size, 1), seq_len)
        if padded:
            lengths[1:] = torch.randint(2, seq_len + 1, (batch_size - 1, 1), generator=random)
        mask = (torch.arange(seq_len) < lengths).long()
        ids[:, 0] = _CLS
        ids.scatter_(1, lengths - 1, _SEP)
        return ids * mask, mask, torch.zeros_like(ids)


class Encoder(nn.Module):
    """A transformers encoder with positional inputs and plain tensors out, as tracing needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden state (batch, tokens, hidden) and pooled output (batch, hidden)."""
        output = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return output.last_hidden_state, output.pooler_output


class _TiledRandom(TorchDispatchMode):
    """Weights are drawn by tiling one seeded tile: their distribution, without their cost."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.normal = torch.randn(_TILE, generator=random).repeat(2)
        self.uniform = torch.rand(_TILE, generator=random).repeat(2)
        self.drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.normal_.default:
            return self._fill(self.normal, *args)
        if func is torch.ops.aten.uniform_.default:
            target, low, high = (*args, 0.0, 1.0)[:3] if len(args) < 3 else args
            return self._fill(self.uniform, target, low, high - low)
        return func(*args, **(kwargs or {}))

    def _fill(self, tile: Tensor, target: Tensor, shift: float = 0.0, scale: float = 1.0) -> Tensor:
        start = self.drawn % _TILE  # no two layers begin alike
        self.drawn += target.numel()
        values = tile[start : start + min(target.numel(), _TILE)] * scale + shift
        for part in target.view(-1).split(_TILE):
            part.copy_(values[: part.numel()])
        return target


def build(config: Config) -> Model:
    """Build the model of `config` with its weights, in evaluation mode, fp32.

    Raises `MeasurementError` where weights cannot be had or do not fit the config.
    """
    return BUILDERS[config.model](config)


def _bert(config: Config, **architecture: Any) -> Model:
    if config.weights == "random":
        with _TiledRandom(config.seed):
            bert = BertModel(BertConfig(**architecture))
    else:
        bert = _pretrained(BERT_HUB_ID if config.weights == "pretrained" else config.weights)
    longest = bert.config.max_position_embeddings
    if config.seq_len > longest:
        raise MeasurementError(
            f"seq_len: {config.seq_len} tokens are more than the {longest} that this model takes"
        )
    return Model(Encoder(bert).eval(), bert.config.vocab_size)


def _bert_tiny(config: Config) -> Model:
    if config.weights == "pretrained":
        raise MeasurementError("weights: bert-tiny has no published ones: use 'random' or a folder")
    return _bert(config, **BERT_TINY)


def _pretrained(source: str) -> BertModel:
    try:
        return BertModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MeasurementError(f"weights: cannot load {source!r}: {reason}") from None


BUILDERS: dict[str, Callable[[Config], Model]] = {"bert": _bert, "bert-tiny": _bert_tiny}
"""Builders by model name."""
