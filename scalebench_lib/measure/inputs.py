"""Make seeded batches of a model's inputs, of one `Kind` or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
"""The tensors of a batch, in the order in which the model takes them."""

_FIRST_WORD = 1000
"""Lower ids are special or unused in published vocabularies."""


@dataclass(frozen=True)
class Kind:
    """Items that `item` describes; `make(batch_size, seed, padded)` makes a batch."""

    item: str
    make: Callable[[int, int, bool], Inputs]

    def __str__(self) -> str:
        return self.item


def tokens(
    seq_len: int,
    vocabulary: int,
    pad: int = 0,
    start: int | None = None,
    end: int | None = None,
    types: bool = False,
) -> Kind:
    """Return items of `seq_len` tokens: ids, mask and perhaps `types`, (batch, tokens) int64.

    An item begins with `start`, ends with `end` and is filled with `pad`. A padded batch shortens
    all items but the first of several, at random.
    """

    def make(batch_size: int, seed: int, padded: bool) -> Inputs:
        random = torch.Generator().manual_seed(seed)
        first_word = min(_FIRST_WORD, vocabulary // 2)
        ids = torch.randint(first_word, vocabulary, (batch_size, seq_len), generator=random)
        lengths = torch.full((batch_size, 1), seq_len)
        if padded:
            short = lengths[1:] if batch_size > 1 else lengths
            short.random_(2, max(3, seq_len), generator=random)
        mask = (torch.arange(seq_len) < lengths).long()
        if start is not None:
            ids[:, 0] = start
        if end is not None:
            ids.scatter_(1, lengths - 1, end)
        ids = ids.where(mask.bool(), pad)
        return (ids, mask, torch.zeros_like(ids))[: 2 + types]

    return Kind(f"{seq_len} tokens", make)


def decoder_tokens(seq_len: int, vocabulary: int, start: int | None) -> Kind:
    """Return items of an encoder–decoder's decoder: ids alone, never padded."""
    whole = tokens(seq_len, vocabulary, start=start)
    return Kind(
        f"{seq_len} decoder tokens",
        lambda batch_size, seed, padded: whole.make(batch_size, seed, False)[:1],
    )


def random_floats(item: str, *shape: int) -> Kind:
    """Return items of `shape`, (batch, *shape) of float32, normalised: images, videos, audio."""

    def make(batch_size: int, seed: int, padded: bool) -> Inputs:
        random = torch.Generator().manual_seed(seed)
        return (torch.randn((batch_size, *shape), generator=random),)

    return Kind(item, make)


def concatenated(kinds: Sequence[Kind]) -> Kind:
    """Return one kind whose batches hold those of all `kinds`, in order."""

    def make(*how: Any) -> Inputs:
        return tuple(part for kind in kinds for part in kind.make(*how))

    return kinds[0] if len(kinds) == 1 else Kind(" and ".join(map(str, kinds)), make)
