"""Make seeded batches of a model's inputs: `Tokens`, or others."""

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
class Tokens:
    """Items of `seq_len` tokens, as (batch, tokens) of int64: ids, mask and, with `types`, types.

    An item begins with `start`, ends with `end` and is filled with `pad`. The model itself pads to
    a multiple of `window`. The inputs of an encoder–decoder's `decoder` are ids alone.
    """

    seq_len: int
    vocabulary: int
    pad: int = 0
    start: int | None = None
    end: int | None = None
    types: bool = False
    window: int = 1
    decoder: bool = False

    def __str__(self) -> str:
        length = -(-self.seq_len // self.window) * self.window
        padded = f", padded to {length}" * (length > self.seq_len)
        return f"{self.seq_len} {'decoder ' * self.decoder}tokens{padded}"

    def make(self, batch_size: int, seed: int, padded: bool = False) -> Inputs:
        """Make a seeded batch; `padded` shortens all items but the first of several, at random."""
        random = torch.Generator().manual_seed(seed)
        shape = (batch_size, self.seq_len)
        first_word = min(_FIRST_WORD, self.vocabulary // 2)
        ids = torch.randint(first_word, self.vocabulary, shape, generator=random)
        lengths = torch.full((batch_size, 1), self.seq_len)
        if padded and not self.decoder:
            short = lengths[1:] if batch_size > 1 else lengths
            short.random_(2, max(3, self.seq_len), generator=random)
        mask = (torch.arange(self.seq_len) < lengths).long()
        if self.start is not None:
            ids[:, 0] = self.start
        if self.end is not None:
            ids.scatter_(1, lengths - 1, self.end)
        ids = ids.where(mask.bool(), self.pad)
        return (ids, mask, torch.zeros_like(ids))[: 1 if self.decoder else 2 + self.types]


@dataclass(frozen=True)
class InputMaker:
    """Items that `item` describes; `make(batch_size, seed, padded)` makes a batch."""

    item: str
    make: Callable[[int, int, bool], Inputs]

    def __str__(self) -> str:
        return self.item


Kind = Tokens | InputMaker


def random_float_maker(item: str, *shape: int) -> InputMaker:
    """Return items of `shape`, (batch, *shape) of float32, normalised: images, videos, audio."""

    def make(batch_size: int, seed: int, padded: bool) -> Inputs:
        random = torch.Generator().manual_seed(seed)
        return (torch.randn((batch_size, *shape), generator=random),)

    return InputMaker(item, make)


def combined_maker(kinds: Sequence[Kind]) -> Kind:
    """Return one kind whose batches hold those of all `kinds`, in order."""

    def make(*how: Any) -> Inputs:
        return tuple(part for kind in kinds for part in kind.make(*how))

    return kinds[0] if len(kinds) == 1 else InputMaker(" and ".join(map(str, kinds)), make)
