"""The kinds of inputs of a model, `Tokens` and `Pixels`, and how a batch of each is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
"""The tensors of a batch, in the order in which the model takes them."""

_SPECIAL = 1000
"""Ids below this are special or unused in published vocabularies; words begin here."""


@dataclass(frozen=True)
class Tokens:
    """Items of `seq_len` tokens, as (batch, tokens) of int64: ids, mask and, with `types`, types.

    `start` and `end` are put around every item if the model has them; `pad` fills it up.
    """

    seq_len: int
    vocabulary: int
    pad: int = 0
    start: int | None = None
    end: int | None = None
    types: bool = False

    def __str__(self) -> str:
        return f"{self.seq_len} tokens"

    def make(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch. `padded` shortens each item, but the first of several, at random."""
        random = torch.Generator().manual_seed(seed)
        shape = (batch_size, self.seq_len)
        first_word = min(_SPECIAL, self.vocabulary // 2)
        ids = torch.randint(first_word, self.vocabulary, shape, generator=random)
        lengths = torch.full((batch_size, 1), self.seq_len)
        if padded:
            short = lengths[1:] if batch_size > 1 else lengths
            short.random_(2, max(3, self.seq_len), generator=random)
        mask = (torch.arange(self.seq_len) < lengths).long()
        if self.start is not None:
            ids[:, 0] = self.start
        if self.end is not None:
            ids.scatter_(1, lengths - 1, self.end)
        ids = ids.where(mask.bool(), self.pad)
        return (ids, mask, torch.zeros_like(ids)) if self.types else (ids, mask)


@dataclass(frozen=True)
class Pixels:
    """Square images as (batch, `channels`, `image_size`, `image_size`) of float32, normalised."""

    image_size: int
    channels: int = 3

    def __str__(self) -> str:
        return f"{self.image_size} × {self.image_size} pixels"

    def make(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch; images have no padding, so `padded` changes nothing."""
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)),)
