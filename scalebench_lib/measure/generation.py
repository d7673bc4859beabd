"""Generate text: passes that fill a cache (prefill), or decode one token after it.

The cache is transformers' static one. Its tensors are inputs of a pass, which writes the same
positions of them each time, so that every pass computes the same. ONNX Runtime and OpenVINO take
them as inputs, and write to copies. All sequences of a batch are equally long, without padding.
Encoder–decoders and caches that do not hold all tokens (sliding windows, recurrent layers) are not
supported.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticCache, StaticLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.inputs import Inputs, Tokens

_WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
"""By the precision of the matrix products."""


def model_class(config: Config, architecture: Any) -> Any:
    """Return the decoder with a language head; `MeasurementError` where there is none."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(architecture), None)
    encodes = architecture.is_encoder_decoder or not getattr(architecture, "is_decoder", True)
    if found is None or encodes:
        raise MeasurementError(
            f"phase: {config.model!r} is {architecture.model_type!r}, which is no decoder that "
            "generates tokens from text alone: leave it out"
        )
    longest = getattr(architecture, "max_position_embeddings", None) or config.positions
    if config.positions > longest:
        raise MeasurementError(
            f"seq_len: {config.item} has more than the {longest} positions of this model"
        )
    return found


class Generator(nn.Module):
    """A decoder that reads tokens after `past` others; a sequence has `length` at its end.

    Takes the tokens of whole sequences (batch, length), and the keys and values of each layer,
    (batch, heads, length, size of a head). Returns the logits (batch, vocabulary) of the last one.
    """

    def __init__(self, model: nn.Module, past: int, length: int) -> None:
        super().__init__()
        self.model, self.past = model, past
        self.cache = self._new_cache(length)

    def _get_name(self) -> str:
        return "Plain"  # the digest of a model does not depend on the phase

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute a pass; write its keys and values behind the past ones."""
        tokens, *cache = inputs
        for layer, keys, values in zip(self.cache.layers, cache[::2], cache[1::2], strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.device, layer.dtype = keys.device, keys.dtype
            layer.cumulative_length = torch.full((), self.past)
        return self._last_logits(tokens[:, self.past :], self.cache)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the same function by a pass over whole sequences, without a cache."""
        return self._last_logits(inputs[0], None)

    def filled_cache(self, tokens: Tensor) -> Inputs:
        """Return a new cache that holds the past ones of `tokens` (batch, length)."""
        cache = self._new_cache(tokens.shape[1])
        self._last_logits(tokens[:, : self.past or None], cache)
        return tuple(part for layer in cache.layers for part in (layer.keys, layer.values))

    def _new_cache(self, length: int) -> Any:
        config: Any = self.model.config
        return StaticCache(config, length)

    def _last_logits(self, tokens: Tensor, cache: Any) -> tuple[Tensor, ...]:
        how = {"past_key_values": cache, "use_cache": cache is not None, "logits_to_keep": 1}
        return (self.model(input_ids=tokens, **how).logits[:, -1],)


class CachedTokens:
    """Batches of equally long sequences with their cache, as inputs of a `Generator`.

    Batches of one size share a past and the memory of its cache; the tokens after it differ.
    """

    def __init__(self, tokens: Tokens, generator: Generator, seed: int) -> None:
        self.tokens, self.generator, self.seed = tokens, generator, seed
        self._past = lru_cache(maxsize=1)(self._make_past)

    def __str__(self) -> str:
        return f"1 token after {n}" if (n := self.generator.past) else str(self.tokens)

    def make(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch; nothing is padded, but `padded` has another past."""
        past, cache = self._past(batch_size, self.seed + padded)
        tokens = self.tokens.make(batch_size, seed)[0]
        return torch.cat([past, tokens[:, self.generator.past :]], 1), *cache

    def _make_past(self, batch_size: int, seed: int) -> tuple[Tensor, Inputs]:
        tokens = self.tokens.make(batch_size, seed)[0]
        return tokens[:, : self.generator.past], self.generator.filled_cache(tokens)


def with_static_cache(
    config: Config, model: nn.Module, kind: Tokens
) -> tuple[Generator, CachedTokens]:
    """Return a `Generator` of the phase of `config`, and its inputs.

    Raises `MeasurementError` where a layer's cache does not hold all tokens.
    """
    past = config.seq_len if config.phase == "decode" else 0
    generator = Generator(model, past, config.positions).eval()
    others = {type(layer).__name__ for layer in generator.cache.layers} - {StaticLayer.__name__}
    if others:
        raise MeasurementError(
            f"phase: {config.model!r} has layers whose cache does not hold all tokens "
            f"({', '.join(sorted(others))}): leave it out"
        )
    tokens = replace(kind, seq_len=config.positions, end=None, types=False)
    return generator, CachedTokens(tokens, generator, config.seed)


def bytes_to_read(generator: Any, precision: str, cache: Inputs) -> int | None:
    """Return how many bytes a pass of decoding reads at least: weights and `cache`.

    Embedding tables count nothing: a pass reads one row. Return None for a mixture of experts,
    where the tokens decide which weights are read.
    """
    if getattr(generator.model.config, "num_experts_per_tok", None):
        return None
    layers = [layer for layer in generator.modules() if not isinstance(layer, nn.Embedding)]
    weights: set[Tensor] = {part for layer in layers for part in layer.parameters(recurse=False)}
    cached = sum(part.nbytes for part in cache)
    return sum(part.numel() for part in weights) * _WEIGHT_BYTES[precision] + cached
