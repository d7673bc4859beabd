"""The probe: a fixed piece of work whose time tells how fast the machine is at this moment.

Clocks change and neighbours come and go, and nothing that the kernel counts shows it. A matrix
product on the same CPUs, right before and after a pass, does.
"""

from __future__ import annotations

import torch

PROBE_VERSION = 1
"""Probe times of one version can be compared; change it with anything below."""

_SHAPE = (16, 768, 3072)
"""One feed-forward product of BERT-base at 16 tokens: its weights come from the shared cache."""


class Probe:
    """Call it to do the work: a few milliseconds, on as many threads as torch uses now."""

    def __init__(self) -> None:
        rows, inner, columns = _SHAPE
        self._left = torch.full((rows, inner), 0.5)
        self._right = torch.full((inner, columns), 0.5)
        self._out = torch.empty((rows, columns))

    def __call__(self) -> None:
        """Multiply; more often with more threads, so that it stays long enough to be timed."""
        for _ in range(2 + torch.get_num_threads()):
            torch.mm(self._left, self._right, out=self._out)
